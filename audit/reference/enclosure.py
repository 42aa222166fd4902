"""KL in a second way, to check the first: Arb's balls where python-flint is installed, else mpmath at more digits."""

from __future__ import annotations

from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import numpy as np

from audit.reference.oracle import context, kl_row
from audit.reference.values import Rows

_WIDE = Context(prec=120, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
HAS_ARB = find_spec("flint") is not None


def agrees(input: Rows, target: Rows, target_kind: str, value: str, digits: int) -> bool:
    """Whether a row's KL (1-D arrays, the input logits) is `value` to its `digits` digits."""
    if Decimal(value) == 0 and target_kind == "logits":
        finite = target > -np.inf
        if not np.array_equal(finite, input > -np.inf):
            return False
        # KL is 0 for distributions that are equal, which logits are that differ by one constant.
        return len({Fraction(y) - Fraction(x) for x, y in zip(input[finite], target[finite], strict=True)}) == 1
    if not Decimal(value).is_finite() or not HAS_ARB:
        ball = kl_row(input, target, "logits", target_kind, digits + 20)
        again = Decimal(str(context().nstr(ball.value, digits + 20)).replace("+", ""))
        return is_rounded(Decimal(value), again, digits)
    for precision in (400, 1_200, 3_600, 10_800, 32_400):
        low, high = _arb(input, target, target_kind, precision)
        if is_rounded(low, high, digits + 6):
            return is_rounded(Decimal(value), low, digits)
    return False


def is_rounded(value: Decimal, exact: Decimal, digits: int) -> bool:
    """Whether `value` is `exact` to `digits` digits: within half a unit of the last, and a little for a tie."""
    if not value.is_finite() or not exact.is_finite():
        return str(value) == str(exact)  # where nan is nan
    unit = Decimal(1).scaleb(exact.adjusted() + 1 - digits, _WIDE)
    return _WIDE.subtract(value, exact).copy_abs() <= _WIDE.multiply(unit, Decimal("0.501"))


def _arb(input: Rows, target: Rows, target_kind: str, precision: int) -> tuple[Decimal, Decimal]:
    """The ends of an enclosure of sum p log p - sum p x + lse(x), each to 90 digits."""
    from flint import arb, ctx

    with ctx.workprec(precision):
        has_mass = target > (0 if target_kind == "probs" else -np.inf)
        y, x = ([arb(v) for v in row[has_mass].tolist()] for row in (target, input))
        log_v = _log_sum_exp([arb(v) for v in input[input > -np.inf].tolist()])
        log_w = _log_sum_exp(y) if target_kind == "logits" else arb(0)
        log_p = [v.log() for v in y] if target_kind == "probs" else [v - log_w for v in y]
        p = y if target_kind == "probs" else [v.exp() for v in log_p]
        value = sum((w * (a - b + log_v) for w, a, b in zip(p, log_p, x, strict=True)), arb(0))
        return Decimal(value.lower().str(90, radius=False)), Decimal(value.upper().str(90, radius=False))


def _log_sum_exp(numbers: list[Any]) -> Any:
    top = max(numbers)
    return sum(((v - top).exp() for v in numbers), 0 * top).log() + top
