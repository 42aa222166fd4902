"""The readable reference: KL in mpmath, the precision raised until the asked digits stand.

With the target's p and the input's q,

    KL(p || q) = sum over p_i > 0 of p_i (log p_i - log q_i),

and 0 log 0 = 0, 0 * (-inf) = 0, p_i > 0 with q_i = 0 gives +inf. Let o be the target's largest class. For logits
a_i = y_i - y_o, b_i = x_i - x_o and d_i = a_i - b_i, without rounding, and w_i = exp a_i, W = sum of w_i:

    KL = sum w_i d_i / W + log1p E,   E = (sum over d_i != 0 of exp b_i - w_i) / W

since 1 + E is the ratio of the two sums of exponentials. Classes that agree drop out, and in a peaked row every term is
small, so nothing is lost to either: with g = exp(-d_i / 2), KL >= (squared Hellinger distance, of o and i alone)
>= p_i (1 - g)^2 / (1 + g^2), and d_i of binary64 numbers is at least 2^-1074, so cancellation takes no more than about
2 * 1074 + 2 log2 n bits. Two rows of logits are therefore always settled (up to 2,000 digits).
The other kinds fit in with a_i = log p_i, w_i = p_i, W = 1, or b_i = log q_i, as given; E then has the exponentials of
the side that is logits, if any, without the origin's, and log1p E is multiplied by sum w_i where the target is not.

The radius. At a precision of at most MAX_PRECISION bits every operation used (+, -, *, /, exp, log, log1p, fsum)
returns its exact result times 1 + d, |d| <= e = 2^(12 - precision):

- Arithmetic is correctly rounded. `fsum` adds exactly and rounds once, save for terms below 2^(-2 precision) of the
  partial sum; with sum |t_i| in place of its result it keeps the same bound.
- `exp` has 14 guard bits. Its Taylor sums, of K <= 100 truncated steps, lose at most a factor of 2K up to 600 bits.
  Above, `exponential_series` takes the root of cosh^2 - 1 of an argument in (2^(m-1), 2^m] halved r times,
  r = max(0, m + R), R = sqrt(precision)/2, and squares r times: it loses 2r - m bits and carries
  10 + 2 max(r, -m) for them, short of them by at most R/2 - 10 = 15, at m = -R/2. Together 2K 2^(15 - 14) < 2^9.
  (It happens: 32 units at 10,000 bits near |x| = 2^-26.) Integers go through powers of e with enough guard bits.
- `log` and `log1p` have 20 guard bits, besides those that cancel near 1, for Taylor sums with K <= 400, or for the AGM
  with one extra bit in 20. (mpmath's log is wrong just above 1/4 for arguments of more than precision + 20 bits; here
  they are binary64 numbers, or 1 + E, of at most precision + 1 bits in that range.)

So a term errs by at most 4e w_i (|a_i| + |b_i|) (with |d_i| instead where it is exact), their sum by 9e of its
magnitudes, E by 6e of G = sum (exp b_i + w_i) / W, log1p E by that over 1 + E >= 1/n and e |log1p E|, its product with
sum w_i by 3e more, and the value by 11e times `size`, the sum of all magnitudes, to first order; 16e covers the second
order and the rounding of `size` itself.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from mpmath import MPContext
from numpy.typing import NDArray

from audit.base.usage import UsageError
from audit.reference.values import Rows

MAX_PRECISION = 10_000
# A value this much sharper than asked rounds to the asked digits correctly, but for one in 10^9.
GUARD_DIGITS = 10
# Threads share mpmath's cached constants, and the fast engine's arrays.
LOCK = threading.RLock()


class _Own(threading.local):
    def __init__(self) -> None:
        self.context = MPContext()


_OWN = _Own()


def context() -> Any:
    """One context a thread: making one is slow, and the global one belongs to the caller."""
    return _OWN.context


@dataclass(frozen=True)
class Ball:
    """An exact number lies within `radius` of `value`; radius 0 is a proof. Both are mpf of the local context."""

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


def is_infinite(input: Rows, target: Rows, input_kind: str, target_kind: str) -> bool:
    """Whether the target has mass where the input has none."""
    return bool((_support(target, target_kind) & ~_support(input, input_kind)).any())


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


def row_ball(input: Rows, target: Rows, input_kind: str, target_kind: str, precision: int) -> Ball:
    """KL of one row at `precision` bits, 64 to MAX_PRECISION, with its radius; the formula is the module's.

    For rows that are neither `is_zero` nor `is_infinite`.
    """
    ctx = context()
    support = _support(target, target_kind)
    where, beyond = np.flatnonzero(support), np.flatnonzero(_support(input, input_kind) & ~support)
    origin = int(np.argmax(target))
    with ctx.workprec(precision):
        log_p = _log_terms(target, target_kind, where, origin)
        log_q = _log_terms(input, input_kind, where, origin)
        if "probs" in (input_kind, target_kind):
            differences = [a - b for a, b in zip(log_p, log_q, strict=True)]
            magnitudes = [abs(a) + abs(b) for a, b in zip(log_p, log_q, strict=True)]
        else:
            differences = [ctx.fsub(a, b, exact=True) for a, b in zip(log_p, log_q, strict=True)]
            magnitudes = [abs(d) for d in differences]
        weights = [ctx.mpf(v) for v in target[where].tolist()] if target_kind == "probs" else list(map(ctx.exp, log_p))
        total = ctx.fsum(weights)
        mass, total = (total, ctx.one) if target_kind == "logits" else (ctx.one, total)
        agreeing = 0 if input_kind == target_kind == "logits" else None
        moved = [k for k, d in enumerate(differences) if d != agreeing and where[k] != origin]
        gained, lost = [], []
        if input_kind == "logits":
            gained = [ctx.exp(log_q[k]) for k in moved]
            gained += map(ctx.exp, _log_terms(input, input_kind, beyond, origin))
        if target_kind == "logits":
            lost = [weights[k] for k in moved]
        ratio = ctx.fsum(gained + [-w for w in lost]) / mass
        shift = ctx.log1p(ratio)
        value = ctx.fsum(w * d for w, d in zip(weights, differences, strict=True)) / mass + total * shift
        size = ctx.fsum(w * m for w, m in zip(weights, magnitudes, strict=True)) / mass
        size += total * (ctx.fsum(gained + lost) / mass / (1 + ratio) + abs(shift))
        return Ball(value, ctx.ldexp(size, 16 - precision))


def kl_row(input: Rows, target: Rows, input_kind: str, target_kind: str, digits: int) -> Ball:
    """KL of one row that is not `is_infinite`, its radius at most 10^-digits of the value unless MAX_PRECISION bits do
    not reach that, and 0 where KL is exactly 0.
    """
    ctx, kinds = context(), (input_kind, target_kind)
    if is_zero(input, target, *kinds):
        return Ball(ctx.zero, ctx.zero)
    precision = _bits(digits)
    while True:
        ball = row_ball(input, target, *kinds, precision)
        if ball.settles(digits) or precision == MAX_PRECISION:
            return ball
        precision = min(2 * precision, MAX_PRECISION)


def _bits(digits: int) -> int:
    return min(math.ceil(digits * math.log2(10)) + 64, MAX_PRECISION)


def kl_sum(
    input: Rows,
    target: Rows,
    input_kind: str,
    target_kind: str,
    digits: int,
    *,
    divisor: int = 1,
    name: str = "KL",
) -> Ball:
    """The sum over rows (each array rows x classes) of KL(target || input), over `divisor`, to `digits` digits.

    The radius is at most 10^-(digits + GUARD_DIGITS) of the value; it is 0 where the sum is exactly 0 or infinite.

    Raises UsageError, of `name` and with the radius reached, where MAX_PRECISION bits settle neither the digits
    nor zero.
    """
    ctx, kinds = context(), (input_kind, target_kind)
    asked = digits + GUARD_DIGITS
    with LOCK:
        if is_infinite(input, target, *kinds):
            return Ball(ctx.inf, ctx.zero)
        row_digits = asked
        balls = [kl_row(x, y, *kinds, asked) for x, y in zip(input, target, strict=True)]
        while not (total := sum_of_balls(balls, divisor, row_digits)).settles(asked):
            # Rows cancel each other, or cannot be settled by themselves; those that can are asked for more.
            open_rows = [ball.radius != 0 and ball.settles(row_digits) for ball in balls]
            if not any(open_rows):
                raise UsageError(_unsettled(total, digits, name))
            row_digits *= 2
            balls = [
                kl_row(x, y, *kinds, row_digits) if is_open else ball
                for x, y, ball, is_open in zip(input, target, balls, open_rows, strict=True)
            ]
        return total


def sum_of_balls(balls: list[Ball], divisor: int, digits: int) -> Ball:
    """The sum over `divisor` of balls that settle `digits`, as it does too where none is negative.

    Its roundings, of what rows that cancel are too, are in the radius.
    """
    ctx, precision = context(), _bits(digits)
    with LOCK, ctx.workprec(precision):
        value, size = (ctx.fsum((ball.value for ball in balls), absolute=a) / divisor for a in (False, True))
        radius = ctx.fsum(ball.radius for ball in balls) / divisor
        return Ball(value, radius + ctx.ldexp(size, 3 - precision) + ctx.ldexp(radius, 4 - precision))


def _unsettled(ball: Ball, digits: int, name: str) -> str:
    ctx = context()
    value, radius = ctx.nstr(ball.value, 6), ctx.nstr(ball.radius, 3)
    reached = f"{name}: {MAX_PRECISION} bits do not settle {digits} digits; they give {value} with radius {radius}"
    if abs(ball.value) <= ball.radius:
        return f"{reached}; numbers that are not normalised can cancel to exactly 0, which cannot be told from that"
    return f"{reached}; ask for fewer digits"
