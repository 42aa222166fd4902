"""The regression gate: each loss it is there for is planted and caught; what did not change raises no alarm."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import audit
from audit.cli import app
from audit.machine.plan import plan
from audit.pipeline.loop import execute
from audit.publish.report import write_report
from audit.publish.tables import typed, write_csv
from audit.regress.changes import FORMATS, render
from audit.regress.comparison import REPEATS, compare
from audit.regress.reports import Report, machine_key, newest, read_report, record

CASES = ["random_*", "near_1e-02", "identical_n1000"]
THROUGHOUT = {"scaled error worse throughout"}  # where one case has most rows
LOSSES = {
    "scaled_error_median": 3.1,
    "scaled_error_p99": 9.0,
    "scaled_error_max": 9.0,
    "correct_bits_median": lambda bits: bits - 2.1,
    "non_finite": 1,
    "negative_share": 0.1,
}


def report(out: Path, paths: list[object] | None = None) -> Report:
    run = execute(plan("quick", CASES, paths or ["log_softmax", "log_target"], devices="cpu"))
    write_report(run.tables, run.environment, out)
    return read_report(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reports") / "latest"
    report(out)
    return out


@pytest.fixture(scope="module")
def base(folder: Path) -> Report:
    return read_report(folder)


@pytest.fixture(scope="module")
def lossless(base: Report) -> Report:
    return plain(base, 1_000)


def worse(changes: pd.DataFrame) -> set[str]:
    return set(changes.loc[changes["worse"], "what"])


def edited(base: Report, **columns: object) -> Report:
    """The report with columns of one path's float32 rows of one case replaced."""
    summary = base.summary.copy()
    rows = (summary["path"] == "log_softmax") & (summary["dtype"] == "float32") & (summary["case"] == "random_scale1")
    for name, value in columns.items():
        summary.loc[rows, name] = value(summary.loc[rows, name]) if callable(value) else value
    return replace(base, summary=summary)


def plain(base: Report, n: int) -> Report:
    """A result without loss, of n rows, to plant one in."""
    known = {"scaled_error_median": 0.3, "scaled_error_p99": 0.6, "scaled_error_max": 0.8, "correct_bits_median": 20.0}
    return edited(base, n=n, negative_share=0.0, non_finite=0, **known)


def mine(input: Tensor, target: Tensor) -> Tensor:
    return (torch.softmax(target, -1) * (torch.log_softmax(target, -1) - torch.log_softmax(input, -1))).sum(-1)


def remedy(input: Tensor, target: Tensor) -> Tensor:
    return audit.kl_div_from_logits(input, target, reduction="none")


def double_error(value: Tensor, input: Tensor, target: Tensor) -> Tensor:
    """Twice as far off as it is: a bit lost on the way."""
    exact = remedy(input.double(), target.double())
    return (exact + 2 * (value.double() - exact)).to(value.dtype)


def last_bit_off(value: Tensor, input: Tensor, target: Tensor) -> Tensor:
    """Of float32 numbers, 23 bits of 24."""
    mantissa, exponent = torch.frexp(value)
    return torch.ldexp((mantissa * 2**23).round() / 2**23, exponent)


def first_ulp_up(value: Tensor, input: Tensor, target: Tensor) -> Tensor:
    return torch.cat([torch.nextafter(value[:1], value[:1] + 1), value[1:]])


