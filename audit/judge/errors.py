"""The error columns: how far each result is from its reference, rounded once from the exact difference."""

from __future__ import annotations

import math
from decimal import Context, Decimal

import numpy as np
import pandas as pd

from audit.formats import FORMATS, Format

# Wide enough that every sum and difference of a binary64 number and a 50-digit reference is exact.
_EXACT = Context(prec=2_500, Emin=-10_000_000, Emax=10_000_000)
_QUOTIENT = Context(prec=40, Emin=-10_000_000, Emax=10_000_000)
_NAN = float("nan")


def error_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The errors of a table's rows, in a frame with the same index.

    Taken are `computed` (binary64, which holds every format), `result_dtype` (a format's name, empty where nothing
    was computed), `result_class` ("not_computed" where nothing was), `reference` (decimal text, "inf" or "nan"), and
    `scale` (1 + sum p (|log p| + |log q|), divided as the reduction divides). The columns are the contract's:
    `drift` and `abs_error` in the result's unit, `ulp_error` in ulp of `result_dtype` at the reference,
    `correct_bits` = min(precision, -log2 of the relative error).
    """
    keys = table[["computed", "reference", "result_dtype"]]
    unique = keys.drop_duplicates()
    columns = ["drift", "abs_error", "rel_error", "ulp_error", "correct_bits", "false_zero"]
    errors = pd.DataFrame([_errors(*row) for row in unique.itertuples(index=False, name=None)], columns=columns)
    place = pd.MultiIndex.from_frame(unique).get_indexer(pd.MultiIndex.from_frame(keys))
    errors = errors.iloc[place].set_index(table.index)
    computed = table["computed"].to_numpy(np.float64)
    present = table["result_class"].to_numpy() != "not_computed"
    roundoff = (
        table["result_dtype"].map(lambda name: FORMATS[name].unit_roundoff if name else _NAN).to_numpy(np.float64)
    )
    errors["scaled_error"] = errors["abs_error"] / (roundoff * table["scale"].to_numpy(np.float64))
    errors["negative"] = computed < 0
    errors["result_class"] = np.select(
        [~present, np.isnan(computed), computed == np.inf, computed == -np.inf],
        ["not_computed", "not_a_number", "plus_infinity", "minus_infinity"],
        "finite",
    )
    for name in ("negative", "false_zero"):
        errors[name] = errors[name].astype("boolean").mask(~present)
    return errors


def _errors(computed: float, reference: str, dtype: str) -> tuple[float, float, float, float, float, bool]:
    """Drift, absolute, relative and ulp error, correct bits, and whether a 0 is false, of one result."""
    exact = Decimal(reference)
    if not dtype or not math.isfinite(computed) or not exact.is_finite():
        false_zero = bool(dtype) and computed == 0 and not exact.is_nan()
        return _NAN, _NAN, _NAN, _NAN, _NAN, false_zero
    format = FORMATS[dtype]
    # Half the smallest subnormal is a tie, which goes to the even neighbour, 0.
    false_zero = computed == 0 and abs(exact) > _EXACT.multiply(Decimal(format.smallest_subnormal), Decimal("0.5"))
    # 0 - 0 is +0 here: a drift that is exactly 0 has no sign.
    difference = _EXACT.subtract(Decimal(computed + 0.0), exact)
    size = abs(difference)
    ulps = float(_QUOTIENT.divide(size, Decimal(format.ulp(_exponent(exact, format)))))
    if not exact:
        return float(difference), float(size), _NAN, ulps, _NAN, false_zero
    relative = _QUOTIENT.divide(size, abs(exact))
    bits = (
        float(format.precision)
        if not relative
        else min(format.precision, -float(relative.log10(_QUOTIENT)) / math.log10(2) + 0.0)
    )
    return float(difference), float(size), float(relative), ulps, bits, false_zero


def _exponent(exact: Decimal, format: Format) -> int:
    """e with 2^e <= |exact| < 2^(e+1), within the format's range."""
    guess = math.frexp(abs(float(exact)))[1] - 1 if exact else format.minimum
    if not exact or guess < format.minimum or math.isinf(float(exact)):
        return format.minimum if not math.isinf(float(exact)) else format.maximum
    # Rounding to binary64 may have carried a number just below a power of two up to it.
    return guess - 1 if abs(exact) < Decimal(2.0**guess) else guess
