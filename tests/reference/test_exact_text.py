"""References as text for the tables: their digits and exponents, and what reads them."""

import decimal
from decimal import Decimal

import numpy as np
import pytest
from definition import INF, WIDE, in_decimal, relative_difference

from audit.base.usage import UsageError
from audit.reference.exact import row_references


@pytest.mark.parametrize("digits", [1, 17, 60])
def test_row_references_are_the_definition_rounded_to_the_digits(digits):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 12, 7))
    x[0] = y[0] + 1e-14 * x[0]
    x[1, 2] += 300
    y[1, 2] += 310
    with decimal.localcontext(decimal.Context(prec=digits)):
        expected = [+in_decimal((a, b, "logits", "logits"), 400) for a, b in zip(x, y, strict=True)]
        assert [Decimal(text) for text in row_references(x, y, "logits", digits)] == expected


def test_row_references_are_read_by_float_decimal_and_mpmath():
    x = np.array([[0.0, 0], [0, -INF], [0, 2000], [1e300, 0], [0, 1e-9]])
    y = np.array([[5.0, 5], [0, 0], [0, 1000], [0, 1e300], [0, 0]])
    texts = row_references(x, y, "logits")
    assert texts[:2] == ["0", "inf"]
    assert "e-" in texts[2]
    for text in texts:
        with WIDE.workprec(250):
            number = WIDE.mpf(text)
        assert number == INF or relative_difference(number, WIDE.mpf(str(Decimal(text)))) < WIDE.mpf(10) ** -70
        assert float(text) == float(Decimal(text))


def test_row_references_take_the_targets_kind():
    assert row_references(np.array([[1.0, 1.0]]), np.array([[0.5, 0.5]]), "probs") == ["0"]
    assert row_references(np.array([[1.0, 1.0]]), np.array([[0.0, 1.0]]), "probs", 5) == ["0.69315"]


def test_a_value_beyond_decimals_exponents_is_an_error_naming_the_row():
    with pytest.raises(UsageError, match=r"row 1: KL is \d\.\d+\.\.\. with an exponent"):
        row_references(np.array([[0.0, 1], [0, -2e300]]), np.array([[0.0, 2], [0, -1e300]]), "logits")
