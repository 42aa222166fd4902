"""What a problem's results are measured by, whatever they are: scales and bounds, computed beside the devices' work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audit.base.formats import FORMATS
from audit.base.kinds import GATED, TOKENS
from audit.base.workers import Later, Submit, later
from audit.cases import Problem, Rows
from audit.judge.bounds import OVERFLOWS, Both, Exact, bounds
from audit.paths import Path
from audit.paths.rounding import Promise
from audit.reference.values import undefined

_SLACK = 1 + 2.0**-40  # what bounds of tokens are off by themselves, computed in binary64


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
    return submit(_limits, *problem.numbers, problem.case.kinds, problem.dtype, promises)


def _limits(input: Rows, target: Rows, kinds: tuple[str, str], dtype: str, promises: Sequence[Promise]) -> Limits:
    target_kind, input_kind = kinds
    if input_kind == TOKENS:
        found = {p: (token_bound(p.quantity, input, target, dtype),) * 2 for p in promises}
        return Limits(1 + np.abs(input[:, 0]) + np.abs(target[:, 0]), np.full(len(input), np.nan), found)
    exact = Exact.of(input, target, target_kind, input_kind)
    found = bounds(promises, exact, dtype)
    lost = undefined(input, input_kind) | undefined(target, target_kind)
    if lost.any():  # the reference is NaN, and a NaN passes whatever the bound
        for promise, both in found.items():
            for bound in both if promise.kind in GATED else ():
                bound[lost if promise.reduction == "none" else slice(None)] = np.inf
    return Limits(exact.scale, exact.rest(dtype), found)


@OVERFLOWS
def token_bound(quantity: str, input: Rows, target: Rows, dtype: str) -> NDArray[np.float64]:
    """The bound of a `token_` path's results, a token each; infinite where a log-probability is not finite.

    Every operation is rounded to the tensors' dtype. With u its unit roundoff, r = input - target is off by at most
    d = u |r|, and exp(r), whose function errs by at most eps (4 roundoffs of the format computed in, and u once more
    where that is wider), by

        e = exp(r) ((exp(d) - 1) (1 + eps) + eps).

    k3 = exp(r) - 1 - r in either order of its two subtractions is off by b = e + d, then by u of the first difference,
    which is at most max(|exp(r) - 1|, |exp(r) - r|) + b, and by u of the second. What a clamp makes of a value and its
    bound is the larger distance from the clamped value to the clamped ends. Each rounding may underflow besides, by
    half the smallest subnormal number, of which binary64 holds only the whole.
    """
    (x, y), single, held = (input[:, 0], target[:, 0]), FORMATS["float32"], FORMATS[dtype]
    format = single if quantity == "token_k3_openrlhf" else held
    u, tiny = format.unit_roundoff, format.smallest_subnormal
    compute = max(format.precision, single.precision)
    eps = 4 * 2.0**-compute + (u if format.precision < compute else 0)
    r = x - y
    d = u * np.abs(r)
    if format.precision < held.precision:  # both sides are rounded first
        d = d + u * (np.abs(x) + np.abs(y))
    if quantity == "token_k3_verl":
        r, d = np.clip(r, -20, 20), np.minimum(d, 21 * u)
    ratio = np.exp(r)
    e = ratio * (np.expm1(d) * (1 + eps) + eps) + tiny
    k3, off = np.expm1(r) - r, e + d
    off = off + u * (np.maximum(np.abs(ratio - 1), np.abs(ratio - r)) + off)
    off = off + u * (k3 + off) + 2 * tiny
    limits = {
        "token_k1": d,
        "token_k2": r * r / 2 * 3 * u * (1 + 2 * u) + 2 * tiny,
        "token_k3": off,
        "token_ratio": e,
        "token_ratio_clipped": _clamped(ratio, e, 0.8, 1.2) + 1.2 * u,  # the limits are rounded
    }
    bound = limits.get(quantity, _clamped(k3, off, -10, 10))
    return np.where(np.isfinite(x) & np.isfinite(y) & ~np.isnan(bound), bound * _SLACK, np.inf)


def _clamped(value: NDArray[np.float64], bound: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    bound = bound + 2.0**-50 * np.abs(value)  # the value is binary64's
    middle, least, most = (np.clip(v, low, high) for v in (value, value - bound, value + bound))
    return np.maximum(most - middle, middle - least)
