"""errors.csv of a user's file, a block of rows after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from audit.looks.errors import Begun, Block, error_table
from audit.pipeline.plan import Plan
from audit.publish.schema import typed

# In memory at a time: 2 MB in each of the some fifty binary64 arrays of the judgement.
ELEMENTS_AT_ONCE = 2**18

Begin = Callable[[Plan], list[Begun]]
Run = Callable[[list[Begun]], list[Block]]


def judge_file(plan: Plan, begin: Begin, run: Run) -> pd.DataFrame:
    """The rows of errors.csv. Of two blocks that are in memory one is judged, the next begun."""
    assert plan.file is not None
    file, step = plan.file, max(1, ELEMENTS_AT_ONCE // plan.file.input.classes)
    starts = [start for start in range(0, len(file.mask), step) if file.mask[start : start + step].any()]
    blocks = (begin(replace(plan, cases=[file.case(slice(start, start + step))])) for start in starts)
    parts: list[pd.DataFrame] = []
    following = next(blocks)
    for start in starts:
        begun, following = following, next(blocks, [])
        part = error_table(run(begun))
        numbers = file.kept(start, start + step)
        parts.append(part.assign(row=numbers[part["row"].astype("int64")], rows=len(file.mask)))
    table = typed(pd.concat(parts, ignore_index=True), "errors")
    lost = table["reference"].eq("nan") & table["note"].eq("")
    return table.assign(note=table["note"].where(~lost, "the row holds a NaN, or is no distribution"))
