"""KL of rows of logits in binary64, on the device they are on, enclosed: what decides most rows of a large file.

With m = max y, V = sum e^(y - m), any c, and d = x - y - c, in whose terms nothing cancels (docs/screening.md has the
derivation, and what each error is bounded by),

    KL = log1p(s + r + t) - r,    s = E[expm1(d) - d],    r = E[d],    E[.] = sum e^(y - m) (.) / V,

t being the input's mass at classes where the target has none. A row is certain where its results keep, or a NaN aside
miss, the least that its bounds can be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import vecdot

from audit.base.formats import FORMATS
from audit.paths.rounding import Promise

Rows = NDArray[np.float64]
DTYPES = ("float16", "bfloat16", "float32")
_U = 2.0**-53
_LIBRARY = 4 * _U  # exp, expm1, log, log1p: 2 ulp; documented is 1 (SLEEF's u10, glibc, CUDA's guide)
_FAR = 700.0  # below the largest logit, where exponentials near underflow
_IN_CACHE, _AT_ONCE = 2**16, 2**24  # numbers: on a CPU, on an accelerator
_FEWEST = 3  # digits, below which a reference is the engine's to give


@dataclass(frozen=True)
class Enclosure:
    """Of each row: KL within `radius` of `kl` (not a number where it is not enclosed), and no more than its entropy.

    `zero`: input and target are the same numbers. `reverse`: KL(input || target) in binary64, without a radius.
    """

    kl: Rows
    radius: Rows
    entropy: Rows
    reverse: Rows
    zero: NDArray[np.bool_]

    @classmethod
    def none(cls, rows: int) -> Enclosure:
        kl, radius, entropy, reverse = np.full((4, rows), np.nan)
        return cls(kl, radius, entropy, reverse, np.zeros(rows, bool))

    def holds(self, row: int, value: str) -> bool:
        """Whether a row's KL may be this."""
        return abs(Decimal(value) - Decimal(self.kl[row])) <= Decimal(self.radius[row])

    @property
    def scale(self) -> Rows:
        """1 + sum p (|log p| + |log q|)."""
        return 1 + 2 * self.entropy + self.kl

    def text(self, row: int) -> str:
        """KL to the digits that are certain, the last to one more or less; "" where they are too few."""
        if self.zero[row]:
            return "0"
        kl, radius = self.kl[row], self.radius[row]
        if not 0 < radius < kl:
            return ""
        digits = math.floor(math.floor(math.log10(kl)) + 1 - math.log10(2 * radius))
        return f"{kl:.{min(digits, 15) - 1}e}" if digits >= _FEWEST else ""


