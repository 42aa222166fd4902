"""How far a sound implementation may be off: derived in docs/bounds.md, in whose symbols this is written.

Everything is an array of rows x classes, in binary64, from the exact numbers; a bound has no cancellation of its own
but L = log p - log q, whose rounding is added to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from audit.base.formats import FORMATS, Format
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
    terms: dict[tuple[Rounding, str], Rows] = field(default_factory=dict, repr=False)

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


@dataclass(frozen=True)
class Kernel:
    """What the errors of softmax and log_softmax depend on; paths share it, and what is computed from it."""

    storage: Format
    compute: Format
    cascade: bool
    exp_slope: float
    pairs: bool

    @classmethod
    def of(cls, rounding: Rounding, dtype: str) -> Kernel:
        stored = dtype if rounding.storage in ("", "compute") else rounding.storage
        halves = FORMATS[stored].precision < FORMATS["float32"].precision
        compute = FORMATS[rounding.compute or ("float32" if halves else stored)]
        storage = compute if rounding.storage == "compute" else FORMATS[stored]
        return cls(storage, compute, rounding.cascade, rounding.exp_slope, rounding.pairs)

    def result(self, rounding: Rounding, dtype: str) -> Format:
        """The format of what a path returns."""
        return FORMATS[dtype if rounding.result == "logits" else rounding.result or self.storage.name]


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
    u, count = kernel.compute.unit_roundoff, s.a.shape[1]
    exponentials = _weighted(s.p, u * (EXP + (1 + kernel.exp_slope) * np.abs(s.a)), s.a < 0)
    growth = gamma(steps(count, kernel), u)
    # Sums of positive numbers that begin with the largest, 1, cannot lose more than the rest.
    lost = np.minimum(growth * (1 + exponentials), (s.w + exponentials) * (1 + growth))
    return np.asarray(exponentials + lost)


def _weighted(p: Rows, error: Rows, there: NDArray[np.bool_]) -> Rows:
    return np.asarray(np.where(there & (p > 0), p * error, 0.0).sum(axis=1, keepdims=True))


@_kept
def log_softmax_error(s: Softmax, kernel: Kernel) -> Rows:
    """D: the absolute error of log_softmax."""
    u, storage = kernel.compute.unit_roundoff, kernel.storage
    rho = sum_error(s, kernel)
    rho = -np.log1p(-np.minimum(rho, 0.9))
    size = np.abs(s.log_p)
    error = u * np.abs(s.a) + rho + LOG * u * (s.log_sum + rho)
    error = error + u * (size + error)
    return np.asarray(error + storage.unit_roundoff * (size + error) + storage.smallest_subnormal / 2)


@_kept
def softmax_error(s: Softmax, kernel: Kernel) -> tuple[Rows, Rows]:
    """r: the relative error of softmax, without underflow, and what underflow adds to p r."""
    u, storage = kernel.compute.unit_roundoff, kernel.storage
    rho = -np.log1p(-np.minimum(sum_error(s, kernel), 0.9))
    exponential = u * (EXP + (1 + kernel.exp_slope) * np.abs(s.a))
    relative = np.where(s.a < 0, exponential, 0.0) + rho + 2 * u + storage.unit_roundoff
    tiny = 2.0**kernel.compute.minimum + storage.smallest_subnormal / 2
    return np.expm1(np.minimum(relative, 1.0)), np.minimum(tiny, 2 * s.p)


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


@_kept
def input_error(q: Softmax, way: str, kernel: Kernel) -> Rows:
    """D of the input's log-probabilities, which come about in the `way` that a Rounding names."""
    if way == "softmax":
        return log_of_softmax_error(q, kernel)
    if way in ("log_probs", "probs"):
        u = LOG * kernel.compute.unit_roundoff + kernel.storage.unit_roundoff
        return np.asarray(u * np.abs(q.log_p) * (way == "probs"))
    plain = log_softmax_error(q, kernel)
    if way == "log_softmax":
        return plain
    r, _ = softmax_error(q, kernel)
    stored = kernel.storage.unit_roundoff * np.abs(q.log_p)
    return np.asarray(np.maximum(plain, -np.log1p(-np.minimum(r, 0.9)) + stored))


@OVERFLOWS
def _add_terms(exact: Exact, roundings: Iterable[Rounding], dtype: str) -> None:
    """Computes `exact.terms` for all these roundings, part by part, so that what they share is at hand."""
    sums = {r: np.zeros((2, len(exact.p))) for r in roundings if (r, dtype) not in exact.terms}
    for part in exact.parts() if sums else ():
        for rounding in sums:
            sums[rounding] += _terms(part, rounding, dtype)
    exact.terms.update({(rounding, dtype): both for rounding, both in sums.items()})


