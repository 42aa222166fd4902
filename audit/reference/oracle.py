"""The readable reference: KL in mpmath, the precision raised until the asked digits stand.

With the target's p and the input's q,

    KL(p || q) = sum over p_i > 0 of p_i (log p_i - log q_i),

and 0 log 0 = 0, 0 * (-inf) = 0, p_i > 0 with q_i = 0 gives +inf. Let o be the target's largest class.

Logits on both sides. With a_i = y_i - y_o, b_i = x_i - x_o and e_i = b_i - a_i, none of them rounded, w_i = exp a_i,
W = sum of w_i, c about the mean sum w_i e_i / W, and d_i = e_i - c,

    KL = log1p(s + r) - r = s - (z - log1p z),   r = sum w_i d_i / W,   s = sum w_i phi(d_i) / W,   z = s + r,

since sum w_i exp d_i / W = 1 + z, with phi(d) = exp(d) - 1 - d >= 0 and w_i exp d_i = exp(b_i - c) also where the
target has no mass. No term of s cancels another, and z - log1p z is about z^2 / 2. c is rounded, but e_o = 0 and
w_o / W >= 1 / n, so that |c| is at most n times the mean D of |d_i|, and r is far below that: nothing is lost, however
close the rows are. phi and z - log1p z are computed with as many more bits as cancel in them, or as series.

Other kinds. With a_i = log p_i and b_i = log q_i as given, logits up to the constant that makes the origin's 0, w_i =
exp a_i or p_i, and W = 1 where the target is no logits,

    KL = sum w_i (a_i - b_i) / W + sum w_i * log1p E,

where 1 + E is the sum of exp b_i for an input, or of w_i in the denominator for a target, of logits. These are not
normalised, and may cancel.

The radius is proven in docs/reference-engine.md: at a precision of at most MAX_PRECISION bits, and 90 more, every
operation used returns its exact result times 1 + d, |d| <= e = 2^(12 - precision), and the value errs by at most 16e
times the sum of all magnitudes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from mpmath import MPContext
from numpy.typing import NDArray

from audit.reference.values import Rows

MAX_PRECISION = 10_000
# A value this much sharper than asked rounds to the asked digits correctly, but for one in 10^9.
GUARD_DIGITS = 10
# Threads share mpmath's cached constants, and the fast engine's arrays.
LOCK = threading.RLock()
_OWN = threading.local()


def context() -> Any:
    """One context a thread: making one is slow, and the global one belongs to the caller."""
    if not hasattr(_OWN, "context"):
        _OWN.context = MPContext()
    return _OWN.context


class Ball(NamedTuple):
    """An exact number lies within `radius` of `value`; radius 0 is a proof. Both are mpf or fractions."""

    value: Any
    radius: Any

    def settles(self, digits: int) -> bool:
        """Whether the radius is at most 10^-digits of the value."""
        return bool(self.radius <= abs(self.value) * context().mpf(10) ** -digits)


def _support(row: Rows, kind: str) -> NDArray[np.bool_]:
    return np.not_equal(row, 0 if kind == "probs" else -np.inf)


def _rational(row: Rows, kind: str) -> list[Fraction] | None:
    """The probabilities, where they are plainly rational: given as such, or logits that are all equal."""
    if kind == "probs":
        return [Fraction(v) for v in row.tolist()]
    support = _support(row, kind)
    finite = row[support]
    if kind == "logits" and (finite == finite[0]).all():
        return [Fraction(int(has_mass), finite.size) for has_mass in support]
    return None


def is_zero(input: Rows, target: Rows, input_kind: str, target_kind: str) -> bool:
    """Whether KL is 0 because the rows are equal wherever the target has mass, decided on the exact numbers.

    Logits are equal up to a constant, and True only if they are so everywhere. For two different distributions
    KL > 0, so False decides as well wherever logits stand on both sides.
    """
    support = _support(target, target_kind)
    where = np.flatnonzero(support)
    if not where.size or (input_kind == target_kind and np.array_equal(input, target)):
        return True
    if input_kind == target_kind == "logits":
        if not np.array_equal(support, _support(input, input_kind)):
            return False
        first = Fraction(target[where[0]]) - Fraction(input[where[0]])
        return all(Fraction(target[i]) - Fraction(input[i]) == first for i in where)
    if input_kind == target_kind:
        return np.array_equal(input[where], target[where])
    q, p = _rational(input, input_kind), _rational(target, target_kind)
    return q is not None and p is not None and all(p[i] == q[i] for i in where)


def _log_terms(row: Rows, kind: str, classes: Any, origin: int) -> list[Any]:
    """log p_i of the listed classes, for logits up to the constant that makes the origin's 0."""
    ctx = context()
    numbers = [ctx.mpf(v) for v in row[classes].tolist()]
    if kind == "log_probs":
        return numbers
    if kind == "probs":
        return [ctx.log(v) for v in numbers]
    top = ctx.mpf(float(row[origin]))
    return [ctx.fsub(v, top, exact=True) for v in numbers]


def _exp(x: Any) -> Any:
    """exp(x), a whole x above 2^20 reduced here: above 600 bits mpmath takes powers of e, for 40 ms at 1e300."""
    ctx = context()
    magnitude = ctx.mag(x)
    if magnitude <= 20 or not ctx.isint(x):
        return ctx.exp(x)
    with ctx.workprec(ctx.prec + int(magnitude) + 20):
        n = int(ctx.nint(x / ctx.ln2))
        rest = x - n * ctx.ln2
    return ctx.ldexp(ctx.exp(rest), n)


