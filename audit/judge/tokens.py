"""Bounds of what is made of a sampled token's two log-probabilities: every operation rounded to the tensors' dtype.

With u the unit roundoff of that dtype, r = input - target is off by at most d = u |r|, and exp(r), whose function errs
by at most eps (4 roundoffs of the format computed in, and u once more where that is wider), by

    e = exp(r) ((exp(d) - 1) (1 + eps) + eps).

k3 = exp(r) - 1 - r in either order of its two subtractions is off by b = e + d, then by u of the first difference,
which is at most max(|exp(r) - 1|, |exp(r) - r|) + b, and by u of the second. What a clamp makes of a value and its
bound is the larger distance from the clamped value to the clamped ends.
Each rounding may underflow besides, by half the smallest subnormal number, of which binary64 holds only the whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from audit.base.formats import FORMATS
from audit.judge.bounds import OVERFLOWS
from audit.reference.values import Rows

# What the bounds themselves are off by, computed in binary64.
_SLACK = 1 + 2.0**-40


@OVERFLOWS
def token_bound(quantity: str, input: Rows, target: Rows, dtype: str) -> NDArray[np.float64]:
    """The bound of a `token_` path's results, a token each; infinite where a log-probability is not finite."""
    x, y = input[:, 0], target[:, 0]
    single = FORMATS["float32"]
    held = FORMATS[dtype]
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
    if quantity == "token_k1":
        bound = d
    elif quantity == "token_k2":
        bound = r * r / 2 * 3 * u * (1 + 2 * u) + 2 * tiny
    elif quantity == "token_ratio":
        bound = e
    elif quantity == "token_ratio_clipped":
        bound = _clamped(ratio, e, 0.8, 1.2) + 1.2 * u  # the limits are rounded
    else:
        bound = e + d
        bound = bound + u * (np.maximum(np.abs(ratio - 1), np.abs(ratio - r)) + bound)
        k3 = np.expm1(r) - r
        bound = bound + u * (k3 + bound) + 2 * tiny
        if quantity != "token_k3":
            bound = _clamped(k3, bound, -10, 10)
    return np.where(np.isfinite(x) & np.isfinite(y) & ~np.isnan(bound), bound * _SLACK, np.inf)


def _clamped(value: NDArray[np.float64], bound: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    bound = bound + 2.0**-50 * np.abs(value)  # the value is binary64's
    middle, least, most = (np.clip(v, low, high) for v in (value, value - bound, value + bound))
    return np.maximum(most - middle, middle - least)
