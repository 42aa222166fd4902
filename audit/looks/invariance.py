"""What should change nothing, and by how much it does: another run, a batch, an order, a constant, padding, threads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np
import pandas as pd
from torch import Tensor

from audit.base.formats import FORMATS
from audit.base.workers import Later
from audit.cases import Problem, Rows
from audit.judge.limits import Limits, begin_limits
from audit.machine.devices import lasting
from audit.machine.measure import Result, measure
from audit.paths import Path
from audit.paths.execution import EXECUTIONS, NO_COMPILER, Execution


def measure_invariance(
    problems: Sequence[Problem],
    paths: Sequence[Path],
    device: str,
    compiled: Collection[str] = (),
    known: Mapping[tuple[str, str], Later[Limits]] = MappingProxyType({}),
) -> pd.DataFrame:
    """The rows of invariance.csv: path x dtype x check on one device, over the problems' rows.

    `compiled` names the paths that are compared with their compiled form. `known` are the limits, by case and dtype,
    of problems for which they need not be computed.
    """
    found: dict[tuple[str, str, str], list[list[Rows]]] = {}

    def work(problem: Problem) -> Iterator[tuple[tuple[str, str, str], list[Rows]]]:
        limits = known.get((problem.case.name, problem.dtype)) or begin_limits(problem, paths)
        for path, name, changes in _problem_checks(problem, paths, device, compiled, limits()):
            yield (path, problem.dtype, name), changes

    for key, changes in lasting(device, problems, work, "invariance"):
        found.setdefault(key, []).append(changes)
    rows = []
    for (path, dtype, check), parts in found.items():
        changed, ulp, of_bound, lost = (np.concatenate(column) for column in zip(*parts, strict=True))
        finite = bool(np.isfinite(ulp).any())
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
            }
        )
    return pd.DataFrame(rows)


def _problem_checks(
    problem: Problem, paths: Sequence[Path], device: str, compiled: Collection[str], limits: Limits
) -> Iterator[tuple[str, str, list[Rows]]]:
    """Path, check and what changed in each row."""
    x, y = problem.input.to(device), problem.target.to(device)
    for path in paths:
        if not (path.runs_on(device) and path.takes(problem.case.name, problem.dtype, *problem.case.kinds)):
            continue
        plain, limit = measure(path, x, y), limits.bounds[path.promise]
        for name, check in EXECUTIONS.items():
            if _applies(check, device) and (not check.costly or path.name in compiled):
                before, after = _pair(path, check, plain, x, y)
                if not before.note:
                    yield path.name, name, _changes(before, after, limit)


def _applies(check: Execution, device: str) -> bool:
    if check.costly and NO_COMPILER:
        return False
    return check.where in ("", "cpu" if device == "cpu" else "accelerator")


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
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(plain - other)
        of_bound = np.where(size > 0, size / limit, size)
    # frexp gives m 2^e with m in [1/2, 1).
    exponent = np.frexp(np.maximum(np.abs(plain), 2.0**format.minimum))[1] - 1
    finite = np.isfinite(size)
    return [
        ~((plain == other) | (np.isnan(plain) & np.isnan(other))),
        np.where(finite, size / np.exp2(exponent - format.precision + 1.0), np.nan),
        np.where(finite, of_bound, np.nan),
        np.isfinite(plain) & ~np.isfinite(other),
    ]
