"""The error columns: how far each result is from its reference, rounded once from the exact difference."""

from __future__ import annotations

import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from audit.base.formats import FORMATS, Format

# Exact for every difference of a binary64 number and a 50-digit reference within some 1e-1000 .. 1e1000; beyond that
# one of the two is so small beside the other that cutting it cannot change what the difference rounds to. Nothing is
# trapped: a divergence may lie near 1e-434294482 (logits a billion apart), which is no error.
_WIDE = Context(prec=2_500, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
# Quotients are not exact; 40 digits leave binary64 one rounding in all but a share of 1e-23 of them.
_QUOTIENT = Context(prec=40, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
_LOG10_2 = _QUOTIENT.log10(Decimal(2))
_EXACT = ["drift", "abs_error", "rel_error", "ulp_error", "correct_bits", "false_zero"]


def error_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The errors of a table's rows, in a frame with the same index.

    Taken are `computed` (binary64, which holds every format), `result_dtype` (a format's name, empty where nothing
    was computed), `result_class` ("not_computed" where nothing was), `reference` (decimal text, "inf" or "nan"), and
    `scale` (1 + sum p (|log p| + |log q|), divided as the reduction divides).

    `drift` and `abs_error` are in the result's unit, the drift overflowing to an infinity as any rounding does;
    `ulp_error` is in ulp of `result_dtype` at the reference, `scaled_error` in unit roundoffs of `scale`;
    `correct_bits` = min(precision, -log2(rel_error)) is negative where the error exceeds the reference. A float is
    NaN where it is undefined: where either side is not finite, for `rel_error` and `correct_bits` also at reference
    0, for `scaled_error` also where `scale` is infinite. `negative` and `false_zero` are NA where nothing was computed.
    """
    computed = table["computed"].to_numpy(np.float64)
    triples = list(zip(computed.tolist(), table["reference"], table["result_dtype"], strict=True))
    # Rows share results, above all zeros; the exact arithmetic is done once for each.
    known = {triple: _exact_errors(*triple) for triple in set(triples)}
    errors = pd.DataFrame([known[triple] for triple in triples], table.index, _EXACT)
    errors = errors.astype(dict.fromkeys(_EXACT, "float64") | {"false_zero": "boolean"})

    present = (table["result_class"] != "not_computed").to_numpy(bool)
    roundoff = table["result_dtype"].map({f.name: f.unit_roundoff for f in FORMATS.values()}).to_numpy(np.float64)
    scale = table["scale"].to_numpy(np.float64)
    return errors.assign(
        result_class=np.where(present, result_class(computed), "not_computed"),
        scaled_error=errors["abs_error"] / (roundoff * np.where(np.isinf(scale), np.nan, scale)),
        negative=pd.Series(computed < 0, table.index, dtype="boolean").where(present),
        false_zero=errors["false_zero"].where(present),
    )


def result_class(computed: NDArray[np.float64]) -> NDArray[np.str_]:
    """What each result is: finite, not_a_number, plus_infinity or minus_infinity."""
    special = [np.isnan(computed), computed == np.inf, computed == -np.inf]
    return np.select(special, ["not_a_number", "plus_infinity", "minus_infinity"], "finite")


def within_bound(table: pd.DataFrame) -> pd.Series:
    """Whether each result keeps its bound; NA where it has none or nothing was computed.

    Taken are `computed`, `reference`, `abs_error`, `bound`, `result_dtype`, `result_class`, and `rest`: the finite sum
    that is as good as an infinity, where there is one.
    """
    computed, bound, rest = (table[name].to_numpy(np.float64) for name in ("computed", "bound", "rest"))
    # Decimal text beyond binary64's range is an infinity here, as it is in every result_dtype.
    reference = table["reference"].map(float).to_numpy(np.float64)
    infinite = table["reference"].isin(["inf", "-inf"]).to_numpy(bool)
    threshold = table["result_dtype"].map({f.name: f.overflow_threshold for f in FORMATS.values()})
    with np.errstate(invalid="ignore"):
        overflow = (np.abs(reference) + bound >= threshold) & (np.sign(computed) == np.sign(reference))
        finite = np.where(infinite, np.abs(computed - rest), table["abs_error"]) <= bound
    unbounded = np.where(infinite, computed == reference, overflow)
    kept = np.select([np.isnan(computed), np.isinf(computed)], [np.isnan(reference), unbounded], finite)
    judged = ~np.isnan(bound) & (table["result_class"] != "not_computed").to_numpy(bool)
    return pd.Series(kept, table.index, dtype="boolean").where(judged)


def exact_error(computed: float, reference: str, dtype: str) -> float:
    """|computed - reference|, rounded once; NaN where either is not finite."""
    return _exact_errors(computed, reference, dtype)[1]


def _exact_errors(computed: float, reference: str, dtype: str) -> tuple[float, ...]:
    """Of one result the columns of _EXACT."""
    if dtype == "":
        return *[math.nan] * 5, False
    exact, format = _number(reference), FORMATS[dtype]
    # Half the smallest subnormal is a tie, which goes to the even 0.
    least = _WIDE.divide(Decimal(format.smallest_subnormal), Decimal(2))
    false_zero = computed == 0 and not exact.is_nan() and exact.copy_abs() > least
    if not math.isfinite(computed) or not exact.is_finite():
        return *[math.nan] * 5, false_zero
    # -0.0 + 0.0 is 0.0: the difference of two zeros has no sign.
    difference = _WIDE.subtract(Decimal(computed + 0.0), exact)
    # copy_abs, as abs() rounds to the ambient context's 28 digits.
    size, magnitude = difference.copy_abs(), exact.copy_abs()
    ulps = float(_QUOTIENT.divide(size, Decimal(format.ulp(_exponent(magnitude, format)))))
    if not exact:
        return float(difference), float(size), math.nan, ulps, math.nan, false_zero
    quotient = _QUOTIENT.divide(size, magnitude)
    relative = float(quotient)
    if math.isinf(relative):  # an error beyond binary64's range beside the reference
        bits = -float(_QUOTIENT.divide(_QUOTIENT.log10(quotient), _LOG10_2))
    else:
        bits = min(float(format.precision), -math.log2(relative) if relative else math.inf)
    return float(difference), float(size), relative, ulps, bits, false_zero


def _number(text: str) -> Decimal:
    """The number a reference says.

    Decimal stops at exponents of 18 digits, where a divergence of logits near 1e300 can lie; from there on binary64
    sees no difference to one whose exponent has 16.
    """
    try:
        return Decimal(text)
    except InvalidOperation:
        digits, _, exponent = text.lower().partition("e")
        return Decimal(f"{digits}e{'-' if int(exponent) < 0 else '+'}{10**15}")


def _exponent(magnitude: Decimal, format: Format) -> int:
    """e with 2^e <= magnitude < 2^(e+1), within the format's range."""
    if magnitude < Decimal(2.0**format.minimum):
        return format.minimum
    nearest = float(magnitude)
    if math.isinf(nearest):
        return format.maximum
    guess = math.frexp(nearest)[1] - 1
    # Rounding to binary64 may have carried a number just below a power of two up to it.
    return guess - 1 if magnitude < Decimal(2.0**guess) else guess
