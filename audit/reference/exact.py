"""`exact_kl`: the public reference, and its values as text for the tables."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import mpmath

from audit.base.usage import UsageError, check_word
from audit.reference import engine, oracle
from audit.reference.oracle import GUARD_DIGITS, LOCK, MAX_PRECISION, Ball, bits_of, context
from audit.reference.values import REDUCTIONS, Rows, as_rows, check_kind

MOST_DIGITS = 100_000  # far more than 10,000 bits settle


def exact_kl(
    input: Any,
    target: Any,
    *,
    input_kind: str = "logits",
    target_kind: str = "logits",
    reduction: str = "none",
    digits: int = 50,
) -> Any:
    """KL(target || input) along the last dimension, to at least `digits` correct significant digits.

    `input` and `target` are tensors, arrays or nested lists of numbers of one shape (..., classes), whose leading
    dimensions are rows, taken with exactly the values of their dtype; each kind is "logits", "log_probs" or "probs"
    (taken as they are, never renormalised). 0 log 0 = 0, 0 * (-inf) = 0, and target mass where the input has none
    gives +inf.

    Returns an mpmath.mpf for one distribution or a reduced value, a flat list of mpf, one a row, for
    `reduction="none"` on two dimensions and more. "mean" divides the sum by the number of elements, "batchmean" by the
    first dimension, as torch does. Equal inputs (logits: up to a constant) give exactly 0. The numbers belong to
    mpmath's global context, with more bits than its precision may have: printing shows that precision's digits,
    `mpmath.nstr(value, digits)` as many as asked, and arithmetic (in mpmath 1.4 unpickling too) rounds to it.

    Raises UsageError, a ValueError, for mismatched shapes, dtypes that are not numbers, NaN, +inf, negative
    probabilities (naming row and column), logits that are -inf throughout a row, and, with the radius reached, where
    10,000 bits settle neither the digits nor zero.
    """
    check_word(reduction, REDUCTIONS, "reduction")
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 1:
        raise UsageError(f"digits: expected a whole number, 1 or more, got {digits!r}")
    if digits > MOST_DIGITS:
        raise UsageError(f"digits: at most {MOST_DIGITS:,} can be asked for")
    x, shape = as_rows(input, "input", input_kind)
    y, target_shape = as_rows(target, "target", target_kind)
    if shape != target_shape:
        raise UsageError(f"input has shape {shape} and target {target_shape}; they must agree")
    check_kind(x, input_kind, "input")
    check_kind(y, target_kind, "target")
    kinds = input_kind, target_kind
    if not len(x) and "mean" in reduction:
        raise UsageError(f"reduction {reduction!r}: there is no row in shape {shape} to take a mean of")
    if not len(x):
        return [] if reduction == "none" else mpmath.mpf(0)
    if reduction == "none" and len(shape) > 1:
        return [_public(ball) for ball, _ in _row_balls(x, y, *kinds, digits)]
    divisor = {"none": 1, "sum": 1, "mean": x.size, "batchmean": shape[0]}[reduction]
    return _public(kl_sum(x, y, *kinds, digits, divisor=divisor)[0])


def kl_sum(
    input: Rows, target: Rows, input_kind: str, target_kind: str, digits: int, *, divisor: int = 1, name: str = "KL"
) -> tuple[Ball, str]:
    """The sum over rows (each array rows x classes) of KL(target || input), over `divisor`, and the last row's engine.

    The radius is at most 10^-(digits + GUARD_DIGITS) of the value; it is 0 where the sum is exactly 0 or infinite.

    Raises UsageError, of `name` and with the radius reached, where MAX_PRECISION bits settle neither the digits
    nor zero.
    """
    ctx, row_digits = context(), digits + GUARD_DIGITS
    with LOCK:
        while True:
            rows = [_row_ball(x, y, input_kind, target_kind, row_digits) for x, y in zip(input, target, strict=True)]
            balls, precision = [ball for ball, _ in rows], bits_of(row_digits)
            with ctx.workprec(precision):
                value, size = (ctx.fsum((ball.value for ball in balls), absolute=a) / divisor for a in (False, True))
                radius = ctx.fsum(ball.radius for ball in balls) / divisor
                # The sum's own roundings, of what rows that cancel are too.
                total = Ball(value, radius + ctx.ldexp(size, 3 - precision) + ctx.ldexp(radius, 4 - precision))
            if value == ctx.inf:
                return Ball(value, ctx.zero), rows[-1][1]
            if total.settles(digits + GUARD_DIGITS):
                return total, rows[-1][1]
            # Rows cancel each other, or cannot be settled by themselves: is there one that can be asked for more?
            if not any(ball.radius and ball.settles(row_digits) for ball in balls):
                break
            row_digits *= 2
    reached = f"they give {ctx.nstr(value, 6)} with radius {ctx.nstr(total.radius, 3)}"
    advice = "ask for fewer digits"
    if abs(value) <= total.radius:
        advice = "numbers that are not normalised can cancel to exactly 0, which cannot be told from that"
    raise UsageError(f"{name}: {MAX_PRECISION} bits do not settle {digits} digits; {reached}; {advice}")


def _row_ball(input: Rows, target: Rows, input_kind: str, target_kind: str, digits: int) -> tuple[Ball, str]:
    """A row's ball and its engine: the fast one for long rows of logits that it does not decline, else the oracle."""
    if input_kind == target_kind == "logits" and len(input) >= engine.SMALLEST:
        ball = engine.kl_row(input, target, digits)
        if ball is not None:
            return ball, "limbs"
    return oracle.kl_row(input, target, input_kind, target_kind, digits), "oracle"