def _terms(exact: Exact, rounding: Rounding, dtype: str) -> tuple[Rows, Rows]:
    """A row's errors but those of its sum, and the sum of the magnitudes that those are proportional to."""
    kernel = Kernel.of(rounding, dtype)
    storage, compute = kernel.storage, kernel.compute
    us, uc = storage.unit_roundoff, compute.unit_roundoff
    there, everywhere = exact.there, exact.there.all()

    def masked(values: Rows) -> Rows:
        return values if everywhere else np.where(there, values, 0.0)

    p, D = masked(exact.p), masked(input_error(exact.q, rounding.input, kernel))
    log_p, log_q = np.abs(masked(exact.log_p)), np.abs(masked(exact.q.log_p))
    blurred = _SLACK * (log_p + log_q)
    L = np.abs(exact.L) + blurred
    slope: Rows = L + 1
    moves: Rows = D
    if exact.softmax is None:
        # Given log-probabilities have their exponentials rounded; given probabilities are what they are.
        r = ((EXP + rounding.exp_slope * log_p) * uc + us) * exact.logarithmic
        pr = masked(p * r + storage.smallest_subnormal * exact.logarithmic)
    else:
        r, tiny = softmax_error(exact.softmax, kernel)
        if rounding.target == "softmax":
            slope = np.abs(exact.L + 1) + blurred
        else:
            Dp = log_softmax_error(exact.softmax, kernel)
            other = np.expm1(np.minimum(Dp, 1.0)) + ((EXP + 1) * uc + us)
            r = other if rounding.target == "log_softmax" else np.maximum(r, other)
            moves = D + masked(Dp)
        # p r, with nothing at classes that are too small to be told from 0.
        pr = masked(p * r + tiny)
    ratio = np.minimum(pr / np.where(p > 0, p, 1.0), 3.0)
    P = p + pr
    perturbed = pr * (slope + ratio) + P * moves
    # log P differs from log p by at most twice the relative error of P.
    moved = 2 * np.minimum(ratio, 1.0)
    log_P, log_Q, difference = log_p + moved, log_q + D, L + moves + moved
    # torch's xlogy for halves, in kl_div of a softmax, rounds the logarithm to a half and then the product.
    twice = rounding.target == "softmax" and storage.precision < compute.precision
    roundings = 3 * uc + (2 if twice else 1) * us
    terms = P * (roundings * log_P + us * log_Q + 2 * us * difference)
    size = P * (log_P + log_Q) if rounding.separate else P * difference
    if rounding.masses:
        masses = P + np.exp(np.minimum(exact.q.log_p + D, 0.0)) * (1 + D)
        perturbed = perturbed + pr + masked(exact.q.p * np.expm1(np.minimum(D, 1.0)))
        terms, size = terms + 3 * us * masses, size + masses
    terms = terms + 3 * storage.smallest_subnormal
    errors = masked(perturbed + terms).sum(axis=1)
    if rounding.exp_slope:
        # A kernel that may count in bits overflows where numbers larger by log2(e) do.
        highest = masked(difference + log_p + log_q).max(axis=1) * math.log2(math.e)
        errors = np.where(highest >= compute.overflow_threshold, np.inf, errors)
    return errors, masked(size + terms).sum(axis=1)


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
    result = kernel.result(rounding, dtype)
    rows, classes = exact.p.shape
    _add_terms(exact, [rounding], dtype)
    errors, size = exact.terms[rounding, dtype]
    count = classes if reduction == "none" else rows * classes
    growth = gamma(_total_steps(count, rounding), kernel.compute.unit_roundoff)
    if rounding.separate and kernel.compute is not kernel.storage:
        growth += kernel.storage.unit_roundoff * (1 + growth)  # each sum is stored before they are subtracted
    row = errors + growth * size
    value = np.abs((np.where(exact.there, exact.p, 0.0) * exact.L).sum(axis=1))
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
    storage, compute, result = kernel.storage, kernel.compute, kernel.result(rounding, dtype)
    there = exact.q.log_p > -np.inf
    error = log_of_softmax_error(exact.q, kernel) + log_softmax_error(exact.q, kernel)
    each = np.where(there, error * (1 + storage.unit_roundoff), 0.0)
    total = each.sum(axis=1) * (1 + gamma(_total_steps(each.shape[1], rounding), compute.unit_roundoff))
    return np.asarray(total * (1 + result.unit_roundoff) + result.smallest_subnormal)


Both = tuple[NDArray[np.float64], NDArray[np.float64]]


def bounds(promises: Sequence[Promise], exact: Exact, dtype: str) -> dict[Promise, Both]:
    """Of each promise the `bound`, and what is `attainable`."""
    roundings = [p.rounding for p in promises if p.kind == "kl" and p.rounding.temperature == 1]
    _add_terms(exact, [*roundings, *map(paired, roundings)], dtype)
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
