"""Exact values of what is not KL itself: the formulas that mistakes and estimators compute, row by row.

Each quantity is a plain mpmath formula of a row of input logits x and target logits y. Its value is accepted once
two precisions, one half as high again as the other, agree to ten digits more than asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from audit.base.usage import UsageError
from audit.reference.oracle import GUARD_DIGITS, MAX_PRECISION, context, phi
from audit.reference.softmax import softmax
from audit.reference.values import Rows

Matrix = list[list[Any]]


def quantity_references(name: str, input: Rows, target: Rows, digits: int = 60) -> list[str]:
    """The quantity a row, of two rows x classes of logits, as text of `digits` significant digits.

    "nan" where the formula takes the logarithm of a negative number, as torch's does; "0" for what is below
    10^(-2 digits), since equal inputs give noise there and no case comes near it otherwise; but those of tokens, which
    cancel nothing, have their digits wherever they are. Raises UsageError where MAX_PRECISION bits do not settle the
    digits.
    """
    precision = math.ceil((digits + GUARD_DIGITS) * math.log2(10)) + 32
    previous: list[str] = []
    while precision <= MAX_PRECISION:
        numbers = evaluate(name, input, target, precision)
        sharper = [as_text(name, v, digits + GUARD_DIGITS) for v in numbers]
        if sharper == previous:
            return [as_text(name, v, digits) for v in numbers]
        previous, precision = sharper, precision * 3 // 2
    raise UsageError(f"{name}: {digits} digits are not settled at {MAX_PRECISION} bits")


def as_text(quantity: str, number: Any, digits: int) -> str:
    ctx = context()
    noise = ctx.zero if quantity.startswith("token_") else ctx.mpf(10) ** (-2 * digits)
    return "0" if abs(number) <= noise else str(ctx.nstr(number, digits))


def evaluate(name: str, input: Rows, target: Rows, precision: int) -> list[Any]:
    """The quantity a row at so many bits."""
    ctx = context()
    with ctx.workprec(precision):
        return QUANTITIES[name](*([[ctx.mpf(v) for v in row] for row in side.tolist()] for side in (input, target)))


def _softmax(logits: list[Any]) -> list[Any]:
    return softmax(logits)[0]


def _log_softmax(logits: list[Any]) -> list[Any]:
    return softmax(logits)[1]


def _kl_div(input: list[Any], target: list[Any]) -> Any:
    """torch's kl_div: sum of t log t - t input, 0 where t = 0, not a number for a negative target."""
    ctx = context()
    if any(t < 0 for t in target):
        return ctx.nan
    return ctx.fsum(t * (ctx.log(t) - i) for i, t in zip(input, target, strict=True) if t)


def _with_log_target(input: list[Any], target: list[Any]) -> Any:
    """torch's kl_div with log_target."""
    return context().fsum(context().exp(t) * (t - i) for i, t in zip(input, target, strict=True))


def _epsilon_in_log(q: list[Any], p: list[Any]) -> Any:
    """The habit log(p + 1e-8), on both sides."""
    ctx = context()
    return ctx.fsum(a * (ctx.log(a + 1e-8) - ctx.log(b + 1e-8)) for a, b in zip(p, q, strict=True))


def _clamped_at_1e10(q: list[Any], p: list[Any]) -> Any:
    """The habit clamp(min=1e-10), on both sides."""
    return _kl_div([context().log(max(v, 1e-10)) for v in q], [max(v, 1e-10) for v in p])


def _k3(ratio: Any) -> Any:
    """exp(ratio) - 1 - ratio."""
    ctx = context()
    if abs(ratio) < 1:
        return phi(ratio, ctx.prec)
    return ratio if ratio == ctx.inf else ctx.expm1(ratio) - ratio


def _clamp(value: Any, low: Any, high: Any) -> Any:
    return value if context().isnan(value) else min(max(value, low), high)


def _clipped(ratio: Any) -> Any:
    return _clamp(context().exp(ratio), context().mpf(4) / 5, context().mpf(6) / 5)