def _row_balls(input: Rows, target: Rows, input_kind: str, target_kind: str, digits: int) -> Iterator[tuple[Ball, str]]:
    """`kl_sum` of each row by itself."""
    for row in range(len(input)):
        name = f"row {row}: KL" if len(input) > 1 else "KL"
        yield kl_sum(input[[row]], target[[row]], input_kind, target_kind, digits, name=name)


class Certified(NamedTuple):
    """A value as text, and the engine that proved it: "limbs" or "oracle"."""

    value: str
    engine: str


def row_references(
    input: Rows, target: Rows, target_kind: str, digits: int = 60, input_kind: str = "logits"
) -> list[str]:
    """KL(target || input) of each row (rows x classes of binary64) as decimal text.

    `digits` significant digits, rounded from a value that is 10 digits sharper; "0" and "inf" where that is exact.
    float, decimal.Decimal and mpmath.mpf read it.

    Raises UsageError as `exact_kl` does, and for a row whose KL is beyond the exponents of decimal.Decimal.
    """
    return [row.value for row in certified_rows(input, target, target_kind, digits, input_kind)]


def certified_rows(
    input: Rows, target: Rows, target_kind: str, digits: int = 60, input_kind: str = "logits"
) -> list[Certified]:
    """`row_references`, each with the engine that computed it."""
    check_kind(input, input_kind, "input")
    check_kind(target, target_kind, "target")
    rows = []
    for row, (ball, name) in enumerate(_row_balls(input, target, input_kind, target_kind, digits)):
        text = _text(ball, digits)
        try:
            Decimal(text)
        except InvalidOperation:
            raise UsageError(f"row {row}: KL is {text[:12]}... with an exponent beyond +-10^18; scale it") from None
        rows.append(Certified(text, name))
    return rows


def _text(ball: Ball, digits: int) -> str:
    if mpmath.isinf(ball.value):
        return "inf"
    return "0" if ball.value == 0 else str(mpmath.nstr(_public(ball), digits))


def _public(ball: Ball) -> Any:
    """The value as an mpf of mpmath's own global context, every bit kept (one of a local context does not pickle)."""
    return mpmath.mp.make_mpf(ball.value._mpf_)
