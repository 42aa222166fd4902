"""errors.csv of a user's file, of which two blocks of rows are in memory: one is judged, the next begun."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from audit.base.workers import Later
from audit.looks import Look, Run, begin_trials, together
from audit.looks.errors import error_table, run_paths

# In memory at a time: 2 MB in each of the some fifty binary64 arrays of the judgement.
ELEMENTS_AT_ONCE = 2**18


def begin(run: Run) -> Later[pd.DataFrame]:
    """The first block's references and limits."""
    assert run.plan.file is not None
    file, (rows, classes) = run.plan.file, run.plan.file.input.shape
    step = max(1, ELEMENTS_AT_ONCE // classes)
    blocks = (
        list(begin_trials(replace(run.plan, cases=[file.case(slice(i, i + step))]), run.engine, run.submit))
        for i in range(0, rows, step)
    )
    first = next(blocks)

    def judged() -> pd.DataFrame:
        parts: list[pd.DataFrame] = []
        stopped: dict[tuple[str, str], str] = {}
        following = first
        for start in range(0, rows, step):
            begun, following = following, next(blocks, [])
            run.advance(f"row {start}")
            part = error_table([result for trial in begun for result in run_paths(trial, run.devices, stopped)])
            parts.append(part.assign(row=part["row"] + start, rows=rows))
        return together(parts)

    return judged


LOOK = Look("errors", ("file",), begin)
