"""`exact_kl`: the public reference."""

from __future__ import annotations

from typing import Any

import mpmath

from audit.errors import UsageError
from audit.reference.oracle import kl_sum
from audit.reference.values import Rows, as_rows, check_kind

REDUCTIONS = ("none", "sum", "mean", "batchmean")


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

    `input` and `target` are tensors, arrays or nested lists of shape (classes,) or (rows, classes), taken with
    exactly the values of their dtype; each kind is "logits", "log_probs" or "probs" (taken as they are, never
    renormalised). 0 log 0 = 0, 0 * (-inf) = 0, and target mass where the input has none gives +inf.

    Returns an mpmath.mpf for one distribution or a reduced value, a list of mpf, one a row, for
    `reduction="none"` on two dimensions. "mean" divides the sum by the number of elements, "batchmean" by the
    first dimension, as torch does. Equal inputs (logits: up to a constant) give exactly 0.

    Raises UsageError, a ValueError, for mismatched shapes, NaN, +inf, negative probabilities or rows without mass
    (naming row and column), and, with the radius reached, where 10,000 bits settle neither the digits nor zero.
    """
    if reduction not in REDUCTIONS:
        raise UsageError(f"reduction: {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    if isinstance(digits, bool) or not isinstance(digits, int) or digits < 1:
        raise UsageError(f"digits: expected a whole number, 1 or more, got {digits!r}")
    x, single = as_rows(input, "input")
    y, single_target = as_rows(target, "target")
    if x.shape != y.shape or single != single_target:
        raise UsageError(f"input has shape {_shape(x, single)} and target {_shape(y, single_target)}; they must agree")
    check_kind(x, input_kind, "input")
    check_kind(y, target_kind, "target")
    kinds = (input_kind, target_kind)
    if reduction == "none" and not single:
        return [_public(kl_sum(x[i : i + 1], y[i : i + 1], *kinds, digits + 1).value) for i in range(len(x))]
    total = kl_sum(x, y, *kinds, digits + 2).value
    divisor = {"none": 1, "sum": 1, "mean": x.size, "batchmean": x.size if single else len(x)}[reduction]
    with total.context.workprec(max(total._mpf_[3], 1) + 4 * digits + 64):
        return _public(total / divisor)


def _shape(rows: Any, single: bool) -> tuple[int, ...]:
    return tuple(rows.shape[1:] if single else rows.shape)


def _public(value: Any) -> Any:
    """The same number as an mpf of mpmath's own global context, every bit kept (a local one does not pickle)."""
    return mpmath.mp.make_mpf(value._mpf_)


def row_references(input: Rows, target: Rows, target_kind: str, digits: int = 60) -> list[str]:
    """KL(target || input) of each row (rows x classes; input logits) as text of `digits` significant digits."""
    check_kind(input, "logits", "input")
    check_kind(target, target_kind, "target")
    pairs = ((input[i : i + 1], target[i : i + 1]) for i in range(len(input)))
    return [_text(kl_sum(x, y, "logits", target_kind, digits + 1).value, digits) for x, y in pairs]


def _text(value: Any, digits: int) -> str:
    if mpmath.isinf(value):
        return "inf"
    return "0" if value == 0 else str(value.context.nstr(value, digits))
