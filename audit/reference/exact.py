"""`exact_kl`: the public reference, and its values as text for the tables."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import mpmath

from audit.base.usage import UsageError
from audit.reference import engine
from audit.reference.oracle import GUARD_DIGITS, Ball, kl_sum, sum_of_balls
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
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise UsageError(f"reduction: {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 1:
        raise UsageError(f"digits: expected a whole number, 1 or more, got {digits!r}")
    if digits > MOST_DIGITS:
        raise UsageError(f"digits: at most {MOST_DIGITS:,} can be asked for")
    x, shape = as_rows(input, "input")
    y, target_shape = as_rows(target, "target")
    if shape != target_shape:
        raise UsageError(f"input has shape {shape} and target {target_shape}; they must agree")
    check_kind(x, input_kind, "input")
    check_kind(y, target_kind, "target")
    each = reduction == "none" and len(shape) > 1
    divisor = {"none": 1, "sum": 1, "mean": x.size, "batchmean": shape[0]}[reduction]
    if not each and not _fast(x, input_kind, target_kind):
        return _public(kl_sum(x, y, input_kind, target_kind, digits, divisor=divisor))
    balls = [ball for ball, _ in _row_balls(x, y, input_kind, target_kind, digits)]
    return [_public(ball) for ball in balls] if each else _public(sum_of_balls(balls, divisor, digits + GUARD_DIGITS))


def _fast(input: Rows, input_kind: str, target_kind: str) -> bool:
    """Whether the rows are long ones of logits, which the fast engine takes."""
    return input_kind == target_kind == "logits" and input.shape[1] >= engine.SMALLEST


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


def _row_balls(input: Rows, target: Rows, input_kind: str, target_kind: str, digits: int) -> Iterator[tuple[Ball, str]]:
    """A ball and its engine for each row. Long rows of logits go to the fast one; what it declines, and all else, to
    the oracle."""
    fast = _fast(input, input_kind, target_kind)
    for row in range(len(input)):
        ball = engine.kl_row(input[row], target[row], digits + GUARD_DIGITS) if fast else None
        if ball is not None:
            yield ball, "limbs"
        else:
            name = f"row {row}: KL" if len(input) > 1 else "KL"
            yield kl_sum(input[[row]], target[[row]], input_kind, target_kind, digits, name=name), "oracle"


def _text(ball: Ball, digits: int) -> str:
    if mpmath.isinf(ball.value):
        return "inf"
    return "0" if ball.value == 0 else str(mpmath.nstr(_public(ball), digits))


def _public(ball: Ball) -> Any:
    """The value as an mpf of mpmath's own global context, every bit kept (one of a local context does not pickle)."""
    return mpmath.mp.make_mpf(ball.value._mpf_)
