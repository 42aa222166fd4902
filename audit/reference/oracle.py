"""The readable reference: KL in mpmath, the precision raised until the asked digits stand.

With the target's p and the input's q,

    KL(p || q) = sum over p_i > 0 of p_i (log p_i - log q_i),

and 0 log 0 = 0, 0 * (-inf) = 0, p_i > 0 with q_i = 0 gives +inf.

Every value comes with a radius. Write u = 2^-prec. Every mpmath operation used (+, *, /, exp, log, log1p) returns
its exact result times 1 + d, |d| <= 4u; differences of logits are taken without rounding. Sums of n terms therefore
err by at most 4(n + 8)u times the sum of the magnitudes of their terms (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., section 4.2, with each term's own rounding counted), which gives the radii below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from mpmath import MPContext

from audit.errors import UsageError
from audit.reference.values import Rows

MAX_PRECISION = 10_000


@cache
def _context() -> Any:
    """One context a process: making one is slow, and the global one belongs to the caller."""
    return MPContext()


@dataclass(frozen=True)
class Ball:
    """An exact number lies within `radius` of `value`; radius 0 is a proof. Both are mpf of the local context."""

    value: Any
    radius: Any


class _Side:
    """One distribution: p_i and log p_i of the classes that have mass, with log p_i accurate relative to `size`."""

    def __init__(self, row: Rows, kind: str) -> None:
        self.row, self.kind = row, kind
        self.support = row != (0 if kind == "probs" else -np.inf)

    def logs(self, classes: Any, origin: int) -> tuple[list[Any], Any, Any]:
        """(c_i), L, |L| with log p_i = c_i - L for the listed classes.

        For logits, c_i = x_i - x_origin and L = log sum exp c; the class at the origin is left out of the sum and
        returned by log1p, so that a peaked row keeps its relative accuracy.
        """
        ctx = _context()
        numbers = [ctx.mpf(v) for v in self.row[classes].tolist()]
        if self.kind == "log_probs":
            return numbers, ctx.zero, ctx.zero
        if self.kind == "probs":
            return [ctx.log(v) for v in numbers], ctx.zero, ctx.zero
        top = ctx.mpf(float(self.row[origin]))
        others = self.row[self.support & (np.arange(self.row.size) != origin)].tolist()
        rest = ctx.fsum(ctx.exp(ctx.fsub(v, top, exact=True)) for v in others)
        log_sum = ctx.log1p(rest)
        return [ctx.fsub(v, top, exact=True) for v in numbers], log_sum, log_sum

    def rational(self) -> list[Fraction] | None:
        """The probabilities, where they are plainly rational: given as such, or logits that are all equal."""
        if self.kind == "probs":
            return [Fraction(v) for v in self.row.tolist()]
        finite = self.row[self.support]
        if self.kind == "logits" and (finite == finite[0]).all():
            return [Fraction(int(has_mass), finite.size) for has_mass in self.support]
        return None


def is_zero(input: Rows, target: Rows, input_kind: str, target_kind: str) -> bool:
    """Whether the two rows are equal, decided on the exact numbers; their KL is then exactly 0.

    Logits are equal up to a constant. For two different distributions KL > 0, so False decides as well wherever
    logits stand on both sides.
    """
    q, p = _Side(input, input_kind), _Side(target, target_kind)
    where = np.flatnonzero(p.support)
    if input_kind == target_kind == "logits":
        if not np.array_equal(p.support, q.support):
            return False
        first = Fraction(target[where[0]]) - Fraction(input[where[0]])
        return all(Fraction(target[i]) - Fraction(input[i]) == first for i in where)
    if input_kind == target_kind == "log_probs":
        return bool((input[where] == target[where]).all())
    exact_q, exact_p = q.rational(), p.rational()
    return exact_q is not None and exact_p is not None and all(exact_p[i] == exact_q[i] for i in where)


def row_ball(input: Rows, target: Rows, input_kind: str, target_kind: str, precision: int) -> Ball:
    """KL of one row at `precision` bits, with its radius. Neither zero nor infinity: see `is_zero`, `is_infinite`."""
    ctx = _context()
    q, p = _Side(input, input_kind), _Side(target, target_kind)
    where = np.flatnonzero(p.support)
    with ctx.workprec(precision):
        # The origin of both sides is the target's largest class: its term is then exactly 0 for two logit rows.
        origin = int(np.argmax(target))
        log_p, lse_p, size_p = p.logs(where, origin)
        log_q, lse_q, size_q = q.logs(where, origin)
        if target_kind == "probs":
            weights = [ctx.mpf(v) for v in target[where].tolist()]
        else:
            weights = [ctx.exp(v) for v in log_p]
        shifted = target_kind == "logits"
        exact = input_kind != "probs" and target_kind != "probs"
        mass = 1 + ctx.expm1(lse_p) if shifted else ctx.one
        total = ctx.fsum(w for w in weights) / mass
        size = ctx.zero
        terms = []
        for weight, a, b in zip(weights, log_p, log_q, strict=True):
            # Exact operands are subtracted exactly, so that only the difference is rounded.
            difference = ctx.fsub(a, b, exact=True) if exact else a - b
            terms.append(weight * difference / mass)
            size += weight * (abs(difference) if exact else abs(a) + abs(b)) / mass
        shift = lse_q - lse_p
        value = ctx.fsum(terms) + (shift if shifted else total * shift)
        size += (1 if shifted else total) * (size_p + size_q)
        radius = ctx.ldexp(4 * (2 * len(input) + 32), -precision) * size
        return Ball(value, radius)


def is_infinite(input: Rows, target: Rows, input_kind: str, target_kind: str) -> bool:
    """Whether the target has mass where the input has none."""
    return bool((_Side(target, target_kind).support & ~_Side(input, input_kind).support).any())


def kl_sum(input: Rows, target: Rows, input_kind: str, target_kind: str, digits: int) -> Ball:
    """The sum over rows (each array rows x classes) of KL(target || input), to `digits` significant digits.

    The radius is at most 10^-digits of the value; it is 0 where the sum is exactly 0 or infinite.

    Raises UsageError with the radius reached where MAX_PRECISION bits settle neither the digits nor zero.
    """
    ctx = _context()
    kinds = (input_kind, target_kind)
    pairs = [(x, y) for x, y in zip(input, target, strict=True)]
    if any(is_infinite(x, y, *kinds) for x, y in pairs):
        return Ball(ctx.inf, ctx.zero)
    pairs = [(x, y) for x, y in pairs if not is_zero(x, y, *kinds)]
    precision = math.ceil(digits * math.log2(10)) + 64
    while True:
        balls = [row_ball(x, y, *kinds, precision) for x, y in pairs]
        with ctx.workprec(precision + 32):
            value, radius = ctx.fsum(b.value for b in balls), ctx.fsum(b.radius for b in balls)
            if radius == 0 or radius <= abs(value) * ctx.mpf(10) ** -digits:
                return Ball(value, radius)
        if precision >= MAX_PRECISION:
            size = ctx.nstr(radius, 3)
            raise UsageError(
                f"{digits} digits cannot be settled: at {precision} bits KL is within {size} of {ctx.nstr(value, 3)}, "
                "and exact cancellation to 0 cannot be excluded"
            )
        precision = min(2 * precision, MAX_PRECISION)
