"""What should change nothing, and by how much it does: another run, a batch, an order, a constant, padding, threads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from torch import Tensor

from audit.cases import Problem, Rows
from audit.formats import FORMATS
from audit.judge.bounds import Exact, bound
from audit.measure import Result, measure
from audit.paths import Path
from audit.paths.execution import EXECUTIONS, NO_COMPILER, Execution


def measure_invariance(
    problems: Sequence[Problem], paths: Sequence[Path], device: str, compiled: Collection[str] = ()
) -> pd.DataFrame:
    """The rows of invariance.csv: path x dtype x check on one device, over the problems' rows.

    `compiled` names the paths that are compared with their compiled form.
    """
    parts = [part for problem in problems for part in _problem_checks(problem, paths, device, compiled)]
    groups = pd.concat(parts).groupby(["path", "dtype", "device", "check"], sort=False)
    return groups.agg(
        rows=("changed", "size"),
        changed_share=("changed", "mean"),
        largest_ulp=("ulp", "max"),
        largest_of_bound=("of_bound", "max"),
        non_finite=("lost", "sum"),
    ).reset_index()


def _problem_checks(
    problem: Problem, paths: Sequence[Path], device: str, compiled: Collection[str]
) -> Iterator[pd.DataFrame]:
    exact = Exact.of(*problem.numbers, problem.case.target_kind)
    x, y = problem.input.to(device), problem.target.to(device)
    for path in paths:
        if not path.takes(problem.case.name, problem.dtype, problem.case.target_kind):
            continue
        plain, limit = measure(path, x, y), bound(path, exact, problem.dtype)
        if plain.note:
            continue
        for name, check in EXECUTIONS.items():
            if _applies(check, device) and (not check.costly or path.name in compiled):
                before, other = _pair(path, check, plain, x, y)
                key = {"path": path.name, "dtype": problem.dtype, "device": device, "check": name}
                yield pd.DataFrame(_changes(before, other, limit)).assign(**key)


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


def _changes(before: Result, after: Result, limit: Rows) -> dict[str, Rows]:
    """Row by row. A check that raises loses every row's number."""
    plain, other = before.computed, after.computed
    format = FORMATS[before.dtype]
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(plain - other)
        of_bound = np.where(size > 0, size / limit, size)
    # frexp gives m 2^e with m in [1/2, 1).
    exponent = np.frexp(np.maximum(np.abs(plain), 2.0**format.minimum))[1] - 1
    finite = np.isfinite(size)
    return {
        "changed": ~((plain == other) | (np.isnan(plain) & np.isnan(other))),
        "ulp": np.where(finite, size / np.exp2(exponent - format.precision + 1.0), np.nan),
        "of_bound": np.where(finite, of_bound, np.nan),
        "lost": np.isfinite(plain) & ~np.isfinite(other),
    }
