"""Where a drift comes from: that of softmax, log_softmax, log, product and sum in turn, split in exact arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd
import torch

from audit.base.workers import Later, Submit, later
from audit.cases import Problem
from audit.looks import CLOSER, Look, Run
from audit.machine.devices import here, lasting
from audit.reference.softmax import split_drift

THREAD = "identical_n1000"
ROWS, THREAD_ROWS = 2, 8  # the first of a case


def begin(run: Run) -> Later[pd.DataFrame]:
    """Of a few problems."""
    problems = [trial.problem for trial in run.some((*CLOSER, THREAD))]
    return begin_attribution(problems, run.devices, run.submit)


LOOK = Look("attribution", ("whole",), begin)


def begin_attribution(
    problems: Sequence[Problem], devices: Sequence[str], submit: Submit = later
) -> Later[pd.DataFrame]:
    """Begins the rows of attribution.csv, and waits for them when called: a row of a case x dtype on a device."""
    begun = list(lasting(devices, problems, partial(_rows, submit), "attribution"))
    return lambda: pd.DataFrame([row | parts() for row, parts in begun])


def _rows(submit: Submit, problem: Problem, device: str) -> Iterator[tuple[dict[str, object], Later[dict[str, float]]]]:
    """Of the staged log_softmax path."""
    rows = THREAD_ROWS if problem.case.name == THREAD else ROWS
    x, y = (t[:rows].to(device) for t in (problem.input, problem.target))
    p, l = torch.softmax(y, -1), torch.log_softmax(x, -1)
    log_p = torch.log(p)
    terms = torch.where(p > 0, p * (log_p - l), 0)
    # The sum before it is rounded to the format of a half; the others have no such step.
    wide = terms.float() if terms.dtype in (torch.float16, torch.bfloat16) else terms
    totals = wide.sum(-1)
    results = totals.to(x.dtype)
    numbers = [here(t).double().tolist() for t in (x, y, p, l, log_p, terms, totals, results)]
    for row, (*stages, total, result) in enumerate(zip(*numbers, strict=True)):
        key = {"case": problem.case.name, "row": row, "path": "log_softmax", "dtype": problem.dtype, "device": device}
        yield key, submit(split_drift, stages, total, result)
