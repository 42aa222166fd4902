"""The workflow of docs/nightly.md, run as shell: a comparison is made also where the audit finds something."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import audit
from audit.publish.tables import read_table, write_csv
from audit.regress.reports import record

ROOT = Path(__file__).parents[2]
YAML = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "nightly.md").read_text(), re.S)[0]
STEPS = re.split(r"^ +- ", YAML.partition("steps:\n")[2], flags=re.M)[1:]


def runs(folder: Path, make: int) -> tuple[list[int], str]:
    """The status of each step that GitHub would run, and all their output; `make` is the status of the audit's."""
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"GITHUB_STEP_SUMMARY": str(folder / "summary"), "STATUS": str(make)}
    statuses: list[int] = []
    output = ""
    for step in STEPS:
        command = re.search(r"run: (.*)", step)
        if command is None or (any(statuses) and "if: ${{ !cancelled() }}" not in step):
            continue
        shell = ["bash", "-e", "-c", command[1]]
        answer = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
        statuses.append(answer.returncode)
        output += answer.stdout + answer.stderr
    return statuses, output


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout with a baseline, whose `make` puts the report `made` in place."""
    chosen = {"profile": "quick", "cases": "random_*", "paths": "log_softmax", "dtypes": "float32", "devices": "cpu"}
    audit.run(**chosen, out=tmp_path / "made")
    record(tmp_path / "made", "good", tmp_path / "reports/baselines")
    scripts = {
        "python": f'exec {shlex.quote(sys.executable)} "$@"',
        "make": '[ "$*" = "--keep-going audit bench" ] && cp -r made reports/latest && exit $STATUS',
    }
    (tmp_path / "bin").mkdir()
    for name, script in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def test_a_night_without_a_change_is_green(place: Path) -> None:
    statuses, output = runs(place, 0)
    assert statuses == [0, 0, 0] and "::error" not in output
    assert "0 worse" in (place / "summary").read_text()


def test_where_the_audit_finds_something_the_comparison_is_made(place: Path) -> None:
    table = read_table(place / "made", "summary")
    write_csv(table.assign(non_finite=table["non_finite"] + 1), place / "made/summary.csv", "summary")
    statuses, output = runs(place, 2)
    assert statuses == [2, 1, 1] and output.count("::error title=log_softmax float32::") == 1
    assert "not finite" in (place / "summary").read_text()