def planted(kernel: Callable[..., Tensor], change: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
    """The kernel under its own name, its results in one dtype changed."""

    @functools.wraps(kernel)
    def changed(input: Tensor, target: Tensor) -> Tensor:
        value = kernel(input, target)
        return change(value, input, target) if value.dtype == dtype else value

    return changed


def test_an_unchanged_run_changes_nothing(base: Report, tmp_path: Path) -> None:
    changes = compare(base, report(tmp_path / "again"), same_machine=True)
    assert set(changes["what"]) <= {"speed not compared"}


@pytest.mark.parametrize(("kernel", "loss"), [(mine, double_error), (remedy, last_bit_off)])
def test_the_loss_of_one_bit_in_one_path_and_dtype_is_caught(tmp_path: Path, kernel, loss) -> None:
    before = report(tmp_path / "before", [kernel])
    after = report(tmp_path / "after", [planted(kernel, loss, torch.float32)])
    changes = compare(before, after, same_machine=True)
    lost = changes[changes["worse"]]
    assert set(zip(lost["path"], lost["dtype"], strict=True)) == {(kernel.__name__, "float32")}


def test_one_ulp_is_reported_and_does_not_fail(tmp_path: Path) -> None:
    before = report(tmp_path / "before", [mine])
    after = report(tmp_path / "after", [planted(mine, first_ulp_up, torch.float64)])
    changes = compare(before, after, same_machine=True)
    assert worse(changes) == set()
    moved = changes[changes["what"] == "changed in the last place"]
    assert set(moved["dtype"]) == {"float64"} and len(moved)


@pytest.mark.parametrize(("column", "value"), LOSSES.items())
def test_each_loss_is_caught(lossless: Report, column: str, value: object) -> None:
    changes = compare(lossless, edited(lossless, **{column: value}))
    assert len(worse(changes) - THROUGHOUT) == 1 and not worse(compare(lossless, lossless))


@pytest.mark.parametrize(
    ("column", "passes", "fails"),
    [
        ("scaled_error_median", 1.45, 1.55),
        ("scaled_error_p99", 1.9, 2.1),
        ("scaled_error_max", 1.9, 2.1),
        ("correct_bits_median", 19.1 / 20, 19 / 20),
    ],
)
def test_with_enough_rows_the_factors_are_as_stated(lossless: Report, column: str, passes: float, fails: float) -> None:
    assert not worse(compare(lossless, edited(lossless, **{column: lambda v: v * passes})))
    assert len(worse(compare(lossless, edited(lossless, **{column: lambda v: v * fails}))) - THROUGHOUT) == 1


def test_fewer_rows_widen_the_factors(base: Report) -> None:
    few = plain(base, 8)
    assert not worse(compare(few, edited(few, scaled_error_median=0.9, correct_bits_median=18.5)))
    assert worse(compare(few, edited(few, scaled_error_median=3.0))) == {"scaled_error_median worse"}


def test_improvements_are_told(lossless: Report) -> None:
    poor = edited(lossless, scaled_error_median=3.0, non_finite=2)
    changes = compare(poor, lossless)
    assert worse(changes) == set()
    assert {"scaled_error_median better", "fewer results that are not finite"} <= set(changes["what"])


@pytest.mark.parametrize(("bits", "error", "fails"), [(10.0, 0.5, True), (1.0, 0.5, False), (np.nan, 0.0, True)])
def test_a_negative_value_is_news_where_its_sign_is_no_chance(
    lossless: Report, bits: float, error: float, fails: bool
) -> None:
    base = edited(lossless, correct_bits_median=bits, scaled_error_max=error)
    changes = compare(base, edited(base, negative_share=0.2))
    assert bool(worse(changes)) is fails
    assert any(what.startswith("negative") for what in changes["what"])


def drawn(generator: np.random.Generator, law: str, factor: dict[str, float]) -> Report:
    """A report as large as the standard one, of errors drawn anew; `factor` multiplies those of some paths."""
    sizes = [1] * 20 + [4] * 2 + [8] * 20 + [16] * 16 + [32] * 3 + [64, 128]
    rows = []
    for path in map("path{}".format, range(20)):
        for case, n in enumerate(sizes):
            spread = 0.6 * 2.0 ** -(case % 5) * factor.get(path, 1.0)
            errors = spread * np.abs(getattr(generator, law)(size=n))
            row = {"case": f"case{case}", "path": path, "reduction": "none", "dtype": "float32", "device": "cpu"}
            row |= {"kind": "kl", "n": n, "scaled_error_median": np.median(errors), "scaled_error_max": errors.max()}
            row |= {"scaled_error_p99": np.quantile(errors, 0.99), "computed_digest": str(generator.random())}
            row |= {"correct_bits_median": 20 - np.log2(np.median(errors)), "negative_share": 0.0, "non_finite": 0}
            rows.append(row)
    environment = {"devices": [], "torch": {"cpu_capability": ""}}
    return Report(typed(pd.DataFrame(rows), "summary"), typed(pd.DataFrame(), "findings"), environment)


@pytest.mark.parametrize("comparisons", [5, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("law", ["standard_normal", "uniform", "laplace"])
def test_results_rounded_anew_raise_no_alarm(law: str, comparisons: int) -> None:
    """Of comparisons whose 1,280 results are all drawn anew, one in a hundred may raise an alarm."""
    generator = np.random.default_rng(7)
    pairs = ((drawn(generator, law, {}), drawn(generator, law, {})) for _ in range(comparisons))
    alarms = sum(bool(worse(compare(*pair))) for pair in pairs)
    assert alarms <= 1 + comparisons // 40  # exceeded with a chance below 0.001 where the rate is as promised


def test_a_bit_less_throughout_one_path_is_caught_among_results_rounded_anew() -> None:
    generator = np.random.default_rng(8)
    for _ in range(2):
        changes = compare(drawn(generator, "standard_normal", {}), drawn(generator, "standard_normal", {"path3": 2.0}))
        assert "path3" in set(changes.loc[changes["worse"], "path"])


def test_what_vanished_fails_on_the_same_machine_alone(base: Report) -> None:
    less = replace(base, summary=base.summary[base.summary["path"] != "log_target"])
    changes = compare(base, less, same_machine=True)
    assert worse(changes) == {"vanished"} and changes["path"].iloc[0] == "log_target"
    changes = compare(base, less)
    assert worse(changes) == set() and "vanished" in set(changes["what"])


def test_a_path_that_computes_nothing_any_more_has_vanished(base: Report) -> None:
    assert worse(compare(base, edited(base, negative_share=np.nan), same_machine=True)) == {"vanished"}


def finding(status: str, cases: str) -> pd.DataFrame:
    known = {"path": "log_softmax", "dtype": "float32", "device": "cpu", "symptom": "beyond_bound"}
    return pd.DataFrame([known | {"status": status, "cases": cases}])


def test_a_new_finding_fails_though_others_of_its_kind_are_acknowledged(base: Report) -> None:
    base = replace(base, findings=finding("acknowledged", "one_hot peaked"))
    assert worse(compare(base, replace(base, findings=finding("new", "one_hot")))) == set()
    changes = compare(base, replace(base, findings=finding("new", "one_hot flat")))
    assert worse(changes) == {"new finding"} and list(changes.loc[0, ["where", "case"]]) == ["beyond_bound", "flat"]


def test_a_path_that_becomes_lossy_is_a_regression_whatever_the_case(base: Report) -> None:
    def lossy(cases: str) -> Report:
        return replace(base, findings=finding("lossy", cases).assign(symptom="lossy"))

    changes = compare(base, lossy("zipf flat"))
    assert worse(changes) == {"new finding"} and list(changes.loc[0, ["where", "case"]]) == ["lossy", "*"]
    assert worse(compare(lossy("zipf"), lossy("flat"))) == set()
    assert "finding gone" in set(compare(lossy("zipf"), base)["what"])


def test_one_device_is_compared_with_another_by_its_numbers(base: Report, tmp_path: Path) -> None:
    moved = base.environment | {"devices": [{"name": "cuda", "model": "Some GPU", "status": "audited"}]}
    gpu = replace(edited(base, correct_bits_median=1.0, n=1_000), environment=moved)
    gpu = replace(gpu, summary=gpu.summary.assign(device="cuda"))
    changes = compare(base, gpu)
    assert worse(changes) == {"correct_bits_median worse"}
    assert "the machines are unlike" in set(changes["where"])
    both = replace(base, summary=pd.concat([base.summary, gpu.summary]))
    assert "cuda" in set(compare(both, base, same_machine=True)["device"])


def test_versions_are_told_and_never_select_the_baseline(folder: Path, tmp_path: Path) -> None:
    place = record(folder, "first numbers", tmp_path)
    base = read_report(place)
    upgraded = replace(base, environment=base.environment | {"torch": base.environment["torch"] | {"version": "2.11"}})
    assert machine_key(upgraded.environment) == machine_key(base.environment)
    changes = compare(base, upgraded, same_machine=True)
    told = changes[changes["what"] == "torch version changed"]
    assert list(told["after"]) == ["2.11"] and worse(changes) == set()
    second = record(folder, "after the upgrade", tmp_path)
    assert f"{second} (after the upgrade)" in newest(upgraded, tmp_path).name
    assert (place / "reason.txt").read_text() == "first numbers\n"
    other = replace(base, environment=base.environment | {"profile": "full"})
    assert newest(other, tmp_path) is None


def test_a_baseline_needs_a_reason_and_no_new_finding(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(audit.UsageError, match="reason"):
        record(folder, "  ", tmp_path)

    def twice(input: Tensor, target: Tensor) -> Tensor:
        return 2 * mine(input, target)

    report(tmp_path / "bad", [twice])
    with pytest.raises(audit.UsageError, match="new findings"):
        record(tmp_path / "bad", "none", tmp_path / "baselines")
    assert not (tmp_path / "baselines").exists()


def bench(ratio: float = 10.0, seconds: float = 1e-3) -> pd.DataFrame:
    rows = [{"path": p, "dtype": "float32", "device": "cpu", "rows": 64, "classes": 10} for p in ("mine", "other")]
    table = typed(pd.DataFrame(rows).assign(direction="forward", ratio=10.0, seconds=1e-3), "bench")
    table.loc[0, ["ratio", "seconds"]] = ratio, seconds
    return table


@pytest.mark.parametrize(
    ("again", "fails"), [([20.0] * REPEATS, True), ([20.0, 11.0], False), ([20.0] * (REPEATS - 1) + [14.0], False)]
)
def test_what_is_slower_must_be_so_each_time_it_is_repeated(base: Report, again: list[float], fails: bool) -> None:
    before, after = (replace(base, bench=b) for b in (bench(), bench(20.0, 2e-3)))
    answers = iter(again)

    def repeat(suspects: pd.DataFrame) -> pd.DataFrame:
        assert list(suspects["path"]) == ["mine"] and list(suspects["device"]) == ["cpu"]
        return bench(next(answers), 2e-3)[:1]

    changes = compare(before, after, same_machine=True, repeat=repeat)
    assert worse(changes) == ({f"slower, {REPEATS} times in a row"} if fails else set())
    assert next(answers, None) is None
    assert worse(compare(before, after, same_machine=True)) == set()


def test_a_faster_calibration_makes_no_path_slower(base: Report) -> None:
    before, after = (replace(base, bench=b) for b in (bench(), bench(20.0, 1e-3)))
    assert "slower, not repeated" not in set(compare(before, after)["what"])


def test_a_benchmark_that_vanished_fails_in_regress(base: Report) -> None:
    before, after = (replace(base, bench=b) for b in (bench(), bench()[:1]))
    assert worse(compare(before, after, same_machine=True)) == {"benchmark vanished"}


def test_the_formats(lossless: Report) -> None:
    columns = {"scaled_error_median": 3.0, "scaled_error_max": np.inf, "correct_bits_median": 9.5}
    changes = compare(lossless, edited(lossless, **columns))
    sides = [replace(lossless, name=name) for name in ("before", "after")]
    told = json.loads(render(changes, *sides, "json"), parse_constant=pytest.fail)
    assert told["worse"] == changes["worse"].sum() and len(told["changes"]) == len(changes)
    bits = next(change for change in told["changes"] if change["what"] == "correct_bits_median worse")
    key = {"path": "log_softmax", "dtype": "float32", "device": "cpu", "case": "random_scale1", "reduction": "none"}
    assert key.items() <= bits.items() and (bits["before"], bits["after"], bits["unit"]) == (20.0, 9.5, "bits")
    assert render(changes, *sides, "markdown").count("**worse**") == changes["worse"].sum()
    assert "20.0 -> 9.5 bits (10.5 bits, 1.0 bits allowed)" in render(changes, *sides, "text")
    for format in FORMATS:
        out = render(changes, *sides, format)
        for environment in (told["baseline"], told["current"]):
            assert all(plain_markdown(out).count(word) for word in filter(None, environment.values())), format
    many = pd.concat([changes[changes["worse"]].assign(path=f"path{i}") for i in range(40)], ignore_index=True)
    assert len(render(many, *sides, "text").splitlines()) < 30


def plain_markdown(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def test_github_gets_one_titled_annotation_a_path_and_dtype(lossless: Report) -> None:
    changes = compare(lossless, edited(lossless, scaled_error_median=3.0, correct_bits_median=9.5))
    other = changes[changes["worse"]].assign(path="a:b,c 100%\n")
    sides = [replace(lossless, name=name) for name in ("before", "after")]
    lines = render(pd.concat([changes, other], ignore_index=True), *sides, "github").split("\n")
    errors = [line for line in lines if line.startswith("::error")]
    assert [line.partition("::")[2].partition("::")[0] for line in errors] == [
        "error title=log_softmax float32", "error title=a%3Ab%2Cc 100%25\\n float32"
    ]  # fmt: skip
    assert "correct_bits_median worse" in errors[0] and "%0Ascaled_error_median worse" in errors[0].replace("\n", "")
    assert [line.split("::")[1][:21] for line in lines if line not in errors] == ["notice title=kl-audit"]


def test_a_slowdown_that_many_share_is_seen_though_each_is_below_its_gate(base: Report) -> None:
    def many(factors: list[float]) -> Report:
        rows = pd.concat([bench().assign(rows=64 + i, ratio=10 * f, seconds=1e-3 * f) for i, f in enumerate(factors)])
        return replace(base, bench=rows.reset_index(drop=True))

    before, slow = many([1.0] * 8), many([1.1, 1.25, 1.25, 1.3, 1.3, 1.3, 1.4, 1.5])
    changes = compare(before, slow, same_machine=True, repeat=lambda _: slow.bench)
    shared = changes[changes["worse"]].set_index("where")
    assert set(shared.index) == {"8 benchmarks", "16 benchmarks"} and set(shared["times"].round(2)) == {1.3}
    assert not worse(compare(before, slow, same_machine=True, repeat=lambda _: before.bench))
    assert "slower throughout, not repeated" in set(compare(before, slow)["what"])
    few = many([1.0] * 6 + [1.6] * 2)
    assert not worse(compare(before, few, same_machine=True, repeat=lambda _: few.bench))


def test_the_commands(folder: Path, lossless: Report, tmp_path: Path) -> None:
    invoke = functools.partial(CliRunner().invoke, app)
    where = "--report", str(folder), "--baselines", str(tmp_path)
    none = invoke(["regress", *where])
    assert none.exit_code == 0 and "no baseline for this machine" in none.output and none.output.count("\n") == 1
    assert invoke(["baseline", *where]).exit_code == 2
    made = invoke(["baseline", *where, "--reason", "good"])
    assert made.exit_code == 0, made.output
    again = invoke(["regress", *where])
    assert again.exit_code == 0 and "0 worse" in again.output and "(good" in again.output
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    write_csv(edited(lossless, scaled_error_median=30.0).summary, tmp_path / "summary.csv", "summary")
    for format in ("text", "markdown", "json", "github"):
        answer = invoke(["compare", str(folder), str(tmp_path), "--format", format])
        assert answer.exit_code == 1 and "scaled_error_median worse" in answer.output


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("environment.json", None, "no report"),
        ("environment.json", lambda text: "[1]", "environment.json"),
        ("environment.json", lambda text: json.dumps(json.loads(text) | {"schema_version": 2}), "schema version 2"),
        ("summary.csv", lambda text: "", "summary.csv"),
        ("summary.csv", lambda text: text.partition("\n")[0] + "\n", "in common"),
        ("summary.csv", lambda text: "case,path\na,b\n", "no column"),
        ("summary.csv", lambda text: text + text.partition("\n")[2], "several rows"),
        ("bench.json", lambda text: "{}", "bench.json"),
    ],
)
def test_odd_input_is_one_line_and_status_2(folder: Path, tmp_path: Path, name: str, spoil, message: str) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / name
    if spoil is None:
        file.unlink()
    else:
        file.write_text(spoil(file.read_text() if file.exists() else ""))
    for pair in ([folder, tmp_path], [tmp_path, folder]):
        answer = CliRunner().invoke(app, ["compare", *map(str, pair)])
        assert answer.exit_code == 2 and message in answer.output and answer.output.count("\n") == 1, answer.output
    assert CliRunner().invoke(app, ["compare", str(folder), str(folder), "--format", "xml"]).exit_code == 2
