"""errors.csv of a user's file, of which two blocks of rows are in memory: one is judged, the next begun."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from audit.base.workers import Later
from audit.looks import Look, Run, begin_trials, together
from audit.looks.errors import error_table, run_paths

# In memory at a time: 2 MB in each of the some fifty binary64 arrays of the judgement.
ELEMENTS_AT_ONCE = 2**18
UNDEFINED = "holds a NaN, +inf, or -inf throughout: KL is NaN"


def begin(run: Run) -> Later[pd.DataFrame]:
    """The first block's references and limits."""
    assert run.plan.file is not None
    file, step = run.plan.file, max(1, ELEMENTS_AT_ONCE // run.plan.file.input.classes)
    starts = [start for start in range(0, len(file.mask), step) if file.mask[start : start + step].any()]
    blocks = (
        list(begin_trials(replace(run.plan, cases=[file.case(slice(i, i + step))]), run.engine, run.submit))
        for i in starts
    )
    first = next(blocks)

    def judged() -> pd.DataFrame:
        parts: list[pd.DataFrame] = []
        stopped: dict[tuple[str, str], str] = {}
        following = first
        for start in starts:
            begun, following = following, next(blocks, [])
            run.advance(f"row {start}")
            part = error_table([result for trial in begun for result in run_paths(trial, run.devices, stopped)])
            numbers = file.kept(start, start + step)
            note = part["note"].where(part["reference"].ne("nan") | part["note"].ne(""), UNDEFINED)
            parts.append(part.assign(row=numbers[part["row"].astype("int64")], rows=len(file.mask), note=note))
        return together(parts)

    return judged


LOOK = Look("errors", ("file",), begin)
