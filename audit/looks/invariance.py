"""What should change nothing, and by how much it does: another run, a batch, an order, a constant, padding, threads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from torch import Tensor

from audit.base.formats import FORMATS
from audit.base.supervision import on_case
from audit.base.workers import Later
from audit.cases import Rows
from audit.looks import CLOSER, Look, Run, Trial, together
from audit.machine.devices import lasting
from audit.machine.measure import TOO_SLOW, Result, measure
from audit.machine.plan import COMPARISON, MAIN
from audit.paths import Path
from audit.paths.execution import EXECUTIONS, NO_COMPILER, Execution

WIDE = "zipf_n128256"  # of more than 32,768 classes: torch shares those among threads
NARROW = "two_classes"  # of which many rows are cheap
SMALL = 2**16  # numbers, of which 128 rows are no burden
# Paths that are compared with their compiled form, which takes a compilation each.
COMPILED = {"quick": (), "standard": (COMPARISON,), "full": MAIN}


def begin(run: Run) -> Later[pd.DataFrame]:
    """Every path that gives a value a row, and the user's own, on some problems; none of it can be begun before."""
    plan = run.plan
    each = [p for p in plan.paths if p.reduction == "none" or p.name in plan.own]
    kl = [p for p in each if p.kind == "kl" and p.target_kind == "logits"]
    # Every check of a compiled path would be another compilation: its eager form is compared with it instead.
    paths = [p for p in kl if not p.compiles]
    trials = run.some((*CLOSER, WIDE, *([NARROW] if plan.own else [])))
    compiled = () if plan.own else COMPILED[plan.profile]

    def rows(device: str) -> pd.DataFrame:
        errors = run.tables["errors"]
        slow = errors.loc[errors["note"].str.contains(TOO_SLOW) & errors["device"].eq(device), "path"].unique()
        quick = [p for p in paths if p.name not in slow]
        return measure_invariance(trials, quick, device, compiled, plan.own)

    return lambda: together(rows(device) for device in run.devices)


LOOK = Look("invariance", ("whole", "kernel"), begin)


def measure_invariance(
    trials: Sequence[Trial],
    paths: Sequence[Path],
    device: str,
    compiled: Collection[str] = (),
    own: Collection[str] = (),
) -> pd.DataFrame:
    """The rows of invariance.csv: path x dtype x check on one device, over the problems' rows.

    `compiled` names the paths that are compared with their compiled form, `own` those of the user's own.
    """
    found: dict[tuple[str, str, str], list[list[Rows]]] = {}
    places: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    checked = lasting(device, trials, lambda trial: _checks(trial, paths, device, compiled, own), "invariance")
    for case, path, dtype, name, changes in checked:
        key = path, dtype, name
        found.setdefault(key, []).append(changes)
        places.setdefault(key, []).extend((case, row) for row in range(len(changes[0])))
    rows = []
    for (path, dtype, check), parts in found.items():
        changed, ulp, of_bound, lost = (np.concatenate(column) for column in zip(*parts, strict=True))
        finite = bool(np.isfinite(ulp).any())
        worst = int(np.argmax(np.where(lost, np.inf, np.nan_to_num(of_bound, nan=-1.0))))
        case, row = places[path, dtype, check][worst]
        rows.append(
            {
                "path": path,
                "dtype": dtype,
                "device": device,
                "check": check,
                "rows": changed.size,
                "changed_share": changed.mean(),
                "largest_ulp": np.nanmax(ulp) if finite else np.nan,
                "largest_of_bound": np.nanmax(of_bound) if finite else np.nan,
                "non_finite": int(lost.sum()),
                "case": case,
                "row": row,
            }
        )
    return pd.DataFrame(rows)


def _checks(
    trial: Trial, paths: Sequence[Path], device: str, compiled: Collection[str], own: Collection[str]
) -> Iterator[tuple[str, str, str, str, list[Rows]]]:
    """Case, path, dtype, check and what changed in each row."""
    problem, limits = trial.problem, trial.limits()
    on_case(problem.case.name)
    x, y = problem.input.to(device), problem.target.to(device)
    for path in paths:
        if not (path.runs_on(device) and path.takes(problem.case.name, problem.dtype, *problem.case.kinds)):
            continue
        plain, limit = measure(path, x, y), limits.bounds[path.promise][0]
        for name, check in EXECUTIONS.items():
            unfit = check.each and path.reduction != "none"
            if unfit or (check.own and (path.name not in own or x.numel() > SMALL)):
                continue
            if _applies(check, device) and (not check.costly or path.name in compiled):
                before, after = _pair(path, check, plain, x, y)
                if not before.note:
                    yield problem.case.name, path.name, problem.dtype, name, _changes(before, after, limit)


def _applies(check: Execution, device: str) -> bool:
    where = "cpu" if device == "cpu" else "accelerator"
    return check.where in ("", where) and not (check.costly and NO_COMPILER[where])


def _pair(path: Path, check: Execution, plain: Result, x: Tensor, y: Tensor) -> tuple[Result, Result]:
    """What the path gives as it is, and under the check."""
    if check.prepare is not None:
        x = check.prepare(x)
        plain = measure(path, x, y)
    checked = replace(path, function=partial(check.run, path.function), compiles=check.costly)
    return plain, measure(checked, x, y)


def _changes(before: Result, after: Result, limit: Rows) -> list[Rows]:
    """Of each row: whether it changed, by how many ulp, how much of the bound, and whether a number was lost.

    A check that raises loses every row's number.
    """
    plain, other = before.computed, after.computed
    format = FORMATS[before.dtype]
    # frexp gives m 2^e with m in [1/2, 1).
    exponent = np.frexp(np.maximum(np.abs(plain), 2.0**format.minimum))[1] - 1
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(plain - other)
        of_bound = np.where(size > 0, size / limit, size)
        ulp = size / np.exp2(exponent - format.precision + 1.0)
    finite = np.isfinite(size)
    return [
        ~((plain == other) | (np.isnan(plain) & np.isnan(other))),
        np.where(finite, ulp, np.nan),
        np.where(finite, of_bound, np.nan),
        np.isfinite(plain) & ~np.isfinite(other),
    ]
