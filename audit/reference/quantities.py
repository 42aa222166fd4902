"""Exact values of what is not KL itself: the formulas that mistakes and estimators compute, row by row.

Each quantity is a plain mpmath formula of a row of input logits x and target logits y. Its value is accepted once
two precisions, one half as high again as the other, agree to ten digits more than asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from audit.base.usage import UsageError
from audit.reference.oracle import GUARD_DIGITS, MAX_PRECISION, context, phi
from audit.reference.softmax import softmax
from audit.reference.values import Rows

Formula = Callable[[list[Any], list[Any]], Any]
Matrix = list[list[Any]]
QUANTITIES: dict[str, Callable[[Matrix, Matrix], list[Any]]] = {}


def row_quantity(formula: Formula) -> Formula:
    """Registers a formula of one row under its function's name."""
    QUANTITIES[formula.__name__] = lambda x, y: [formula(a, b) for a, b in zip(x, y, strict=True)]
    return formula


def case_quantity(formula: Callable[[Matrix, Matrix], list[Any]]) -> Callable[[Matrix, Matrix], list[Any]]:
    """Registers a formula that mixes rows; it gives one value a row."""
    QUANTITIES[formula.__name__] = formula
    return formula


def quantity_references(name: str, input: Rows, target: Rows, digits: int = 60) -> list[str]:
    """The quantity a row, of two rows x classes of logits, as text of `digits` significant digits.

    "nan" where the formula takes the logarithm of a negative number, as torch's does; "0" for what is below
    10^(-2 digits), since equal inputs give noise there and no case comes near it otherwise; but those of tokens, which
    cancel nothing, have their digits wherever they are. Raises UsageError where MAX_PRECISION bits do not settle the
    digits.
    """
    ctx = context()
    precision = math.ceil((digits + GUARD_DIGITS) * math.log2(10)) + 32
    tolerance = ctx.mpf(10) ** -(digits + GUARD_DIGITS)
    previous: list[Any] | None = None
    while precision <= MAX_PRECISION:
        current = evaluate(name, input, target, precision)
        with ctx.workprec(precision):
            if previous is not None and all(
                ctx.isnan(new) or new == old or abs(new - old) <= max(abs(new), tolerance) * tolerance
                for new, old in zip(current, previous, strict=True)
            ):
                return [as_text(name, v, digits) for v in current]
        previous, precision = current, precision * 3 // 2
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


def _log_softmax(logits: list[Any]) -> list[Any]:
    return softmax(logits)[1]


def _softmax(logits: list[Any]) -> list[Any]:
    return softmax(logits)[0]


def _kl_div(input: list[Any], target: list[Any]) -> Any:
    """torch's kl_div: sum of t log t - t input, 0 where t = 0, not a number for a negative target."""
    ctx = context()
    if any(t < 0 for t in target):
        return ctx.nan
    return ctx.fsum(t * (ctx.log(t) - i) for i, t in zip(input, target, strict=True) if t)


@row_quantity
def probabilities_as_input(x: list[Any], y: list[Any]) -> Any:
    return _kl_div(_softmax(x), _softmax(y))


@row_quantity
def logits_as_input(x: list[Any], y: list[Any]) -> Any:
    return _kl_div(x, _softmax(y))


@row_quantity
def logits_as_target(x: list[Any], y: list[Any]) -> Any:
    return _kl_div(_log_softmax(x), y)


@row_quantity
def log_probabilities_as_target(x: list[Any], y: list[Any]) -> Any:
    return _kl_div(_log_softmax(x), _log_softmax(y))


@row_quantity
def probabilities_with_log_target(x: list[Any], y: list[Any]) -> Any:
    ctx = context()
    return ctx.fsum(ctx.exp(p) * (p - l) for p, l in zip(_softmax(y), _log_softmax(x), strict=True))


@row_quantity
def swapped(x: list[Any], y: list[Any]) -> Any:
    return _kl_div(_log_softmax(y), _softmax(x))


@row_quantity
def mean_for_batchmean(x: list[Any], y: list[Any]) -> Any:
    return _kl_div(_log_softmax(x), _softmax(y)) / len(x)


@row_quantity
def double_softmax(x: list[Any], y: list[Any]) -> Any:
    return _kl_div(_log_softmax(_softmax(x)), _softmax(_softmax(y)))


@row_quantity
def half_mass(x: list[Any], y: list[Any]) -> Any:
    return _kl_div(_log_softmax(x), [p / 2 for p in _softmax(y)])


