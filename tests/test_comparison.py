"""The regression gate: each loss it is there for is planted and caught; what did not change raises no alarm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import audit
from audit.baselines import machine_key, newest, record
from audit.cli import app
from audit.comparison import Change, Report, compare, read_report
from audit.pipeline import execute, plan
from audit.publish.report import write_report

CASES = ["random_*", "near_1e-02", "identical_n1000"]


def report(out: Path, **filters: object) -> Report:
    run = execute(plan("quick", CASES, filters.get("paths", ["log_softmax", "log_target"]), devices="cpu"))
    write_report(run.tables, run.environment, out)
    return read_report(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reports") / "latest"
    report(out)
    return out


def worse(changes: list[Change]) -> set[str]:
    return {c.what for c in changes if c.worse}


def edited(base: Report, **columns: object) -> Report:
    """The report with columns of one path's float32 rows replaced."""
    summary = base.summary.copy()
    rows = (summary["path"] == "log_softmax") & (summary["dtype"] == "float32") & (summary["case"] == "random_scale1")
    for name, value in columns.items():
        summary.loc[rows, name] = value(summary.loc[rows, name]) if callable(value) else value
    return replace(base, summary=summary)


def test_an_unchanged_run_raises_no_alarm(folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        changes = compare(read_report(folder), report(tmp_path / str(number)), same_machine=True)
        assert worse(changes) == set()


def mine(input: Tensor, target: Tensor) -> Tensor:
    return (torch.softmax(target, -1) * (torch.log_softmax(target, -1) - torch.log_softmax(input, -1))).sum(-1)


def test_the_loss_of_bits_in_one_path_and_dtype_is_caught(tmp_path: Path) -> None:
    """Float32 results rounded to 21 bits: three lost of 24, which the drift of a sum hides but in part."""
    before = report(tmp_path / "before", paths=[mine])

    def coarse(input: Tensor, target: Tensor) -> Tensor:
        value = mine(input, target)
        if value.dtype != torch.float32:
            return value
        mantissa, exponent = torch.frexp(value)
        return torch.ldexp((mantissa * 2**19).round() / 2**19, exponent)

    coarse.__name__ = "mine"
    changes = compare(before, report(tmp_path / "after", paths=[coarse]), same_machine=True)
    assert {c.where.split()[3] for c in changes if c.worse} == {"float32"}
    assert {c.where.split()[1] for c in changes if c.worse} == {"mine"}


def test_one_ulp_is_reported_and_does_not_fail(tmp_path: Path) -> None:
    before = report(tmp_path / "before", paths=[mine])

    def other(input: Tensor, target: Tensor) -> Tensor:
        value = mine(input, target)
        if value.dtype != torch.float64:
            return value
        return torch.cat([torch.nextafter(value[:1], value[:1] + 1), value[1:]])

    other.__name__ = "mine"
    changes = compare(before, report(tmp_path / "after", paths=[other]), same_machine=True)
    assert worse(changes) == set()
    assert any(c.what == "changed in the last place" for c in changes)


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"scaled_error_median": 3.1}, "scaled_error_median up by more than"),
        ({"scaled_error_p99": 9.0}, "scaled_error_p99 up by more than"),
        ({"scaled_error_max": 9.0}, "scaled_error_max up by more than"),
        ({"correct_bits_median": lambda bits: bits - 2.1}, "a correct bit lost in the median"),
        ({"non_finite": 1}, "more results that are not finite"),
        ({"negative_share": 0.1}, "negative where there was none"),
    ],
)
def test_each_loss_is_caught(folder: Path, columns: dict[str, object], what: str) -> None:
    base = edited(read_report(folder), scaled_error_median=0.3, scaled_error_p99=0.6, scaled_error_max=0.8)
    base = edited(base, negative_share=0.0, non_finite=0)
    found = compare(base, edited(base, **columns), same_machine=True)
    assert any(c.worse and c.what.startswith(what) for c in found), found
    assert worse(compare(base, base, same_machine=True)) == set()


def test_what_vanished_fails_on_the_same_machine_alone(folder: Path) -> None:
    base = read_report(folder)
    less = replace(base, summary=base.summary[base.summary["path"] != "log_target"])
    assert worse(compare(base, less, same_machine=True)) == {"vanished"}
    changes = compare(base, less)
    assert worse(changes) == set() and any(c.what == "vanished" for c in changes)


def test_a_new_finding_fails(folder: Path) -> None:
    base = read_report(folder)
    finding = {"status": "new", "path": "log_softmax", "dtype": "float32", "device": "cpu", "symptom": "beyond_bound"}
    other = replace(base, findings=pd.DataFrame([finding]))
    assert worse(compare(base, other)) == {"new finding"}


def test_one_device_is_compared_with_another_by_its_numbers(folder: Path) -> None:
    base = read_report(folder)
    gpu = replace(base, summary=base.summary.assign(device="cuda"))
    assert worse(compare(base, gpu)) == set()


def test_versions_are_told_and_never_select_the_baseline(folder: Path, tmp_path: Path) -> None:
    place = record(folder, "first numbers", tmp_path)
    base = read_report(place)
    upgraded = replace(base, environment=base.environment | {"torch": base.environment["torch"] | {"version": "9.9"}})
    assert machine_key(upgraded.environment) == machine_key(base.environment)
    changes = compare(base, upgraded, same_machine=True)
    assert [(c.what, c.where, c.after) for c in changes if c.what == "version changed"] == [
        ("version changed", "torch version", "9.9")
    ]
    second = record(folder, "after the upgrade", tmp_path)
    assert newest(upgraded, tmp_path) == second and (place / "reason.txt").read_text() == "first numbers\n"


def test_a_baseline_needs_a_reason_and_no_new_finding(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(audit.UsageError, match="reason"):
        record(folder, "  ", tmp_path)

    def twice(input: Tensor, target: Tensor) -> Tensor:
        return 2 * mine(input, target)

    report(tmp_path / "bad", paths=[twice])
    with pytest.raises(audit.UsageError, match="new findings"):
        record(tmp_path / "bad", "none", tmp_path)


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    runner, base = CliRunner(), str(tmp_path)
    none = runner.invoke(app, ["regress", "--report", str(folder), "--baselines", base])
    assert none.exit_code == 0 and "no baseline for this machine" in none.output
    assert runner.invoke(app, ["baseline", "--report", str(folder), "--baselines", base]).exit_code == 2
    made = runner.invoke(app, ["baseline", "--report", str(folder), "--baselines", base, "--reason", "good"])
    assert made.exit_code == 0, made.output
    again = runner.invoke(app, ["regress", "--report", str(folder), "--baselines", base])
    assert again.exit_code == 0 and "0 worse" in again.output and "(good)" in again.output
    for format in ("text", "markdown", "json", "github"):
        answer = runner.invoke(app, ["compare", str(folder), str(folder), "--format", format])
        assert answer.exit_code == 0, answer.output
    assert (
        json.loads(runner.invoke(app, ["compare", str(folder), str(folder), "--format", "json"]).output)["worse"] == 0
    )
    assert runner.invoke(app, ["compare", str(folder), str(tmp_path / "nowhere")]).exit_code == 2
    assert runner.invoke(app, ["compare", str(folder), str(folder), "--format", "xml"]).exit_code == 2
