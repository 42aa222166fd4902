"""The history loses no run and is whole at every moment; a step is found, what is unchanged raises nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import audit
from audit.cli import app
from audit.machine.environment import source_digest
from audit.publish import report as history
from audit.publish.report import add_run, run_rows, since
from audit.publish.tables import read_table, typed, write_csv
from audit.regress.history import stretches, text

ENVIRONMENT = {
    "created": "2026-11-20T03:00:00+00:00",
    "audit": "0.1.0",
    "driver": None,
    "torch": {"version": "2.12.0", "cpu_capability": "AVX2"},
    "devices": [{"name": "cpu", "model": "Some CPU"}],
}
WRITER = """
import sys
from pathlib import Path
from audit.publish.report import add_run, run_rows
from audit.publish.tables import read_errors
errors, out, name, times = sys.argv[1:]
for i in range(int(times)):
    add_run(run_rows(read_errors(errors), {"created": f"{name} {i}"}), Path(out))
"""


def results(scale: float = 1.0, seed: int = 0, n: int = 400) -> pd.DataFrame:
    """Errors of two cases of one path: of sizes apart, as those of a real one are."""
    errors = np.abs(np.random.default_rng(seed).normal(size=2 * n)) * np.repeat([0.3, 3.0], n) * scale
    rows = {"case": np.repeat(["a", "b"], n), "row": [*range(n)] * 2, "path": "mine", "reduction": "none"}
    rows |= {"dtype": "float32", "device": "cpu", "kind": "kl", "result_class": "finite", "negative": False}
    rows |= {"input_digest": [f"digest {i}" for i in range(2 * n)], "within_bound": True, "false_zero": False}
    return typed(
        pd.DataFrame(rows).assign(computed=errors, scaled_error=errors, correct_bits=20 - np.log2(errors)), "errors"
    )


@pytest.fixture
def errors_file(tmp_path: Path) -> Path:
    write_csv(results(), tmp_path / "errors.csv", "errors")
    return tmp_path / "errors.csv"


def writer(errors: Path, out: Path, name: str, times: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, errors, out, name, str(times)])


def test_runs_that_end_at_once_are_all_kept(errors_file: Path, tmp_path: Path) -> None:
    processes = [writer(errors_file, tmp_path / "reports", name, 20) for name in ("one", "other")]
    assert [process.wait(120) for process in processes] == [0, 0]
    rows = audit.read_table(tmp_path, "history")
    assert list(rows["run"]) == list(range(1, 41))
    assert set(rows["created"]) == {f"{name} {i}" for name in ("one", "other") for i in range(20)}


def test_a_killed_writer_leaves_the_file_whole(
    errors_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run(run_rows(results(), ENVIRONMENT), tmp_path / "latest")
    if (child := os.fork()) == 0:

        def half(*given: object) -> None:
            (tmp_path / ".history.partial").write_text("run,crea")
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(history, "write_csv", half)
        add_run(run_rows(results(), ENVIRONMENT), tmp_path / "latest")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert list(read_table(tmp_path / "history.csv", "history")["run"]) == [1]
    add_run(run_rows(results(), ENVIRONMENT), tmp_path / "latest")
    assert list(read_table(tmp_path / "history.csv", "history")["run"]) == [1, 2]
    assert not (tmp_path / ".history.partial").exists()


def test_the_newest_runs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "RUNS", 3)
    for _ in range(5):
        add_run(run_rows(results(), ENVIRONMENT), tmp_path / "latest")
    assert list(read_table(tmp_path / "history.csv", "history")["run"]) == [3, 4, 5]


def test_a_file_that_is_no_history_and_one_of_older_columns_is_set_aside(tmp_path: Path) -> None:
    for older, name in (
        ("the history of Rome\n", "history.csv.old"),
        ("run,created,path\n1,today,p\n", "history.csv.old1"),
    ):
        (tmp_path / "history.csv").write_text(older)
        remark = add_run(run_rows(results(), ENVIRONMENT), tmp_path / "latest")
        assert name in remark and len(remark.splitlines()) == 1
        assert (tmp_path / name).read_text() == older
        assert list(read_table(tmp_path / "history.csv", "history")["run"]) == [1]
    assert add_run(run_rows(results(), ENVIRONMENT), tmp_path / "latest") == ""


def test_a_step_is_found_with_the_version_that_brought_it(tmp_path: Path) -> None:
    upgraded = ENVIRONMENT | {"torch": {"version": "2.13.0", "cpu_capability": "AVX2"}}
    for scale, environment in ((1, ENVIRONMENT), (1, ENVIRONMENT), (2.5, upgraded), (2.5, upgraded)):
        add_run(run_rows(results(scale), environment), tmp_path / "latest")
    rows = stretches(read_table(tmp_path / "history.csv", "history"))
    assert list(rows["runs"]) == [2, 2] and rows["versions"].iloc[1] == "torch 2.12.0 -> 2.13.0"
    assert rows["changes"].iloc[0] == []
    assert "scaled_error_median worse" in {change["what"] for change in rows["changes"].iloc[1] if change["worse"]}
    answer = CliRunner().invoke(app, ["history", "--path", "m*", "--reports", str(tmp_path)])
    assert answer.exit_code == 0 and "torch 2.12.0 -> 2.13.0" in answer.output and "WORSE" in answer.output
    none = CliRunner().invoke(app, ["history", "--path", "other", "--reports", str(tmp_path)])
    assert none.exit_code == 2 and "unknown path 'other'" in none.output


def test_a_change_of_ones_own_kernel_is_named(tmp_path: Path) -> None:
    for scale, body in ((1, "a = 1"), (9, "a = 2")):
        (tmp_path / "mine.py").write_text(f"{body}\ndef mine(input, target): ...\n")
        names: dict[str, Any] = {}
        exec(compile((tmp_path / "mine.py").read_text(), str(tmp_path / "mine.py"), "exec"), names)
        sources = {"mine": source_digest(names["mine"])}
        add_run(run_rows(results(scale), ENVIRONMENT | {"sources": sources}), tmp_path / "latest")
    assert stretches(read_table(tmp_path / "history.csv", "history"))["versions"].iloc[1].startswith("source ")
    assert source_digest(print) == ""


def test_a_series_of_unchanged_or_newly_rounded_results_raises_nothing(tmp_path: Path) -> None:
    for seed in (0, 0, 1, 2, 3, 3):
        add_run(run_rows(results(seed=seed), ENVIRONMENT), tmp_path / "latest")
    rows = stretches(read_table(tmp_path / "history.csv", "history"))
    assert list(rows["runs"]) == [2, 1, 1, 2]
    assert [[change["what"] for change in changes] for changes in rows["changes"]] == [
        [], *[["changed in the last place"]] * 3
    ]  # fmt: skip
    assert "WORSE" not in text(rows)


def test_a_path_that_computes_nothing_any_more_is_a_step(tmp_path: Path) -> None:
    for nothing in (False, True, True):
        lost = dict.fromkeys(("computed", "scaled_error", "correct_bits", "negative"), np.nan)
        rows = typed(results().assign(**lost if nothing else {}), "errors")
        add_run(run_rows(rows, ENVIRONMENT), tmp_path / "latest")
    assert text(stretches(read_table(tmp_path / "history.csv", "history"))).count("WORSE") == 1


def test_other_inputs_are_a_series_of_their_own(tmp_path: Path) -> None:
    for scale, digest in ((1, "x"), (9, "y"), (1, "x")):
        add_run(run_rows(results(scale).assign(input_digest=digest), ENVIRONMENT), tmp_path / "latest")
    rows = stretches(read_table(tmp_path / "history.csv", "history"))
    assert list(rows["runs"]) == [2, 1] and not any(rows["changes"])


def of(torch: str, day: int) -> dict[str, Any]:
    versions = {"version": torch, "cpu_capability": "AVX2"}
    return ENVIRONMENT | {"torch": versions, "created": f"2026-11-{day}T03:00:00+00:00"}


def test_a_report_says_since_when_its_numbers_are_what_they_are(tmp_path: Path) -> None:
    out = tmp_path / "latest"
    for day, (seed, torch) in enumerate(((0, "2.12.0"), (1, "2.13.0"), (1, "2.13.0")), start=20):
        add_run(run_rows(results(seed=seed), of(torch, day)), out)
    (row,) = since(run_rows(results(seed=1), of("2.13.0", 23)), out).to_dict("records")
    assert (
        row["runs"] == 3 and row["since"].startswith("2026-11-21") and row["what changed"] == "torch 2.12.0 -> 2.13.0"
    )
    assert row["median error"] == pytest.approx(results(seed=1)["scaled_error"].median())
    assert row["before"] == pytest.approx(results(seed=0)["scaled_error"].median())
    (first,) = since(run_rows(results(), of("2.12.0", 20)), tmp_path / "elsewhere" / "latest").to_dict("records")
    assert first["runs"] == 1 and first["what changed"] == ""


def test_two_runs_of_a_history_are_compared(tmp_path: Path) -> None:
    for day, scale in enumerate((1.0, 1.0, 40.0), start=20):
        add_run(run_rows(results(scale), of("2.13.0", day)), tmp_path / "latest")
    file = f"{tmp_path}/history.csv"
    same = CliRunner().invoke(app, ["compare", f"{file}:1", f"{file}:2"])
    assert same.exit_code == 0
    worse = CliRunner().invoke(app, ["compare", f"{file}:1", f"{file}:3", "--format", "json"])
    assert worse.exit_code == 1 and "run 3 of" in worse.stdout
    absent = CliRunner().invoke(app, ["compare", f"{file}:1", f"{file}:9"])
    assert absent.exit_code == 2 and "no run 9" in absent.output
