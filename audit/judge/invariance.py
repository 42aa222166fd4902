"""What should change nothing, and by how much it does: another run, a batch, an order, a constant, padding, threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from audit.cases import Problem
from audit.formats import FORMATS
from audit.judge.bounds import Exact, bound
from audit.measure import TORCH
from audit.paths import Path
from audit.paths.execution import EXECUTIONS


def measure_invariance(problems: Sequence[Problem], paths: Sequence[Path], device: str) -> pd.DataFrame:
    """The rows of invariance.csv: path x dtype x check on one device, over the problems' rows."""
    rows = [row for problem in problems for path in paths for row in _checks(problem, path, device)]
    table = pd.DataFrame(rows)
    groups = table.groupby(["path", "dtype", "device", "check"], sort=False)
    return groups.agg(
        rows=("changed", "size"),
        changed_share=("changed", "mean"),
        largest_ulp=("ulp", "max"),
        largest_of_bound=("of_bound", "max"),
        non_finite=("lost", "sum"),
    ).reset_index()


def _checks(problem: Problem, path: Path, device: str) -> Iterator[dict[str, object]]:
    if not path.takes(problem.case.name, problem.case.target_kind, problem.dtype):
        return
    x, y = problem.input.to(device), problem.target.to(device)
    limit = bound(path, Exact.of(*problem.numbers, problem.case.target_kind), problem.dtype)
    format = FORMATS[problem.dtype]
    with torch.no_grad():
        with TORCH:
            plain = path.function(x, y).double().cpu().numpy()
        for name, check in EXECUTIONS.items():
            with TORCH:
                other = check(path.function, x, y).double().cpu().numpy()
            same = (plain == other) | (np.isnan(plain) & np.isnan(other))
            with np.errstate(invalid="ignore", divide="ignore"):
                size = np.abs(plain - other)
                exponent = np.floor(np.log2(np.maximum(np.abs(plain), 2.0**format.minimum)))
            for i in range(len(plain)):
                finite = bool(np.isfinite(size[i]))
                yield {
                    "path": path.name,
                    "dtype": problem.dtype,
                    "device": device,
                    "check": name,
                    "changed": not same[i],
                    "ulp": size[i] / format.ulp(int(exponent[i])) if finite else np.nan,
                    "of_bound": size[i] / limit[i] if finite else np.nan,
                    "lost": bool(np.isfinite(plain[i]) and not np.isfinite(other[i])),
                }
