"""A table of the report is a file: what docs/extending.md says of adding one is so."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from audit.looks import Look, Run, errors
from audit.machine.plan import RUNS, plan
from audit.pipeline import loop
from audit.publish.tables import INTEGER, SCHEMAS, TEXT, Column

EXTENDING = Path(__file__).parents[2] / "docs" / "extending.md"


def test_a_look_makes_its_table_in_the_runs_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def begin(run: Run):
        begun.append("begun")
        shapes = [(trial.problem.case.name, trial.problem.input.shape[1]) for trial in run.trials]

        def rows() -> pd.DataFrame:
            assert "errors" in run.tables  # the looks before it are done
            return pd.DataFrame(shapes, columns=["case", "classes"])

        return rows

    monkeypatch.setitem(SCHEMAS, "widths", [Column("case", TEXT, "case"), Column("classes", INTEGER, "its classes")])
    for wanted in ("part", "whole"):
        monkeypatch.setattr(loop, "LOOKS", (errors.LOOK, Look("widths", (wanted,), begin)))
        tables = loop.execute(plan("quick", "two_classes", "log_softmax", "float32", "cpu")).tables
        assert ("widths" in tables) == (wanted == "part")
        if wanted == "part":
            assert tables["widths"].values.tolist() == [["two_classes", 2]]
    assert begun == ["begun"]


def test_every_look_names_a_table_with_columns_and_runs_that_there_are() -> None:
    assert all(look.table in SCHEMAS and set(look.runs) <= set(RUNS) for look in loop.LOOKS)


def test_the_page_on_extending_names_every_room_in_its_order() -> None:
    package = Path(loop.__file__).parents[1]
    rooms = [folder.name for folder in package.iterdir() if (folder / "__init__.py").exists()]
    told = re.findall(r"^\| `audit/(\w+)` \|", EXTENDING.read_text(), re.M)
    assert set(told) >= set(rooms) and len(told) == len(set(told))
