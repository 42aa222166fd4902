"""What should change nothing, and by how much it does: another run, a batch, an order, a constant, padding, threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from audit.base.formats import FORMATS
from audit.base.supervision import on_case
from audit.base.workers import Later
from audit.cases import Rows
from audit.looks import CLOSER, Look, Run, Trial
from audit.machine.devices import lasting
from audit.machine.measure import Result, measure
from audit.machine.plan import COMPARISON, MAIN
from audit.paths.execution import EXECUTIONS, NO_COMPILER

WIDE = "zipf_n128256"  # of more than 32,768 classes: torch shares those among threads
NARROW = "two_classes"  # of which many rows are cheap
SMALL = 2**16  # numbers, of which 128 rows are no burden
# Paths that are compared with their compiled form, which takes a compilation each.
COMPILED = {"quick": (), "standard": (COMPARISON,), "full": MAIN}


def begin(run: Run) -> Later[pd.DataFrame]:
    """Every path that gives a value a row, and the user's own, on some problems; none of it can be begun before."""
    trials = run.some((*CLOSER, WIDE, *([NARROW] if run.plan.own else [])))
    return lambda: _table(pd.DataFrame(lasting(run.devices, trials, partial(_checks, run), "invariance")))


LOOK = Look("invariance", ("whole", "kernel"), begin)


def _table(cases: pd.DataFrame) -> pd.DataFrame:
    """What changed in all cases together."""
    if cases.empty:
        return cases
    groups = cases.groupby(["path", "dtype", "device", "check"], sort=False)
    largest = groups[["largest_ulp", "largest_of_bound"]].max()
    table = groups[["rows", "changed", "non_finite"]].sum().join(largest)
    table[["case", "row"]] = cases.loc[groups["worst"].idxmax(), ["case", "row"]].to_numpy()
    return table.assign(changed_share=table["changed"] / table["rows"]).reset_index()


def _checks(run: Run, trial: Trial, device: str) -> Iterator[dict[str, object]]:
    """What each check that means something here changed in a problem's rows."""
    problem, own = trial.problem, run.plan.own
    on_case(problem.case.name)
    x, y = problem.input.to(device), problem.target.to(device)
    where = "cpu" if device == "cpu" else "accelerator"
    compiled = () if own or NO_COMPILER[where] else COMPILED[run.plan.profile]
    for path in (p for p in trial.paths if p.runs_on(device) and (p.name, device) not in run.stopped):
        # Every check of a compiled path would be another compilation: its eager form is compared with it instead.
        if path.kind != "kl" or path.compiles or (path.reduction != "none" and path.name not in own):
            continue
        plain, limit = measure(path, x, y), trial.limits().bounds[path.promise][0]
        for name, check in EXECUTIONS.items():
            unfit = check.where not in ("", where) or (check.each and path.reduction != "none")
            unasked = check.own and (path.name not in own or x.numel() > SMALL)
            if unfit or unasked or (check.costly and path.name not in compiled):
                continue
            # Under the check, beside what the path gives as it is.
            changed = replace(path, function=partial(check.run, path.function), compiles=check.costly)
            a = check.prepare(x) if check.prepare else x
            before = measure(path, a, y) if check.prepare else plain
            if not before.note:
                key = {"path": path.name, "dtype": problem.dtype, "device": device, "check": name}
                yield key | {"case": problem.case.name} | _changes(before, measure(changed, a, y), limit)


def _changes(before: Result, after: Result, limit: Rows) -> dict[str, object]:
    """How many rows changed, and by how much at most: in ulp, and as a share of the bound.

    A check that raises loses every row's number, which is worse than any change.
    """
    plain, other = before.computed, after.computed
    format = FORMATS[before.dtype]
    # frexp gives m 2^e with m in [1/2, 1).
    exponent = np.frexp(np.maximum(np.abs(plain), 2.0**format.minimum))[1] - 1
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(plain - other)
        size[~np.isfinite(size)] = np.nan
        of_bound = np.where(size > 0, size / limit, size)
        ulp = size / np.exp2(exponent - format.precision + 1.0)
    lost = np.isfinite(plain) & ~np.isfinite(other)
    worst = np.where(lost, np.inf, np.nan_to_num(of_bound, nan=-1.0))
    return {
        "rows": len(plain),
        "changed": np.sum(~((plain == other) | (np.isnan(plain) & np.isnan(other)))),
        "non_finite": lost.sum(),
        "largest_ulp": np.fmax.reduce(ulp),
        "largest_of_bound": np.fmax.reduce(of_bound),
        "worst": worst.max(),
        "row": worst.argmax(),
    }