def _columns(function: Callable[[list[Any]], list[Any]], rows: Matrix) -> Matrix:
    """`function` applied down the rows instead of along the classes."""
    return [list(row) for row in zip(*(function(list(c)) for c in zip(*rows, strict=True)), strict=True)]


def _of_maps(input: list[Any], target: list[Any]) -> Any:
    """A row is a channel of 8 x 8 pixels, the target normalised over the last eight."""
    return context().fsum(_kl_div(input[i : i + 8], _softmax(target[i : i + 8])) for i in range(0, len(target), 8))


def _row_by_row(formula: Callable[[list[Any], list[Any]], Any], x: Matrix, y: Matrix) -> list[Any]:
    return [formula(a, b) for a, b in zip(x, y, strict=True)]


# Of the logits of one row.
_ROWS: dict[str, Callable[[list[Any], list[Any]], Any]] = {
    "probabilities_as_input": lambda x, y: _kl_div(_softmax(x), _softmax(y)),
    "logits_as_input": lambda x, y: _kl_div(x, _softmax(y)),
    "logits_as_target": lambda x, y: _kl_div(_log_softmax(x), y),
    "log_probabilities_as_target": lambda x, y: _kl_div(_log_softmax(x), _log_softmax(y)),
    "probabilities_with_log_target": lambda x, y: _with_log_target(_log_softmax(x), _softmax(y)),
    "swapped": lambda x, y: _kl_div(_log_softmax(y), _softmax(x)),
    "mean_for_batchmean": lambda x, y: _kl_div(_log_softmax(x), _softmax(y)) / len(x),
    "double_softmax": lambda x, y: _kl_div(_log_softmax(_softmax(x)), _softmax(_softmax(y))),
    "half_mass": lambda x, y: _kl_div(_log_softmax(x), [p / 2 for p in _softmax(y)]),
    "epsilon_in_log": lambda x, y: _epsilon_in_log(_softmax(x), _softmax(y)),
    "clamped": lambda x, y: _clamped_at_1e10(_softmax(x), _softmax(y)),
    "threshold_skipped": lambda x, y: _kl_div(_log_softmax(x), [p if p >= 1e-3 else 0 for p in _softmax(y)]),
    # T^2 KL(softmax(y / T) || softmax(x / T)) at T = 4.
    "distillation": lambda x, y: 16 * _kl_div(_log_softmax([v / 4 for v in x]), _softmax([v / 4 for v in y])),
    # Estimators: of log q - log p at the first class, the sampled one.
    "k1": lambda x, y: _log_softmax(y)[0] - _log_softmax(x)[0],
    "k2": lambda x, y: (_log_softmax(x)[0] - _log_softmax(y)[0]) ** 2 / 2,
    "k3": lambda x, y: _k3(_log_softmax(x)[0] - _log_softmax(y)[0]),
    # Of the log-probabilities of one token.
    "token_k1": lambda x, y: y[0] - x[0],
    "token_k2": lambda x, y: (x[0] - y[0]) ** 2 / 2,
    "token_k3": lambda x, y: _k3(x[0] - y[0]),
    "token_k3_verl": lambda x, y: _clamp(_k3(_clamp(x[0] - y[0], -20, 20)), -10, 10),
    "token_k3_openrlhf": lambda x, y: _clamp(_k3(x[0] - y[0]), -10, 10),
    "token_ratio": lambda x, y: context().exp(x[0] - y[0]),
    "token_ratio_clipped": lambda x, y: _clipped(x[0] - y[0]),
}
# A value a row of the logits of all rows; three mix them.
QUANTITIES: dict[str, Callable[[Matrix, Matrix], list[Any]]] = {
    **{name: partial(_row_by_row, formula) for name, formula in _ROWS.items()},
    "wrong_dim": lambda x, y: _row_by_row(_kl_div, _columns(_log_softmax, x), _columns(_softmax, y)),
    "different_dims": lambda x, y: _row_by_row(_kl_div, _columns(_log_softmax, x), [_softmax(row) for row in y]),
    "maps_over_different_dims": lambda x, y: _row_by_row(_of_maps, _columns(_log_softmax, x), y),
}
