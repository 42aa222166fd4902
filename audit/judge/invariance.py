"""What should change nothing, and by how much it does: another run, a batch, an order, a constant, padding, threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from audit.cases import Problem
from audit.formats import FORMATS
from audit.judge.bounds import Exact, bound
from audit.paths import Path

Function = Callable[[Tensor, Tensor], Tensor]


def _again(f: Function, x: Tensor, y: Tensor) -> Tensor:
    return f(x, y)


def _alone(f: Function, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([f(x[[i]], y[[i]]) for i in range(len(x))])


def _permuted(f: Function, x: Tensor, y: Tensor) -> Tensor:
    return f(x.flip(-1), y.flip(-1))


def _constant(f: Function, x: Tensor, y: Tensor) -> Tensor:
    """Adds to each row the constant that keeps every logit exact, its largest power of two below an ulp's loss."""
    shifted = x + 1
    exact = ((shifted - 1) == x).all(-1)
    return torch.where(exact, f(shifted, y), f(x, y))


def _padded(f: Function, x: Tensor, y: Tensor) -> Tensor:
    return f(*(torch.nn.functional.pad(t, (0, 3), value=-torch.inf) for t in (x, y)))


def _one_thread(f: Function, x: Tensor, y: Tensor) -> Tensor:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return f(x, y)
    finally:
        torch.set_num_threads(threads)


def _strided(f: Function, x: Tensor, y: Tensor) -> Tensor:
    return f(*(t.repeat_interleave(2, -1)[:, ::2] for t in (x, y)))


CHECKS: dict[str, Callable[[Function, Tensor, Tensor], Tensor]] = {
    "run to run": _again,
    "row alone": _alone,
    "classes reversed": _permuted,
    "constant added": _constant,
    "padded with -inf": _padded,
    "one thread": _one_thread,
    "strided": _strided,
}


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
    if problem.dtype not in path.dtypes:
        return
    x, y = problem.input.to(device), problem.target.to(device)
    limit = bound(path, Exact.of(*problem.numbers, problem.case.target_kind), problem.dtype)
    format = FORMATS[problem.dtype]
    with torch.no_grad():
        plain = path.function(x, y).double().cpu().numpy()
        for name, check in CHECKS.items():
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
