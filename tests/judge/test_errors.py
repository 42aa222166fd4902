"""The error columns against values worked out by hand."""

import math
from fractions import Fraction

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.base.formats import FORMATS
from audit.judge.errors import error_columns

NAN, INF = math.nan, math.inf


def errors(computed: float, reference: str, dtype: str = "float32", scale: float = 1.0) -> pd.Series:
    table = pd.DataFrame(
        {"computed": [computed], "reference": reference, "result_dtype": dtype, "result_class": "", "scale": scale}
    )
    return error_columns(table).iloc[0]


def test_a_plain_row() -> None:
    row = errors(0.5, "0.25", scale=2.0)
    assert row["drift"] == row["abs_error"] == 0.25
    assert row["rel_error"] == 1.0
    assert row["correct_bits"] == 0.0
    assert row["ulp_error"] == 0.25 * 2**25  # the ulp of float32 in [1/4, 1/2) is 2^-25
    assert row["scaled_error"] == 0.25 / (2.0**-24 * 2)
    assert not row["negative"]
    assert not row["false_zero"]
    assert row["result_class"] == "finite"


def test_the_drift_is_rounded_once_from_the_exact_difference() -> None:
    # 1 - reference = 1e-40 exactly; the reference rounded to binary64 first would give 0.
    assert errors(1.0, "0." + "9" * 40, "float64")["drift"] == 1e-40
    assert errors(1.0, "1." + "0" * 39 + "1", "float64")["drift"] == -1e-40


def test_an_ulp_is_that_of_the_binade_below_for_a_reference_just_below_a_power_of_two() -> None:
    # In [1/2, 1) an ulp of float16 is 2^-11; the reference rounds to 1 in binary64.
    assert errors(1.0 + 2.0**-10, "0." + "9" * 40, "float16")["ulp_error"] == pytest.approx(2.0)
    assert errors(1.0 + 2.0**-10, "1", "float16")["ulp_error"] == pytest.approx(1.0)


def test_an_ulp_is_never_below_the_smallest_subnormal() -> None:
    assert errors(2.0**-24, "0", "float16")["ulp_error"] == 1.0
    assert errors(2.0**-24, "1e-30", "float16")["ulp_error"] == pytest.approx(1.0)


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8), ("float32", 24), ("float64", 53)])
def test_correct_bits_end_at_the_precision_and_follow_the_relative_error(dtype: str, bits: int) -> None:
    assert errors(0.25, "0.25", dtype)["correct_bits"] == bits
    assert errors(1.25, "1", dtype)["correct_bits"] == pytest.approx(2.0)
    assert errors(-7.0, "1", dtype)["correct_bits"] == pytest.approx(-3.0)


def test_bits_and_relative_error_are_empty_at_reference_0_and_the_scaled_error_is_not() -> None:
    row = errors(-(2.0**-24), "0")
    assert math.isnan(row["rel_error"])
    assert math.isnan(row["correct_bits"])
    assert row["scaled_error"] == 1.0
    assert row["negative"]


@pytest.mark.parametrize(
    ("computed", "name", "negative"),
    [(NAN, "not_a_number", False), (INF, "plus_infinity", False), (-INF, "minus_infinity", True)],
)
def test_what_is_not_finite_has_a_class_and_no_drift(computed: float, name: str, negative: bool) -> None:
    for reference in ("1", "inf"):
        row = errors(computed, reference)
        assert row["result_class"] == name
        assert math.isnan(row["drift"])
        assert math.isnan(row["scaled_error"])
        assert row["negative"] == negative


def test_a_zero_is_false_where_the_reference_rounds_to_something_else() -> None:
    tiny = FORMATS["float16"].smallest_subnormal
    assert not errors(0.0, repr(tiny / 2), "float16")["false_zero"]  # a tie, which goes to the even 0
    assert errors(0.0, repr(tiny / 2 * 1.0001), "float16")["false_zero"]
    assert errors(-0.0, "-1", "float16")["false_zero"]
    assert not errors(0.0, "1e-400", "float64")["false_zero"]
    assert not errors(-0.0, "0")["false_zero"]
    assert not errors(-0.0, "0")["negative"]


def test_what_was_not_computed_has_no_errors() -> None:
    table = pd.DataFrame(
        {"computed": [NAN], "reference": "1", "result_dtype": "", "result_class": "not_computed", "scale": 1.0}
    )
    row = error_columns(table).iloc[0]
    assert row["result_class"] == "not_computed"
    assert row[["drift", "negative", "false_zero", "scaled_error"]].isna().all()


@given(
    st.floats(allow_nan=False, allow_infinity=False, width=64),
    st.integers(-(10**50), 10**50),
    st.integers(-380, 250),
)
def test_drift_and_relative_error_agree_with_rational_arithmetic(computed: float, digits: int, exponent: int) -> None:
    row = errors(computed, f"{digits}e{exponent}", "float64")
    exact = Fraction(digits) * Fraction(10) ** exponent
    difference = Fraction(computed) - exact
    wanted = float(difference) if abs(difference) < 2**1024 else math.copysign(INF, difference)
    assert row["drift"] == wanted
    if exact and 1e-300 < abs(difference / exact) < 1e300:
        assert row["rel_error"] == pytest.approx(float(abs(difference / exact)), rel=1e-15)