def enclose(input: Tensor, target: Tensor) -> Enclosure:
    """Of logits, rows x classes, of one of DTYPES."""
    size = max(1, (_IN_CACHE if input.device.type == "cpu" else _AT_ONCE) // input.shape[1])
    parts = zip(torch.split(input, size), torch.split(target, size), strict=True)
    sums = torch.cat([_sums(x, y) for x, y in parts], dim=1)
    with np.errstate(all="ignore"):
        return _enclosed(sums.cpu().numpy(), input.shape[1])


def _sums(x: Tensor, y: Tensor) -> Tensor:
    """Everything that is summed over the classes."""
    same = (x == y).all(-1)
    y, x = y.double(), x.double()
    top = y.amax(-1, keepdim=True)
    e = x.sub(y)
    a = y.sub_(top)
    lowest = a.amin(-1)
    far = a < -_FAR if (lowest < -_FAR).any() else None
    if far is not None:
        infinite = (a > -torch.inf) & (x == -torch.inf)  # mass where the input has none, however small
        e, a = (part.masked_fill(far & ~infinite, 0.0) for part in (e, a))
    v = a.exp()
    if far is not None:
        v.masked_fill_(far & ~infinite, 0.0)
    total, spread = v.sum(-1), vecdot(v, a)
    c = (vecdot(v, e) / total).unsqueeze(-1)
    d = e.sub_(c)
    beyond = torch.zeros_like(total)
    if far is not None:
        d.masked_fill_(far, 0.0)
        # An exponent beyond binary64's gives an infinity, which is no enclosure.
        beyond = x.sub_(top).sub_(c).masked_fill_(~far, -torch.inf).clamp_(min=-750.0).exp_().mul_(far).sum(-1)
    r = vecdot(v, d)
    grown = torch.expm1(d, out=a)
    turned = vecdot(v * grown, d)
    s = vecdot(v, grown.sub_(d))
    size = d.abs_()
    moments = (total, spread, c.squeeze(-1), size.amax(-1), r, s, vecdot(v, size), beyond, turned, lowest, same)
    return torch.stack(moments)


def _enclosed(sums: Rows, classes: int) -> Enclosure:
    V, spread, c, D, r, s, size, t, turned, lowest, same = sums
    n, u = classes + 2, _U
    additions = n * u / (1 - n * u)  # any order
    exponentials = 1.01 * (_LIBRARY + u * np.minimum(-lowest, _FAR))
    ratio = 1.01 * (2 * (exponentials + additions) + 3 * u)  # of one sum to another
    r, s, size, t, spread = r / V, s / V, size / V, t / V, -spread / V
    c = np.abs(c)
    moved = 1.01 * u * (c + 2 * D)  # d, by its two subtractions
    tiny = n * 2.0**-860  # what underflows, and e^-700 of a difference of float32
    error_s = 1.01 * (
        ratio * (np.abs(s) + 10 * u * size) + (5 * u + moved) * (np.abs(s) + size) + moved**2 * (1 + np.abs(s) + size)
    )
    error_r = 1.01 * (ratio * size + u * (c + 2 * size))
    error_t = 1.01 * t * (ratio + 2 * u * (1504 + c))
    w = s + r + t
    W = np.minimum(np.abs(s) + np.abs(r) + t, 1.0)
    kl = np.log1p(w) - r
    radius = (
        1.06 * (error_s + error_t + tiny) / (1 + w)
        + 1.1 * W * (error_r + 3 * u)
        + 5 * u * (np.abs(kl) + 2 * np.abs(r))
        + tiny
    )
    sound = (np.abs(r) <= 0.05) & (w >= -0.05) & (D <= _FAR) & (ratio <= 1e-6) & (moved <= 1e-6)
    sound &= np.isfinite(kl) & np.isfinite(radius) & (error_s + error_r + error_t <= 0.01 * (1 + w))
    entropy = np.log(V) + spread
    entropy -= 1.01 * (exponentials + additions + _LIBRARY * np.log(V) + (ratio + 2 * u) * spread) + tiny
    reverse = np.where(sound & (t == 0), (turned / V + r) / (1 + w) - np.log1p(w), np.nan)
    kl, radius = (np.where(sound, value, np.nan) for value in (kl, radius))
    zero = sound & (same == 1)
    return Enclosure(np.where(zero, 0.0, kl), np.where(zero, 0.0, radius), np.maximum(entropy, 0.0), reverse, zero)


def least_bound(promise: Promise, enclosed: Enclosure, dtype: str) -> Rows:
    """No more than the promise's `bound` and `attainable`: the roundings that no order of additions spares.

    NaN for what has no bound.
    """
    rounding = promise.rounding
    if promise.kind != "kl":
        return np.full(len(enclosed.kl), np.nan)
    storage, compute, result = (format.unit_roundoff for format in rounding.formats(dtype))
    kl = np.maximum(enclosed.kl - enclosed.radius, 0.0)
    entropy = enclosed.entropy
    cross = entropy + kl  # sum p |log q|
    logs = 2 * compute + storage
    # r |L + 1|, D, and the terms, of which sum p |L + 1| >= 1 + KL and sum p |L| >= KL.
    least = (logs if rounding.target == "softmax" else 3 * compute + logs) * (1 + kl)
    least += logs * cross + logs * (rounding.input == "softmax")
    least += (3 * compute + storage) * entropy + storage * cross + (2 * storage + result) * kl
    if rounding.target != "softmax":
        least += logs * entropy
    return np.asarray(least * (1 - 1e-9))


def certain(promise: Promise, enclosed: Enclosure, computed: Rows, result: str, dtype: str) -> NDArray[np.bool_]:
    """Where a path's results keep any bound, and what else is said of them is decided."""
    least = least_bound(promise, enclosed, dtype)
    with np.errstate(invalid="ignore"):
        kept = np.abs(computed - enclosed.kl) + enclosed.radius <= np.where(np.isnan(least), np.inf, least)
        not_zero = enclosed.kl - enclosed.radius > FORMATS[result].smallest_subnormal if result else False
    return np.asarray(kept & np.isfinite(computed) & ((computed != 0) | enclosed.zero | not_zero))