@row_quantity
def epsilon_in_log(x: list[Any], y: list[Any]) -> Any:
    """The habit log(p + 1e-8), on both sides."""
    ctx = context()
    q, p = _softmax(x), _softmax(y)
    return ctx.fsum(a * (ctx.log(a + 1e-8) - ctx.log(b + 1e-8)) for a, b in zip(p, q, strict=True))


@row_quantity
def clamped(x: list[Any], y: list[Any]) -> Any:
    """The habit clamp(min=1e-10), on both sides."""
    q, p = ([max(v, 1e-10) for v in _softmax(z)] for z in (x, y))
    return _kl_div([context().log(v) for v in q], p)


@row_quantity
def threshold_skipped(x: list[Any], y: list[Any]) -> Any:
    """Terms with p < 1e-3 left out."""
    return _kl_div(_log_softmax(x), [p if p >= 1e-3 else 0 for p in _softmax(y)])


@row_quantity
def distillation(x: list[Any], y: list[Any]) -> Any:
    """T^2 KL(softmax(y / T) || softmax(x / T)) at T = 4."""
    return 16 * _kl_div(_log_softmax([v / 4 for v in x]), _softmax([v / 4 for v in y]))


def _log_ratio(x: list[Any], y: list[Any]) -> Any:
    """log q - log p at the first class, the sampled one."""
    return _log_softmax(x)[0] - _log_softmax(y)[0]


@row_quantity
def k1(x: list[Any], y: list[Any]) -> Any:
    return -_log_ratio(x, y)


@row_quantity
def k2(x: list[Any], y: list[Any]) -> Any:
    return _log_ratio(x, y) ** 2 / 2


@row_quantity
def k3(x: list[Any], y: list[Any]) -> Any:
    ratio = _log_ratio(x, y)
    return context().expm1(ratio) - ratio


# Of one token: x and y are its log-probabilities on either side.


def _clamped(value: Any, limit: int) -> Any:
    return min(max(value, -limit), limit)


def _k3(ratio: Any) -> Any:
    ctx = context()
    if abs(ratio) < 1:
        return phi(ratio, ctx.prec)
    return ratio if ratio == ctx.inf else ctx.expm1(ratio) - ratio


@row_quantity
def token_k1(x: list[Any], y: list[Any]) -> Any:
    return y[0] - x[0]


@row_quantity
def token_k2(x: list[Any], y: list[Any]) -> Any:
    return (x[0] - y[0]) ** 2 / 2


@row_quantity
def token_k3(x: list[Any], y: list[Any]) -> Any:
    return _k3(x[0] - y[0])


@row_quantity
def token_k3_verl(x: list[Any], y: list[Any]) -> Any:
    ratio = x[0] - y[0]
    return ratio if context().isnan(ratio) else _clamped(_k3(_clamped(ratio, 20)), 10)


@row_quantity
def token_k3_openrlhf(x: list[Any], y: list[Any]) -> Any:
    ratio = _k3(x[0] - y[0])
    return ratio if context().isnan(ratio) else _clamped(ratio, 10)


@row_quantity
def token_ratio(x: list[Any], y: list[Any]) -> Any:
    return context().exp(x[0] - y[0])


@row_quantity
def token_ratio_clipped(x: list[Any], y: list[Any]) -> Any:
    ctx = context()
    ratio = ctx.exp(x[0] - y[0])
    return ratio if ctx.isnan(ratio) else min(max(ratio, ctx.mpf(4) / 5), ctx.mpf(6) / 5)


def _columns(rows: Matrix, function: Callable[[list[Any]], list[Any]]) -> Matrix:
    """`function` applied down the rows instead of along the classes."""
    return [list(row) for row in zip(*(function(list(c)) for c in zip(*rows, strict=True)), strict=True)]


@case_quantity
def wrong_dim(x: Matrix, y: Matrix) -> list[Any]:
    logs, targets = _columns(x, _log_softmax), _columns(y, _softmax)
    return [_kl_div(a, b) for a, b in zip(logs, targets, strict=True)]


@case_quantity
def different_dims(x: Matrix, y: Matrix) -> list[Any]:
    logs = _columns(x, _log_softmax)
    return [_kl_div(a, _softmax(b)) for a, b in zip(logs, y, strict=True)]


@case_quantity
def maps_over_different_dims(x: Matrix, y: Matrix) -> list[Any]:
    """Rows are channels of 8 x 8 pixels: the input normalised over channels, the target over the last eight."""
    logs = _columns(x, _log_softmax)
    return [
        context().fsum(_kl_div(a[i : i + 8], _softmax(b[i : i + 8])) for i in range(0, len(b), 8))
        for a, b in zip(logs, y, strict=True)
    ]
