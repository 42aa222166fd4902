"""How far a sound implementation may be off: derived in docs/bounds.md, in whose symbols this is written.

Everything is an array of rows x classes, in binary64, from the exact numbers; a bound has no cancellation of its own
but L = log p - log q, whose rounding is added to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from audit.base.formats import Format
from audit.paths.rounding import Promise, Rounding

Rows = NDArray[np.float64]
Error = TypeVar("Error", bound=Callable[..., object])
EXP, LOG = 4.0, 2.0  # roundoffs of a library's exp (2 ulp) and log (1 ulp): CUDA C++ Programming Guide; glibc manual
# A bound of logits near the largest double overflows, as it should.
OVERFLOWS = np.errstate(over="ignore", invalid="ignore")
MOST = 2**14  # numbers in an array of which dozens are at work
_SLACK = 2.0**-48  # of this module's own arithmetic, relative to what it adds up


@dataclass(frozen=True, eq=False)
class Softmax:
    """A row's exact softmax: shifted logits a <= 0, log p, p, and the share w of the sum that is not the largest's.

    Of some classes, `whole` is that of all, whose sum it shares.
    """

    a: Rows
    log_p: Rows
    p: Rows
    log_sum: Rows
    w: Rows
    whole: Softmax | None = None
    errors: dict[object, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, logits: Rows) -> Softmax:
        with np.errstate(over="ignore", invalid="ignore"):
            a = logits - logits.max(axis=1, keepdims=True)
        exponentials = np.exp(a)
        exponentials[np.arange(len(a)), a.argmax(axis=1)] = 0.0
        rest = exponentials.sum(axis=1, keepdims=True)
        log_sum = np.log1p(rest)
        log_p = a - log_sum
        return cls(a, log_p, np.exp(log_p), log_sum, rest / (1 + rest))

    @classmethod
    def given(cls, values: Rows, kind: str) -> Softmax:
        """Probabilities or log-probabilities that nobody need compute, whatever they sum to."""
        with np.errstate(divide="ignore"):
            log_p = np.log(values) if kind == "probs" else values
        p = values if kind == "probs" else np.exp(values)
        return cls(log_p, log_p, p, np.zeros((len(p), 1)), np.zeros((len(p), 1)))

    @cached_property
    def farthest(self) -> Rows:
        """How far the smallest finite logit is from the largest."""
        return np.asarray(np.abs(np.where(self.a > -np.inf, self.a, 0.0)).max(axis=1, keepdims=True))

    @cached_property
    def means(self) -> tuple[Rows, Rows]:
        """The mean under p of [a < 0] and of |a|."""
        less = self.p * (self.a < 0)
        distances = np.where(less > 0, -self.a, 0.0)
        return less.sum(axis=1, keepdims=True), _dot(less, distances)[:, None]

    def part(self, classes: slice) -> Softmax:
        a, log_p, p = (v[:, classes] for v in (self.a, self.log_p, self.p))
        return Softmax(a, log_p, p, self.log_sum, self.w, self)


@dataclass(frozen=True, eq=False)
class Exact:
    """What a bound is made of, for a problem's rows: target p and log p, the input's softmax, L = log p - log q.

    `softmax` is the target's where it is given as logits; `logarithmic`: it is given as log-probabilities. Classes
    where p = 0, or q = 0, are masked by `there`.
    """

    p: Rows
    log_p: Rows
    softmax: Softmax | None
    q: Softmax
    L: Rows
    there: NDArray[np.bool_]
    logarithmic: bool = False
    moments: dict[tuple[Rounding, str], Moments] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, input: Rows, target: Rows, target_kind: str, input_kind: str = "logits") -> Exact:
        q = Softmax.of(input) if input_kind == "logits" else Softmax.given(input, input_kind)
        if target_kind == "logits":
            softmax = Softmax.of(target)
            p, log_p = softmax.p, softmax.log_p
        else:
            softmax = None
            given = Softmax.given(target, target_kind)
            p, log_p = given.p, given.log_p
        there = (p > 0) & (q.log_p > -np.inf)
        L = np.where(there, np.where(there, log_p, 0.0) - np.where(there, q.log_p, 0.0), 0.0)
        return cls(p, log_p, softmax, q, L, there, target_kind == "log_probs")

    @cached_property
    def value(self) -> Rows:
        """The magnitude of each row's divergence."""
        return np.asarray(np.abs((np.where(self.there, self.p, 0.0) * self.L).sum(axis=1)))

    def tempered(self, temperature: float) -> Exact:
        """The same of the logits over `temperature`, both sides being logits."""
        assert self.softmax is not None
        q, softmax = (Softmax.of(side.a / temperature) for side in (self.q, self.softmax))
        L = np.where(self.there, np.where(self.there, softmax.log_p, 0.0) - np.where(self.there, q.log_p, 0.0), 0.0)
        return Exact(softmax.p, softmax.log_p, softmax, q, L, self.there)

    def parts(self) -> Iterator[Exact]:
        """Its classes a few at a time: arrays that stay in a core's cache take half as long."""
        rows, classes = self.p.shape
        step = max(MOST // rows, MOST // 8)
        yield from [self] if classes <= step else (self._part(slice(i, i + step)) for i in range(0, classes, step))

    def _part(self, classes: slice) -> Exact:
        p, log_p, L = (v[:, classes] for v in (self.p, self.log_p, self.L))
        softmax = self.softmax and self.softmax.part(classes)
        return Exact(p, log_p, softmax, self.q.part(classes), L, self.there[:, classes], self.logarithmic)


@dataclass
class Moments:
    """All that a row's bound needs of its classes, whatever the order of its sums: row by row, a few numbers.

    `p` and `error` are sums weighted by p, and by the error of p without that of its normaliser, of (in this order) 1,
    |log p|, |log q|, |L|, the slope, the errors of log q and of log p without their normalisers', and error / p.
    `masses`: of exp(log q + its error)(1 + its error), of q times its relative error, and of q.
    """

    p: Rows
    error: Rows
    masses: Rows
    highest: Rows
    count: Rows

    def add(self, other: Moments) -> None:
        self.p += other.p
        self.error += other.error
        self.masses += other.masses
        self.count += other.count
        np.maximum(self.highest, other.highest, out=self.highest)


@dataclass(frozen=True)
class Kernel:
    """What the errors of softmax and log_softmax depend on; paths share it, and what is computed from it."""

    storage: Format
    compute: Format
    exp_slope: float
    cascade: bool = False
    pairs: bool = False

    @classmethod
    def of(cls, rounding: Rounding, dtype: str) -> Kernel:
        storage, compute, _ = rounding.formats(dtype)
        return cls(storage, compute, rounding.exp_slope, rounding.cascade, rounding.pairs)

    @property
    def orderless(self) -> Kernel:
        """The same for what does not depend on the order of its sums."""
        return Kernel(self.storage, self.compute, self.exp_slope)

    @property
    def spread(self) -> float:
        """What an error of a logarithm of the sum becomes in log_softmax."""
        u = self.compute.unit_roundoff
        return (1 + self.storage.unit_roundoff) * (1 + u) * (1 + LOG * u)


def gamma(steps: float, u: float) -> float:
    """The relative error of `steps` roundings (Higham, lemma 3.1), which is no less than nothing at all."""
    return steps * u / (1 - steps * u) if steps * u < 0.5 else float(math.expm1(min(2 * steps * u, 700.0)))


def _kept(function: Error) -> Error:
    """Computes an error of a softmax once for each kernel; it is kept as long as that is."""

    def once(s: Softmax, *args: object) -> object:
        key = (function, *args)
        if key not in s.errors:
            s.errors[key] = function(s, *args)
        return s.errors[key]

    return cast(Error, once)


def _paired_steps(count: int) -> float:
    """How many roundings a term meets where sums are made in pairs.

    Of runs of up to 128, which are added in eight lanes, 15 additions each, and 3 across: as numpy has it.
    """
    return float(min(count, math.ceil(math.log2(max(count, 2))) + 11))


def steps(count: int, kernel: Kernel) -> float:
    """How many roundings a term of a sum of exponentials meets."""
    if kernel.pairs:
        return _paired_steps(count)
    if not kernel.cascade:
        return 4.0 * count  # an online normaliser: exp (2), product and sum at every step
    lanes = 2.0 if kernel.compute.precision > 24 else 4.0  # of a register of 128 bits
    return max(count / lanes + 5, min(count, 16) - 1.0)  # what does not fill one of 512 bits, torch adds one by one


def _total_steps(count: int, rounding: Rounding) -> float:
    """How many roundings a term of the sum over classes, or over all elements, meets."""
    if rounding.pairs:
        return _paired_steps(count)
    if not rounding.cascade:
        return float(count)
    return 4.0 * 2.0 ** max(4, math.ceil(math.log2(max(count, 2)) / 4)) + 8  # torch's cascade, four levels


@_kept
def sum_error(s: Softmax, kernel: Kernel) -> Rows:
    """rho: the relative error of the sum of exponentials."""
    if s.whole is not None:
        return sum_error(s.whole, kernel)
    exponentials = _exponentials(s, kernel.orderless)
    growth = gamma(steps(s.a.shape[1], kernel), kernel.compute.unit_roundoff)
    # Sums of positive numbers that begin with the largest, 1, cannot lose more than the rest.
    lost = np.minimum(growth * (1 + exponentials), (s.w + exponentials) * (1 + growth))
    return np.asarray(exponentials + lost)


@_kept
def _exponentials(s: Softmax, kernel: Kernel) -> Rows:
    less, distance = s.means
    return np.asarray(kernel.compute.unit_roundoff * (EXP * less + (1 + kernel.exp_slope) * distance))


def log_sum_error(s: Softmax, kernel: Kernel) -> Rows:
    """rho': the absolute error of the sum's logarithm, a row."""
    return np.asarray(-np.log1p(-np.minimum(sum_error(s, kernel), 0.9)))


def log_softmax_error(s: Softmax, kernel: Kernel) -> Rows:
    """D: the absolute error of log_softmax."""
    return _log_softmax_error(s, kernel.orderless) + kernel.spread * log_sum_error(s, kernel)


@_kept
def _log_softmax_error(s: Softmax, kernel: Kernel) -> Rows:
    u, storage = kernel.compute.unit_roundoff, kernel.storage
    own = u + storage.unit_roundoff * (1 + u)  # of |log p| = |a| + log S itself
    before = kernel.spread / (1 + LOG * u) * u  # of |a| and, LOG times, of log S
    each = (before * LOG + own) * s.log_sum + storage.smallest_subnormal / 2
    return np.asarray((before + own) * np.abs(s.a) + each)


def softmax_error(s: Softmax, kernel: Kernel) -> tuple[Rows, Rows]:
    """r: the relative error of softmax, without underflow, and what underflow adds to p r."""
    rho = log_sum_error(s, kernel)
    r, tiny = _softmax_error(s, kernel.orderless)
    return np.minimum(np.exp(rho) * r + np.expm1(rho), math.expm1(1.0)), tiny


@_kept
def _softmax_error(s: Softmax, kernel: Kernel) -> tuple[Rows, Rows]:
    u, storage = kernel.compute.unit_roundoff, kernel.storage
    exponential = u * (EXP + (1 + kernel.exp_slope) * np.abs(s.a))
    x = np.minimum(exponential * (s.a < 0) + (2 * u + storage.unit_roundoff), 1.0)
    tiny = 2.0**kernel.compute.minimum + storage.smallest_subnormal / 2
    return x + 0.7183 * x * x, np.minimum(tiny, 2 * s.p)  # e^x - 1 <= x + (e - 2) x^2 up to 1


@_kept
def log_of_softmax_error(s: Softmax, kernel: Kernel) -> Rows:
    """The absolute error of log(softmax), where the probability has not been flushed to 0."""
    r, _ = softmax_error(s, kernel)
    storage = kernel.storage
    least = storage.smallest_subnormal
    # Half a subnormal for the exponential, half for the quotient; s.p itself is off by as much as a binary64 one.
    lost = (0.5 if kernel.compute.precision > storage.precision else 1.0) * least + 2.0**-1074
    with np.errstate(divide="ignore", over="ignore"):
        # In logarithms, as p may be far below.
        above = np.log1p(r + np.exp(np.minimum(math.log(lost) - s.log_p, 700.0)))
        floor = np.maximum(s.p * (1 - np.minimum(r, 0.9)) - lost, least)
        below = np.maximum(s.log_p - np.log(floor), 0.0)
    error = np.maximum(above, below)
    u = LOG * kernel.compute.unit_roundoff + storage.unit_roundoff
    return np.asarray(error + u * (np.abs(s.log_p) + error))


def input_error(q: Softmax, way: str, kernel: Kernel) -> Rows:
    """D of the input's log-probabilities, which come about in the `way` that a Rounding names."""
    error = _input_error(q, way, kernel if way == "softmax" else kernel.orderless)
    return error + _spread(q, way, kernel) * log_sum_error(q, kernel)


def _spread(q: Softmax, way: str, kernel: Kernel) -> Rows | float:
    """What an error of the logarithm of the input's sum becomes in its log-probabilities, at most."""
    if way in ("log_probs", "probs", "softmax"):
        return 0.0
    if way == "log_softmax":
        return kernel.spread
    # -log(2 - e^x) grows by e^x / (2 - e^x); from 0.9 on a probability's relative error is capped.
    u, slope = kernel.compute.unit_roundoff, 1 + kernel.exp_slope
    x = u * (EXP + slope * q.farthest) + 2 * u + kernel.storage.unit_roundoff + log_sum_error(q, kernel)
    grown = np.exp(np.minimum(x, math.log(1.9)))
    return np.asarray(np.maximum(kernel.spread, grown / (2 - grown)))


@_kept
def _input_error(q: Softmax, way: str, kernel: Kernel) -> Rows:
    """The same without the error of the sum; the logarithm of a stored probability has that in it."""
    if way == "softmax":
        return log_of_softmax_error(q, kernel)
    if way in ("log_probs", "probs"):
        u = LOG * kernel.compute.unit_roundoff + kernel.storage.unit_roundoff
        return np.asarray(u * np.abs(q.log_p) * (way == "probs"))
    plain = _log_softmax_error(q, kernel)
    if way == "log_softmax":
        return plain
    r, _ = _softmax_error(q, kernel)
    stored = kernel.storage.unit_roundoff * np.abs(q.log_p)
    return np.asarray(np.maximum(plain, -np.log1p(-np.minimum(r, 0.9)) + stored))


def _form(rounding: Rounding) -> Rounding:
    """What moments depend on: of roundings that differ in other things they are the same."""
    plain = replace(rounding, separate=False, result="")
    return plain if rounding.input == "softmax" else replace(plain, cascade=False, pairs=False)


@OVERFLOWS
def _add_moments(exact: Exact, roundings: Iterable[Rounding], dtype: str) -> None:
    """Computes `exact.moments` for all these roundings, part by part, so that what they share is at hand."""
    forms = {form for form in map(_form, roundings) if (form, dtype) not in exact.moments}
    for part in exact.parts() if forms else ():
        for form in forms:
            found = _moments(part, form, dtype)
            if (form, dtype) in exact.moments:
                exact.moments[form, dtype].add(found)
            else:
                exact.moments[form, dtype] = found


def _moments(exact: Exact, rounding: Rounding, dtype: str) -> Moments:
    kernel = Kernel.of(rounding, dtype)
    us, uc = kernel.storage.unit_roundoff, kernel.compute.unit_roundoff
    there, everywhere = exact.there, exact.there.all()

    def masked(values: Rows) -> Rows:
        return values if everywhere else np.where(there, values, 0.0)

    p, D = masked(exact.p), masked(_input_error(exact.q, rounding.input, kernel))
    log_p, log_q = np.abs(masked(exact.log_p)), np.abs(masked(exact.q.log_p))
    blurred = _SLACK * (log_p + log_q)
    L = np.abs(exact.L) + blurred
    slope, Dp = L + 1, np.zeros_like(p)
    if exact.softmax is None:
        # Given log-probabilities have their exponentials rounded; given probabilities are what they are.
        r = ((EXP + rounding.exp_slope * log_p) * uc + us) * exact.logarithmic
        tiny = np.full_like(p, kernel.storage.smallest_subnormal * exact.logarithmic)
    else:
        r, tiny = _softmax_error(exact.softmax, kernel.orderless)
        if rounding.target == "softmax":
            slope = np.abs(exact.L + 1) + blurred
        else:
            Dp = masked(_log_softmax_error(exact.softmax, kernel.orderless))
            other = np.expm1(np.minimum(Dp, 1.0)) + ((EXP + 1) * uc + us)
            r = other if rounding.target == "log_softmax" else np.maximum(r, other)
    # With nothing at classes that are too small to be told from 0.
    error = masked(p * r + tiny)
    values = (np.ones_like(p), log_p, log_q, L, slope, D, Dp, error / np.where(p > 0, p, 1.0))
    masses = np.zeros((3, len(p)))
    if rounding.masses:
        q = masked(exact.q.p)
        risen = masked(np.exp(np.minimum(exact.q.log_p + D, 0.0)) * (1 + D))
        masses = np.array([risen.sum(axis=1), _dot(q, np.expm1(np.minimum(D, 1.0))), q.sum(axis=1)])
    return Moments(
        p=np.array([_dot(p, value) for value in values]),
        error=np.array([_dot(error, value) for value in values]),
        masses=masses,
        highest=masked(L + D + Dp + log_p + log_q).max(axis=1) if rounding.exp_slope else np.zeros(len(p)),
        count=there.sum(axis=1, dtype=np.float64),
    )


def _dot(weight: Rows, value: Rows) -> Rows:
    return np.asarray(np.einsum("rc,rc->r", weight, value))


def _errors(exact: Exact, rounding: Rounding, dtype: str) -> tuple[Rows, Rows]:
    """A row's errors but those of its sum, and the sum of the magnitudes that those are proportional to.

    docs/bounds.md's sums over classes, multiplied out: with p^ - p at most e error + m p, what an order of the sums
    changes is a few factors of moments that are computed once.
    """
    kernel, moments = Kernel.of(rounding, dtype), exact.moments[_form(rounding), dtype]
    storage, compute = kernel.storage, kernel.compute
    us, uc = storage.unit_roundoff, compute.unit_roundoff
    shift = (_spread(exact.q, rounding.input, kernel) * log_sum_error(exact.q, kernel))[:, 0]
    shift_p = np.zeros_like(shift)
    if exact.softmax is not None:
        spread = 1.0 if rounding.target == "softmax" else kernel.spread
        shift_p = spread * log_sum_error(exact.softmax, kernel)[:, 0]
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


@OVERFLOWS
def kl_bound(exact: Exact, rounding: Rounding, dtype: str, reduction: str = "none") -> NDArray[np.float64]:
    """The largest |computed - KL| of a sound implementation, in nats: one a row, or one in all for a reduction."""
    if rounding.temperature != 1:
        plain = replace(rounding, temperature=1.0)
        lost = Kernel.of(rounding, dtype).storage.smallest_subnormal  # a quotient may be subnormal
        logits = exact.tempered(rounding.temperature)
        moved = 4 * lost * (logits.p * (1 + np.abs(logits.L))).sum(axis=1)
        return np.asarray(rounding.temperature**2 * (kl_bound(logits, plain, dtype, reduction) + moved))
    kernel = Kernel.of(rounding, dtype)
    result = rounding.formats(dtype)[2]
    rows, classes = exact.p.shape
    _add_moments(exact, [rounding], dtype)
    errors, size = _errors(exact, rounding, dtype)
    count = classes if reduction == "none" else rows * classes
    growth = gamma(_total_steps(count, rounding), kernel.compute.unit_roundoff)
    if rounding.separate and kernel.compute is not kernel.storage:
        growth += kernel.storage.unit_roundoff * (1 + growth)  # each sum is stored before they are subtracted
    row = errors + growth * size
    value = exact.value
    divisor = 1
    if reduction != "none":
        divisor = {"sum": 1, "mean": rows * classes, "batchmean": rows}[reduction]
        row, value = np.array([row.sum()]), np.array([value.sum()])
    rounded = (1 if reduction == "none" else 2) * result.unit_roundoff * (value + row)
    return np.asarray((row + rounded) * (1 + _SLACK * classes) / divisor + result.smallest_subnormal)


@OVERFLOWS
def difference_bound(exact: Exact, rounding: Rounding, dtype: str) -> NDArray[np.float64]:
    """The largest |sum of log(softmax(input)) - log_softmax(input)|, a row."""
    kernel = Kernel.of(rounding, dtype)
    storage, compute, result = rounding.formats(dtype)
    there = exact.q.log_p > -np.inf
    error = log_of_softmax_error(exact.q, kernel) + log_softmax_error(exact.q, kernel)
    each = np.where(there, error * (1 + storage.unit_roundoff), 0.0)
    total = each.sum(axis=1) * (1 + gamma(_total_steps(each.shape[1], rounding), compute.unit_roundoff))
    return np.asarray(total * (1 + result.unit_roundoff) + result.smallest_subnormal)


Both = tuple[NDArray[np.float64], NDArray[np.float64]]


def bounds(promises: Sequence[Promise], exact: Exact, dtype: str) -> dict[Promise, Both]:
    """Of each promise the `bound`, and what is `attainable`."""
    roundings = [p.rounding for p in promises if p.kind == "kl" and p.rounding.temperature == 1]
    _add_moments(exact, [*roundings, *map(paired, roundings)], dtype)
    return {p: (bound(p, exact, dtype), attainable(p, exact, dtype)) for p in promises}


def paired(rounding: Rounding) -> Rounding:
    """The same formats and roundings, with sums that are made in pairs."""
    return replace(rounding, pairs=True, cascade=True)


def attainable(promise: Promise, exact: Exact, dtype: str) -> NDArray[np.float64]:
    """The bound of an implementation whose sums are made in pairs; never above the path's own."""
    own, in_pairs = (bound(p, exact, dtype) for p in (promise, promise._replace(rounding=paired(promise.rounding))))
    return np.minimum(own, in_pairs)


def bound(promise: Promise, exact: Exact, dtype: str) -> NDArray[np.float64]:
    """The bound of a path's results; NaN for what means to compute neither KL nor 0."""
    kind, reduction, rounding, _ = promise
    if kind == "kl" or rounding.temperature != 1:
        return kl_bound(exact, rounding, dtype, reduction)
    if kind == "identity":
        return difference_bound(exact, rounding, dtype)
    return np.full(len(exact.p) if reduction == "none" else 1, np.nan)


def keeps(
    computed: Rows, reference: Rows, error: Rows, bound: Rows, rest: Rows, threshold: Rows, infinite: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether results keep their bounds, of arrays of one shape.

    `error` is |computed - reference|, `infinite` says where the reference is an infinity and no number too large for
    binary64, `rest` is the finite sum that is as good as one (NaN where there is none), and from `threshold` on a
    result overflows.
    """
    with np.errstate(invalid="ignore"):
        overflow = (np.abs(reference) + bound >= threshold) & (np.sign(computed) == np.sign(reference))
        finite = np.where(infinite, np.abs(computed - rest), error) <= bound
    unbounded = np.where(infinite, computed == reference, overflow)
    kept = np.select([np.isnan(computed), np.isinf(computed)], [np.isnan(reference), unbounded], finite)
    return np.asarray(kept, np.bool_)