def row_ball(input: Rows, target: Rows, input_kind: str, target_kind: str, precision: int) -> Ball:
    """KL of one row at `precision` bits, 64 to MAX_PRECISION, with its radius; the formulas are the module's.

    For rows whose KL is neither infinite nor `is_zero`.
    """
    with context().workprec(precision):
        if input_kind == target_kind == "logits":
            return _of_logits(input, target, precision)
        return _of_masses(input, target, input_kind, target_kind, precision)


def _of_logits(input: Rows, target: Rows, precision: int) -> Ball:
    ctx = context()
    where, beyond = np.flatnonzero(target > -np.inf), np.flatnonzero((target == -np.inf) & (input > -np.inf))
    origin = int(np.argmax(target))
    a, b = (_log_terms(row, "logits", where, origin) for row in (target, input))
    weights = list(map(_exp, a))
    e = [ctx.fsub(v, u, exact=True) for u, v in zip(a, b, strict=True)]
    mass = ctx.fsum(weights)
    centre = ctx.fsum(w * v for w, v in zip(weights, e, strict=True)) / mass
    if ctx.mag(centre) < -4_000:  # far below every difference that is not 0: differences with it would be too long
        centre = ctx.zero
    terms, moments = [], []
    for w, v, difference in zip(weights, b, e, strict=True):
        d = +ctx.fsub(difference, centre, exact=True)
        moments.append(w * d)
        terms.append(w * phi(d, precision) if abs(d) < 1 else _exp(ctx.fsub(v, centre, exact=True)) - w - w * d)
    for v in _log_terms(input, "logits", beyond, origin):
        terms.append(_exp(ctx.fsub(v, centre, exact=True)))
    s, r, deviation = (ctx.fsum(t, absolute=a) / mass for t, a in ((terms, False), (moments, False), (moments, True)))
    z = s + r
    if z > 0.5:
        log = ctx.log1p(z)
        value, size = log - r, s / (1 + z) + deviation + log
    else:
        value, size = s - _less_log1p(z, precision), s + abs(z / (1 + z)) * (s + deviation)
    return Ball(value, ctx.ldexp(size, 16 - precision))


def phi(d: Any, precision: int) -> Any:
    """exp(d) - 1 - d for |d| < 1."""
    return _second_order(d, precision, context().exp, lambda k: math.factorial(k)) if d else d


def _less_log1p(z: Any, precision: int) -> Any:
    """z - log(1 + z) for -1 < z <= 1/2."""
    ctx = context()
    return z and -_second_order(z, precision, lambda v: 1 + ctx.log1p(v), lambda k: k if k % 2 else -k)


def _second_order(d: Any, precision: int, function: Callable[[Any], Any], divisor: Callable[[int], int]) -> Any:
    """function(d) - 1 - d, of a function that is 1 + d + sum over k > 1 of d^k / divisor(k)."""
    ctx = context()
    small = max(-ctx.mag(d), 0)
    if small < 40:
        with ctx.workprec(precision + 2 * small + 8):
            return function(d) - 1 - d
    total = ctx.zero
    for k in range(precision // small + 3, 1, -1):
        total = total * d + ctx.one / divisor(k)
    return total * d * d


def _of_masses(input: Rows, target: Rows, input_kind: str, target_kind: str, precision: int) -> Ball:
    ctx = context()
    support = _support(target, target_kind)
    where, beyond = np.flatnonzero(support), np.flatnonzero(_support(input, input_kind) & ~support)
    origin = int(np.argmax(target))
    log_p = _log_terms(target, target_kind, where, origin)
    log_q = _log_terms(input, input_kind, where, origin)
    weights = [ctx.mpf(v) for v in target[where].tolist()] if target_kind == "probs" else list(map(_exp, log_p))
    total = ctx.fsum(weights)
    mass, total = (total, ctx.one) if target_kind == "logits" else (ctx.one, total)
    others = np.flatnonzero(where != origin)
    gained, lost = [], []
    if input_kind == "logits":
        gained = [_exp(log_q[k]) for k in others]
        gained += map(_exp, _log_terms(input, input_kind, beyond, origin))
    if target_kind == "logits":
        lost = [weights[k] for k in others]
    ratio = ctx.fsum(gained + [-w for w in lost]) / mass
    shift = ctx.log1p(ratio)
    terms = list(zip(weights, log_p, log_q, strict=True))
    value = ctx.fsum(w * (a - b) for w, a, b in terms) / mass + total * shift
    size = ctx.fsum(w * (abs(a) + abs(b)) for w, a, b in terms) / mass
    size += total * (ctx.fsum(gained + lost) / mass / (1 + ratio) + abs(shift))
    return Ball(value, ctx.ldexp(size, 16 - precision))


def kl_row(input: Rows, target: Rows, input_kind: str, target_kind: str, digits: int) -> Ball:
    """KL of one row, its radius at most 10^-digits of the value unless MAX_PRECISION bits do not reach that, and 0
    where KL is exactly 0 or infinite.
    """
    ctx, kinds = context(), (input_kind, target_kind)
    if (_support(target, target_kind) & ~_support(input, input_kind)).any():
        return Ball(ctx.inf, ctx.zero)
    if is_zero(input, target, *kinds):
        return Ball(ctx.zero, ctx.zero)
    precision = bits_of(digits)
    while True:
        ball = row_ball(input, target, *kinds, precision)
        if ball.settles(digits) or precision == MAX_PRECISION:
            return ball
        precision = min(2 * precision, MAX_PRECISION)


def bits_of(digits: int) -> int:
    return min(math.ceil(digits * math.log2(10)) + 64, MAX_PRECISION)
