"""How far a sound implementation may be off: derived in docs/bounds.md, in whose symbols this is written.

Everything is an array of rows x classes, in binary64, from the exact numbers; a bound has no cancellation of its own
but L = log p - log q, whose rounding is added to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from audit.base.formats import FORMATS
from audit.base.kinds import divisor
from audit.judge.softmax import (
    EXP,
    Kernel,
    Rounded,
    Rows,
    Softmax,
    gamma,
    log_sum_error,
    paired_steps,
)
from audit.paths.rounding import Promise, Rounding

# A bound of logits near the largest double overflows, as it should.
OVERFLOWS = np.errstate(over="ignore", invalid="ignore")
MOST = 2**14  # numbers in an array of which dozens are at work
_SLACK = 2.0**-48  # of this module's own arithmetic, relative to what it adds up
Both = tuple[Rows, Rows]


@dataclass(frozen=True, eq=False)
class Exact:
    """What a bound is made of, for a problem's rows: the exact softmax of both sides, and L = log p - log q.

    Classes where p = 0, or q = 0, are masked by `there`.
    """

    input: Softmax
    target: Softmax

    @classmethod
    def of(cls, input: Rows, target: Rows, target_kind: str, input_kind: str = "logits") -> Exact:
        return cls(Softmax.of(input, input_kind), Softmax.of(target, target_kind))

    @cached_property
    def there(self) -> NDArray[np.bool_]:
        return (self.target.p > 0) & (self.input.log_p > -np.inf)

    @cached_property
    def L(self) -> Rows:
        log_p, log_q = (np.where(self.there, side.log_p, 0.0) for side in (self.target, self.input))
        return np.asarray(np.where(self.there, log_p - log_q, 0.0))

    @cached_property
    def p(self) -> Rows:
        """The target's probabilities, where there is a term."""
        return np.where(self.there, self.target.p, 0.0)

    @cached_property
    def sizes(self) -> tuple[Rows, Rows, Rows, Rows]:
        """1, |log p|, |log q|, and |L| with what it is off by in binary64."""
        log_p, log_q = (np.abs(np.where(self.there, side.log_p, 0.0)) for side in (self.target, self.input))
        return np.ones_like(log_p), log_p, log_q, np.abs(self.L) + _SLACK * (log_p + log_q)

    @cached_property
    def means(self) -> list[Rows]:
        """The sums of those weighted by p."""
        return [_dot(self.p, size) for size in self.sizes]

    @cached_property
    def kl(self) -> Rows:
        """Each row's divergence, but for infinite terms."""
        return np.asarray((self.p * self.L).sum(axis=1))

    @property
    @OVERFLOWS
    def scale(self) -> Rows:
        """1 + sum p (|log p| + |log q|) a row: what rounding errors of a sound computation are proportional to.

        In binary64, which is ample for a scale; infinite where q = 0 under p > 0.
        """
        p = self.target.p
        terms = p * (np.abs(self.target.log_p) + np.abs(self.input.log_p))
        return np.asarray(1 + np.where(p > 0, terms, 0.0).sum(axis=1))

    def rest(self, dtype: str) -> Rows:
        """Of rows where p > 0 stands over q = 0: the sum of the other terms, or NaN where such a p is no underflow."""
        unmatched = (self.target.p > 0) & (self.input.log_p == -np.inf)
        vanishing = self.target.p <= FORMATS[dtype].smallest_subnormal / 2
        return np.where((unmatched <= vanishing).all(axis=1), self.kl, np.nan)

    def tempered(self, temperature: float) -> Exact:
        """The same of the logits over `temperature`, both sides being logits."""
        return Exact(*(Softmax.of(side.a / temperature) for side in (self.input, self.target)))

    def parts(self) -> Iterator[Exact]:
        """Its classes a few at a time: arrays that stay in a core's cache take half as long."""
        rows, classes = self.target.p.shape
        step = max(MOST // rows, MOST // 8)
        for some in (slice(start, start + step) for start in range(0, classes, step)):
            yield Exact(self.input.part(some), self.target.part(some))


@dataclass(frozen=True)
class Moments:
    """All that a row's bound needs of its classes, whatever the order of its sums: row by row, a few numbers.

    `p` and `error` are sums weighted by p, and by the error of p without that of its normaliser, of (in this order) 1,
    |log p|, |log q|, |L|, the slope, the errors of log q and of log p without their normalisers', and error / p.
    `masses`: of exp(log q + its error)(1 + its error), of q times its relative error, and of q.
    """

    p: Rows
    error: Rows
    masses: Rows
    count: Rows
    highest: Rows

    def joined(self, other: Moments) -> Moments:
        return Moments(
            self.p + other.p,
            self.error + other.error,
            self.masses + other.masses,
            self.count + other.count,
            np.maximum(self.highest, other.highest),
        )


def _form(rounding: Rounding) -> Rounding:
    """What moments depend on: of roundings that differ in other things they are the same."""
    plain = replace(rounding, separate=False, result="", temperature=1.0)
    return plain if rounding.input == "softmax" else replace(plain, cascade=False, pairs=False)


def _moments(exact: Exact, roundings: Sequence[Rounding], dtype: str) -> dict[Rounding, Moments]:
    """The moments of these roundings, by form, part by part, so that what they share is at hand."""
    found: dict[Rounding, list[Moments]] = {_form(rounding): [] for rounding in roundings}
    kernels = {form: Kernel.of(form, dtype) for form in found}
    sums = {form: log_sum_error(exact.input, form, dtype) for form in found}
    for part in exact.parts():
        rounded = cache(Rounded)
        for form, moments in found.items():
            input, target = (rounded(side, kernels[form]) for side in (part.input, part.target))
            moments.append(_moments_of(part, form, input, target, sums[form]))
    return {form: reduce(Moments.joined, parts) for form, parts in found.items()}


def _moments_of(exact: Exact, rounding: Rounding, input: Rounded, target: Rounded, rho: Rows) -> Moments:
    kernel, there, everywhere = target.kernel, exact.there, exact.there.all()
    us, uc = kernel.storage.unit_roundoff, kernel.compute.unit_roundoff

    def masked(values: Rows) -> Rows:
        return values if everywhere else np.where(there, values, 0.0)

    p, D = exact.p, masked(input.logarithms_but_sum(rounding.input, rho))
    _, log_p, log_q, L = exact.sizes
    slope, Dp = L + 1, np.zeros_like(p)
    if exact.target.kind != "logits":
        # Given log-probabilities have their exponentials rounded; given probabilities are what they are.
        logarithmic = exact.target.kind == "log_probs"
        r = ((EXP + rounding.exp_slope * log_p) * uc + us) * logarithmic
        tiny = np.full_like(p, kernel.storage.smallest_subnormal * logarithmic)
    else:
        r, tiny = target.softmax_but_sum
        if rounding.target == "softmax":
            slope = np.abs(exact.L + 1) + _SLACK * (log_p + log_q)
        else:
            Dp = masked(target.log_softmax_but_sum)
            other = np.expm1(np.minimum(Dp, 1.0)) + ((EXP + 1) * uc + us)
            r = other if rounding.target == "log_softmax" else np.maximum(r, other)
    # With nothing at classes that are too small to be told from 0.
    error = masked(p * r + tiny)
    values = (slope, D, Dp, error / np.where(p > 0, p, 1.0))
    masses = np.zeros((3, len(p)))
    if rounding.masses:
        q = masked(exact.input.p)
        risen = masked(np.exp(np.minimum(exact.input.log_p + D, 0.0)) * (1 + D))
        masses = np.array([risen.sum(axis=1), _dot(q, np.expm1(np.minimum(D, 1.0))), q.sum(axis=1)])
    return Moments(
        p=np.array([*exact.means, *(_dot(p, value) for value in values)]),
        error=np.array([_dot(error, value) for value in (*exact.sizes, *values)]),
        masses=masses,
        count=there.sum(axis=1, dtype=np.float64),
        highest=masked(L + D + Dp + log_p + log_q).max(axis=1) if rounding.exp_slope else np.zeros(len(p)),
    )


def _dot(weight: Rows, value: Rows) -> Rows:
    return np.asarray(np.einsum("rc,rc->r", weight, value))


def _errors(exact: Exact, rounding: Rounding, dtype: str, moments: Moments) -> tuple[Rows, Rows]:
    """A row's errors but those of its sum, and the sum of the magnitudes that those are proportional to.

    docs/bounds.md's sums over classes, multiplied out: with p^ - p at most e error + m p, what an order of the sums
    changes is a few factors of moments that are computed once.
    """
    kernel = Kernel.of(rounding, dtype)
    storage, compute = kernel.storage, kernel.compute
    us, uc = storage.unit_roundoff, compute.unit_roundoff
    rho = log_sum_error(exact.input, rounding, dtype)
    shift = Rounded(exact.input, kernel).sum_in_logarithms(rounding.input, rho)[:, 0]
    shift_p = np.zeros_like(shift)
    if exact.target.kind == "logits":
        spread = 1.0 if rounding.target == "softmax" else kernel.spread
        shift_p = spread * log_sum_error(exact.target, rounding, dtype)[:, 0]
    e, m = np.exp(shift_p), np.expm1(shift_p)
    shift_p = shift_p * (rounding.target != "softmax")  # whose logarithms are taken of what was rounded
    moved = e * moments.error + m * moments.p
    one, log_p, log_q, L, _, D, Dp, _ = moments.p + moved
    # (p^ - p)^2 / p, and what twice the relative error of p^ moves its logarithm by.
    squares = e * e * moments.error[7] + 2 * e * m * moments.error[0] + m * m * moments.p[0]
    log_p = log_p + 2 * (moved[0] + squares)
    moves = D + Dp + (shift + shift_p) * one
    log_q, difference = log_q + D + shift * one, L + moves + 2 * (moved[0] + squares)
    # torch's xlogy for halves, in kl_div of a softmax, rounds the logarithm to a half and then the product.
    twice = rounding.target == "softmax" and storage.precision < compute.precision
    terms = (3 * uc + (2 if twice else 1) * us) * log_p + us * log_q + 2 * us * difference
    perturbed = moved[4] + squares + moves
    size = log_p + log_q if rounding.separate else difference
    if rounding.masses:
        risen, relative, whole = moments.masses
        masses = one + np.exp(shift) * (1 + shift) * risen
        perturbed = perturbed + moved[0] + np.exp(shift) * relative + np.expm1(shift) * whole
        terms, size = terms + 3 * us * masses, size + masses
    terms = terms + 3 * storage.smallest_subnormal * moments.count
    errors = perturbed + terms
    if rounding.exp_slope:
        # A kernel that may count in bits overflows where numbers larger by log2(e) do.
        highest = (moments.highest + shift + shift_p + 2) * math.log2(math.e)
        errors = np.where(highest >= compute.overflow_threshold, np.inf, errors)
    return errors, size + terms


def _sum_growth(count: int, rounding: Rounding, u: float) -> float:
    """gamma(m): what a term of the sum over classes, or over all elements, is off by."""
    if rounding.pairs:
        return gamma(paired_steps(count), u)
    # torch's cascade has four levels.
    cascade = 4.0 * 2.0 ** max(4, math.ceil(math.log2(max(count, 2)) / 4)) + 8
    return gamma(cascade if rounding.cascade else float(count), u)


def _kl_bound(exact: Exact, promise: Promise, dtype: str, errors: Rows, size: Rows) -> Rows:
    """The largest |computed - KL| of a sound implementation, in nats: one a row, or one in all for a reduction."""
    reduction, rounding = promise.reduction, promise.rounding
    storage, compute, result = rounding.formats(dtype)
    rows, classes = exact.L.shape
    growth = _sum_growth(classes if reduction == "none" else rows * classes, rounding, compute.unit_roundoff)
    if rounding.separate and compute is not storage:
        growth += storage.unit_roundoff * (1 + growth)  # each sum is stored before they are subtracted
    row, value, moved = errors + growth * size, np.abs(exact.kl), np.zeros_like(size)
    if rounding.temperature != 1:  # a quotient may be subnormal
        moved = 4 * storage.smallest_subnormal * (exact.target.p * (1 + np.abs(exact.L))).sum(axis=1)
    rounded = result.unit_roundoff
    if reduction != "none":
        row, value, moved = (np.array([of_rows.sum()]) for of_rows in (row, value, moved))
        rounded *= 2
    total, divided = (row + rounded * (value + row)) * (1 + _SLACK * classes), divisor(reduction, rows, classes)
    return np.asarray(rounding.temperature**2 * (total / divided + result.smallest_subnormal + moved / divided))


def _difference_bound(exact: Exact, rounding: Rounding, dtype: str) -> Rows:
    """The largest |sum of log(softmax(input)) - log_softmax(input)|, a row."""
    storage, compute, result = rounding.formats(dtype)
    rounded, rho = Rounded(exact.input, Kernel.of(rounding, dtype)), log_sum_error(exact.input, rounding, dtype)
    error = rounded.log_of_softmax(rho) + rounded.log_softmax(rho)
    each = np.where(exact.input.log_p > -np.inf, error * (1 + storage.unit_roundoff), 0.0)
    total = each.sum(axis=1) * (1 + _sum_growth(each.shape[1], rounding, compute.unit_roundoff))
    return np.asarray(total * (1 + result.unit_roundoff) + result.smallest_subnormal)


def paired(rounding: Rounding) -> Rounding:
    """The same formats and roundings, with sums that are made in pairs."""
    return replace(rounding, pairs=True, cascade=True)


@OVERFLOWS
def bounds(promises: Sequence[Promise], exact: Exact, dtype: str) -> dict[Promise, Both]:
    """Of each promise the `bound` of results, and what is `attainable` where sums are made in pairs, never above it.

    One a row, or one in all for a reduction; NaN for what means to compute neither KL nor 0.
    """
    found = {}
    for degree in {promise.rounding.temperature for promise in promises}:
        numbers = exact if degree == 1 else exact.tempered(degree)
        some = [promise for promise in promises if promise.rounding.temperature == degree]
        of_kl = [promise.rounding for promise in some if promise.kind == "kl" or degree != 1]
        ways = {rounding for plain in of_kl for rounding in (plain, paired(plain))}
        moments = _moments(numbers, list(ways), dtype)
        errors = {way: _errors(numbers, way, dtype, moments[_form(way)]) for way in ways}
        for promise in some:
            both = (promise, promise._replace(rounding=paired(promise.rounding)))
            if promise.kind == "kl" or degree != 1:
                own, in_pairs = (_kl_bound(numbers, p, dtype, *errors[p.rounding]) for p in both)
            elif promise.kind == "identity":
                own, in_pairs = (_difference_bound(numbers, p.rounding, dtype) for p in both)
            else:
                own = in_pairs = np.full(len(numbers.L) if promise.reduction == "none" else 1, np.nan)
            found[promise] = own, np.minimum(own, in_pairs)
    return found
