"""The benchmarks, run for real: what bench.json holds, what a slower kernel does, what a busy machine does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from audit.machine.plan import plan
from audit.pipeline.loop import execute
from audit.publish.bench import measure_again, pareto, read_bench
from audit.publish.report import write_report
from audit.publish.tables import check
from audit.regress.comparison import REPEATS, compare
from audit.regress.reports import Report, read_report

ROOT = Path(__file__).parents[2]
TWICE = """
from dataclasses import replace
from audit import paths

def twice(path):
    return lambda x, y: (path.function(x, y), path.function(x, y))[1]

for path in paths.registered():
    if path.name == "log_target":
        key = path.name, path.reduction, path.target_kind
        paths.PATHS[key] = replace(path, function=twice(path))
"""
BUSY = "while True: sum(i * i for i in range(10_000))"


def run_bench(out: Path, chosen: str, *options: str) -> pd.DataFrame:
    command = [sys.executable, "-m", "pytest", "tests/benchmarks", f"--benchmark-json={out}", "-k", chosen, *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(out.parent), str(ROOT)])}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Pareto-best" in answer.stdout
    return read_bench(out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    run_bench(out, "(log_target or upcast) and float32 and 64-10 and cpu")
    return out


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_the_json_is_plain_and_pytest_benchmark_reads_it(made: Path) -> None:
    content = json.loads(made.read_text(), parse_constant=refuse)
    assert len(content["benchmarks"]) == 8
    for benchmark in content["benchmarks"]:
        assert set(benchmark["extra_info"]) == {
            "ratio", "correct_bits", "scaled_error", "gigabytes_per_second", "copy_gigabytes_per_second",
        }  # fmt: skip
        assert all(type(value) is float for value in benchmark["extra_info"].values())
        assert "UNSERIALIZABLE" not in json.dumps(benchmark["params"])
    code = "import sys; from pytest_benchmark.cli import main; sys.exit(main())"
    answer = subprocess.run([sys.executable, "-c", code, "compare", str(made)], capture_output=True, text=True)
    assert answer.returncode == 0 and "log_target-float32-cpu-64-10-forward" in answer.stdout, answer.stderr


def test_the_table_has_each_paths_accuracy_and_is_written_beside(made: Path) -> None:
    table = read_bench(made)
    check(table, "bench")
    assert table.notna().all().all() and (table["seconds"] > 0).all() and (table["ratio"] > 0).all()
    forward = table[table["direction"] == "forward"].groupby("path")["correct_bits"].min()
    assert forward["upcast"] > forward["log_target"]
    assert {"bench.json", "bench.csv"} <= {f.name for f in made.parent.iterdir()}


def test_pareto_best_is_what_nothing_beats_in_both() -> None:
    point = {"dtype": "float32", "device": "cpu", "rows": 1, "classes": 10, "direction": "forward"}
    rows = [("a", 1.0, 10.0), ("b", 2.0, 10.0), ("c", 3.0, 20.0), ("d", 2.5, 5.0), ("e", 1.5, float("nan"))]
    table = pd.DataFrame([{**point, "path": p, "seconds": s, "correct_bits": b} for p, s, b in rows])
    table["pareto"] = pareto(table)
    assert list(table["path"][table["pareto"]]) == ["a", "c"]


def small_report(out: Path) -> Report:
    run = execute(plan("quick", ["random_*"], ["log_softmax"], devices="cpu"))
    write_report(run.tables, run.environment, out)
    return read_report(out)


@pytest.mark.slow
def test_a_kernel_that_takes_twice_as_long_is_caught(tmp_path: Path) -> None:
    chosen = "(log_target or log_softmax) and (64-1000 or 16-32000)"
    report = small_report(tmp_path / "latest")
    before = replace(report, bench=run_bench(tmp_path / "before.json", chosen))
    (tmp_path / "plant.py").write_text(TWICE)

    def planted(suspects: pd.DataFrame | None = None) -> pd.DataFrame:
        return run_bench(tmp_path / "after.json", chosen, "-p", "plant")

    changes = compare(before, replace(report, bench=planted()), same_machine=True, repeat=planted)
    slower = changes[changes["worse"]]
    assert set(slower["what"]) == {f"slower, {REPEATS} times in a row"} and set(slower["path"]) == {"log_target"}


@pytest.mark.slow
def test_ten_unchanged_runs_on_a_busy_machine_raise_no_alarm(tmp_path: Path) -> None:
    """As many processes that do nothing but compute as there are cores, beside each run and not beside the baseline."""
    chosen = "(log_target or upcast or kl_div_from_logits) and float32 and not 2-262144"
    before = replace(small_report(tmp_path / "latest"), bench=run_bench(tmp_path / "before.json", chosen))
    suspects = []

    def repeat(rows: pd.DataFrame) -> pd.DataFrame:
        suspects.append(len(rows))
        return measure_again(rows)

    for number in range(10):
        with ExitStack() as stack:
            for _ in range(os.cpu_count() or 1):
                busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY]))
                stack.callback(busy.kill)
            current = small_report(tmp_path / str(number))
            current = replace(current, bench=run_bench(tmp_path / "after.json", chosen))
            changes = compare(before, current, same_machine=True, repeat=repeat)
        assert not changes["worse"].any(), changes[changes["worse"]].to_string()
    print(f"benchmarks repeated, by repetition: {suspects}")
