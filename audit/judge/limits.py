"""What a problem's results are measured by, whatever they are: scales and bounds, computed beside the devices' work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audit.base.kinds import TOKENS
from audit.base.workers import Later, Submit, later
from audit.cases import Problem, Rows
from audit.judge.bounds import Both, Exact, bounds
from audit.judge.tokens import token_bound
from audit.paths import Path
from audit.paths.rounding import Promise
from audit.reference.values import undefined


@dataclass(frozen=True)
class Limits:
    """Of each row: its scale, its rest (see `Exact`), and by what a path promises, its bound and attainable.

    A path that reduces has one bound in all.
    """

    scale: Rows
    rest: Rows
    bounds: Mapping[Promise, Both]


def begin_limits(problem: Problem, paths: Sequence[Path], submit: Submit = later) -> Later[Limits]:
    """The limits of what these paths compute for a problem; the callable returned waits for them."""
    promises = list(dict.fromkeys(path.promise for path in paths))
    return submit(_limits, *problem.numbers, *problem.case.kinds, problem.dtype, promises)


def _limits(
    input: Rows, target: Rows, target_kind: str, input_kind: str, dtype: str, promises: Sequence[Promise]
) -> Limits:
    if input_kind == TOKENS:
        found = {p: (token_bound(p.quantity, input, target, dtype),) * 2 for p in promises}
        return Limits(1 + np.abs(input[:, 0]) + np.abs(target[:, 0]), np.full(len(input), np.nan), found)
    exact = Exact.of(input, target, target_kind, input_kind)
    found = bounds(promises, exact, dtype)
    lost = undefined(input, input_kind) | undefined(target, target_kind)
    if lost.any():  # the reference is NaN, and a NaN passes whatever the bound
        found = {promise: (_lifted(own, lost), _lifted(paired, lost)) for promise, (own, paired) in found.items()}
    return Limits(exact.scale, exact.rest(dtype), found)


def _lifted(bound: Rows, lost: NDArray[np.bool_]) -> Rows:
    return np.where(lost if len(bound) == len(lost) else lost.any(), np.inf, bound)
