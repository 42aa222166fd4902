"""A row's exact softmax, and how far a kernel's softmax and log_softmax may be off: docs/bounds.md, in its symbols."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from audit.base.formats import Format
from audit.paths.rounding import Rounding

Rows = NDArray[np.float64]
EXP, LOG = 4.0, 2.0  # roundoffs of a library's exp (2 ulp) and log (1 ulp): CUDA C++ Programming Guide; glibc manual


@dataclass(frozen=True, eq=False)
class Softmax:
    """Shifted logits a <= 0, log p and p, rows x classes; a row: log S, and the share w of S that is not the largest's.

    Of a `kind` other than "logits" these are what was given, and nobody need compute them, whatever they sum to.
    """

    kind: str
    a: Rows
    log_p: Rows
    p: Rows
    log_sum: Rows
    w: Rows

    @classmethod
    def of(cls, values: Rows, kind: str = "logits") -> Softmax:
        if kind != "logits":
            with np.errstate(divide="ignore"):
                log_p, p = (np.log(values), values) if kind == "probs" else (values, np.exp(values))
            return cls(kind, log_p, log_p, p, *np.zeros((2, len(p), 1)))
        with np.errstate(over="ignore", invalid="ignore"):
            a = values - values.max(axis=1, keepdims=True)
        exponentials = np.exp(a)
        exponentials[np.arange(len(a)), a.argmax(axis=1)] = 0.0
        rest = exponentials.sum(axis=1, keepdims=True)
        log_sum = np.log1p(rest)
        log_p = a - log_sum
        return cls(kind, a, log_p, np.exp(log_p), log_sum, rest / (1 + rest))

    @cached_property
    def farthest(self) -> Rows:
        """How far the smallest finite logit is from the largest."""
        return np.asarray(np.abs(np.where(self.a > -np.inf, self.a, 0.0)).max(axis=1, keepdims=True))

    @cached_property
    def means(self) -> tuple[Rows, Rows]:
        """The mean under p of [a < 0] and of |a|."""
        less = self.p * (self.a < 0)
        distances = np.where(less > 0, -self.a, 0.0)
        return less.sum(axis=1, keepdims=True), np.einsum("rc,rc->r", less, distances)[:, None]

    def part(self, classes: slice) -> Softmax:
        return replace(self, a=self.a[:, classes], log_p=self.log_p[:, classes], p=self.p[:, classes])


@dataclass(frozen=True)
class Kernel:
    """What errors depend on but for the order of sums: paths share it, and what is computed from it."""

    storage: Format
    compute: Format
    exp_slope: float

    @classmethod
    def of(cls, rounding: Rounding, dtype: str) -> Kernel:
        storage, compute, _ = rounding.formats(dtype)
        return cls(storage, compute, rounding.exp_slope)

    @property
    def spread(self) -> float:
        """What an error of a logarithm of the sum becomes in log_softmax."""
        u = self.compute.unit_roundoff
        return (1 + self.storage.unit_roundoff) * (1 + u) * (1 + LOG * u)


def gamma(steps: float, u: float) -> float:
    """The relative error of `steps` roundings (Higham, lemma 3.1), which is no less than nothing at all."""
    return steps * u / (1 - steps * u) if steps * u < 0.5 else float(math.expm1(min(2 * steps * u, 700.0)))


def paired_steps(count: int) -> float:
    """How many roundings a term meets where sums are made in pairs.

    Of runs of up to 128, which are added in eight lanes, 15 additions each, and 3 across: as numpy has it.
    """
    return float(min(count, math.ceil(math.log2(max(count, 2))) + 11))


def normaliser_growth(count: int, rounding: Rounding, compute: Format) -> float:
    """gamma(h): what the additions of a sum of exponentials add to its relative error."""
    lanes = 2.0 if compute.precision > 24 else 4.0  # of a register of 128 bits
    if rounding.pairs:
        steps = paired_steps(count)
    elif rounding.cascade:  # what does not fill a register of 512 bits, torch adds one by one
        steps = max(count / lanes + 5, min(count, 16) - 1.0)
    else:
        steps = 4.0 * count  # an online normaliser: exp (2), product and sum at every step
    return gamma(steps, compute.unit_roundoff)


def log_sum_error(s: Softmax, rounding: Rounding, dtype: str) -> Rows:
    """rho': the absolute error of the logarithm of a row's sum of exponentials."""
    (_, compute, _), (less, distance) = rounding.formats(dtype), s.means
    growth = normaliser_growth(s.a.shape[1], rounding, compute)
    exponentials = compute.unit_roundoff * (EXP * less + (1 + rounding.exp_slope) * distance)
    # Sums of positive numbers that begin with the largest, 1, cannot lose more than the rest.
    lost = np.minimum(growth * (1 + exponentials), (s.w + exponentials) * (1 + growth))
    return np.asarray(-np.log1p(-np.minimum(exponentials + lost, 0.9)))


@dataclass(frozen=True, eq=False)
class Rounded:
    """How far a kernel's softmax is off, class by class: in all, given the error rho' of a row's sum, or but for it."""

    exact: Softmax
    kernel: Kernel

    @cached_property
    def log_softmax_but_sum(self) -> Rows:
        s, u, storage = self.exact, self.kernel.compute.unit_roundoff, self.kernel.storage
        own = u + storage.unit_roundoff * (1 + u)  # of |log p| = |a| + log S itself
        before = self.kernel.spread / (1 + LOG * u) * u  # of |a| and, LOG times, of log S
        each = (before * LOG + own) * s.log_sum + storage.smallest_subnormal / 2
        return np.asarray((before + own) * np.abs(s.a) + each)

    @cached_property
    def softmax_but_sum(self) -> tuple[Rows, Rows]:
        s, u, storage = self.exact, self.kernel.compute.unit_roundoff, self.kernel.storage
        exponential = u * (EXP + (1 + self.kernel.exp_slope) * np.abs(s.a))
        x = np.minimum(exponential * (s.a < 0) + (2 * u + storage.unit_roundoff), 1.0)
        tiny = 2.0**self.kernel.compute.minimum + storage.smallest_subnormal / 2
        return x + 0.7183 * x * x, np.minimum(tiny, 2 * s.p)  # e^x - 1 <= x + (e - 2) x^2 up to 1

    def log_softmax(self, rho: Rows) -> Rows:
        """D: the absolute error of log_softmax."""
        return self.log_softmax_but_sum + self.kernel.spread * rho

    def softmax(self, rho: Rows) -> tuple[Rows, Rows]:
        """r: the relative error of softmax, without underflow, and what underflow adds to p r."""
        r, tiny = self.softmax_but_sum
        return np.minimum(np.exp(rho) * r + np.expm1(rho), math.expm1(1.0)), tiny

    def log_of_softmax(self, rho: Rows) -> Rows:
        """The absolute error of log(softmax), where the probability has not been flushed to 0."""
        s, storage = self.exact, self.kernel.storage
        r, _ = self.softmax(rho)
        least = storage.smallest_subnormal
        # Half a subnormal for the exponential, half for the quotient; s.p itself is off by as much as a binary64 one.
        lost = (0.5 if self.kernel.compute.precision > storage.precision else 1.0) * least + 2.0**-1074
        with np.errstate(divide="ignore", over="ignore"):
            # In logarithms, as p may be far below.
            above = np.log1p(r + np.exp(np.minimum(math.log(lost) - s.log_p, 700.0)))
            floor = np.maximum(s.p * (1 - np.minimum(r, 0.9)) - lost, least)
            below = np.maximum(s.log_p - np.log(floor), 0.0)
        error = np.maximum(above, below)
        u = LOG * self.kernel.compute.unit_roundoff + storage.unit_roundoff
        return np.asarray(error + u * (np.abs(s.log_p) + error))

    def logarithms_but_sum(self, way: str, rho: Rows) -> Rows:
        """D of log-probabilities that come about in the `way` a Rounding names; the sum is in that of a stored one."""
        storage, logs = self.kernel.storage.unit_roundoff, np.abs(self.exact.log_p)
        if way == "softmax":
            return self.log_of_softmax(rho)
        if way == "log_softmax":
            return self.log_softmax_but_sum
        if way == "any":
            relative = np.minimum(self.softmax_but_sum[0], 0.9)
            return np.asarray(np.maximum(self.log_softmax_but_sum, -np.log1p(-relative) + storage * logs))
        return np.asarray((LOG * self.kernel.compute.unit_roundoff + storage) * logs * (way == "probs"))

    def sum_in_logarithms(self, way: str, rho: Rows) -> Rows:
        """What the error of a row's sum adds to those, at most."""
        if way not in ("log_softmax", "any"):
            return np.zeros_like(rho)
        if way == "log_softmax":
            return self.kernel.spread * rho
        # -log(2 - e^x) grows by e^x / (2 - e^x); from 0.9 on a probability's relative error is capped.
        u, slope = self.kernel.compute.unit_roundoff, 1 + self.kernel.exp_slope
        x = u * (EXP + slope * self.exact.farthest) + 2 * u + self.kernel.storage.unit_roundoff + rho
        grown = np.exp(np.minimum(x, math.log(1.9)))
        return np.asarray(np.maximum(self.kernel.spread, grown / (2 - grown)) * rho)
