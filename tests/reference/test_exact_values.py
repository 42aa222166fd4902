"""exact_kl against its definition in Arb and in decimal, closed forms, and identities that leave KL as it is."""

import decimal
import math
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from definition import (
    CANCELLING,
    INF,
    PROBS,
    TINY,
    WIDE,
    arb,
    distance,
    in_arb,
    in_decimal,
    logit_pairs,
    pairs,
    relative_difference,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit import exact_kl
from audit.base.usage import UsageError


def computed(pair, **options):
    input, target, input_kind, target_kind = pair
    return exact_kl(input, target, input_kind=input_kind, target_kind=target_kind, **options)


@settings(max_examples=250)
@given(pairs(), st.sampled_from([1, 50, 200]))
@example((np.array([-1e300, 1e300]), np.array([1e300, -1e300]), "logits", "logits"), 50)
@example((np.array([0.0, -1e9, 0]), np.array([0.0, -1e4, 0]), "logits", "logits"), 50)
@example((np.array([0.0, -INF]), np.array([0.0, -INF]), "log_probs", "logits"), 50)
@example((np.array([-INF, 0.0]), np.array([0.0, 0.0]), "logits", "probs"), 50)
def test_agrees_with_the_definition_in_arb(pair, digits):
    bits = 4_000
    enclosure = in_arb(pair, bits)
    if enclosure is None:
        assert computed(pair, digits=digits) == INF
        return
    try:
        value = computed(pair, digits=digits)
    except UsageError:
        assert "logits" not in pair[2:] or pair[2] != pair[3]
        assert in_arb(pair, 10_000).contains(0)
        return
    if value == 0:
        assert enclosure.contains(0) and enclosure.rad() < 1e-300 * max(1.0, float(np.ptp(pair[0][pair[1] > -INF])))
        return
    least, greatest = distance(enclosure, value, bits)
    tolerance = abs(arb(value)) / 10**digits
    assert least <= tolerance
    if enclosure.rel_accuracy_bits() > 4 * digits + 20:
        assert greatest <= tolerance


SHORT = pairs().filter(lambda pair: len(pair[0]) <= 8 and np.abs(pair[0][pair[0] > -INF]).max(initial=0) < 1e4)


@settings(max_examples=60)
@given(SHORT)
def test_agrees_with_the_definition_in_decimal(pair):
    expected = in_decimal(pair, 900)
    if expected is None:
        assert computed(pair) == INF
        return
    try:
        value = computed(pair)
    except UsageError:
        assert abs(expected) < Decimal("1e-850")
        return
    size = max(map(float, np.abs(np.concatenate(pair[:2])[np.isfinite(np.concatenate(pair[:2]))])), default=1.0) + 100
    noise = Decimal("1e-890") * Decimal(size) ** 2
    with decimal.localcontext(decimal.Context(prec=950)):
        number = Decimal(mpmath.nstr(value, 60))
        assert abs(number - expected) <= abs(expected) * Decimal("1e-50") + noise


@pytest.mark.parametrize("digits", [1, 50, 200])
@pytest.mark.parametrize("gap", [1e-15, 0.5, 30.0, 921.0, 1e5])
def test_two_classes_have_a_closed_form(gap, digits):
    """Target logits (g, 0) against (2g, 0): p = 1 / (1 + e^-g), KL = log((1 + e^-2g) / (1 + e^-g)) + g e^-g p."""
    with decimal.localcontext(decimal.Context(prec=int(gap) + digits + 60, Emin=-(10**9), Emax=10**9)) as ctx:
        if gap > 1e4:
            ctx.prec = digits + 60  # e^-g is then lost beside 1: the first two terms of the series are what is left
            small = Decimal(-gap).exp()
            expected = small * (Decimal(gap) - 1)
            tolerance = Decimal(10) ** -digits
        else:
            small = Decimal(-gap).exp()
            expected = ((1 + small * small) / (1 + small)).ln() + Decimal(gap) * small / (1 + small)
            tolerance = Decimal(10) ** -digits
        value = Decimal(mpmath.nstr(exact_kl([2 * gap, 0], [gap, 0], digits=digits), digits + 10))
        assert abs(value - expected) <= tolerance * expected


def test_logits_far_beyond_every_exponent_settle():
    """Target (0, -1e300) against (0, -2e300): KL = e^-1e300 (1e300 - 1) to any number of digits."""
    value = exact_kl([0, -2e300], [0, -1e300])
    ratio = WIDE.mpf(value) / (WIDE.exp(WIDE.mpf(-1e300)) * (WIDE.mpf(1e300) - 1))
    assert abs(ratio - 1) < WIDE.mpf(10) ** -50
    assert exact_kl([1e300, 0], [0, 1e300]) == int(1e300)


def test_classes_masked_by_different_numbers_settle_though_all_others_agree():
    """(0, 0, -m) against (0, 0, -2m): with s = e^-m, 2 KL = s (m - 1) to first order."""
    value = exact_kl([0, 0, -2e9], [0, 0, -1e9])
    expected = WIDE.exp(WIDE.mpf(-1e9)) * (10**9 - 1) / 2
    assert abs(WIDE.mpf(value) / expected - 1) < WIDE.mpf(10) ** -50


@pytest.mark.parametrize("c", [0.5, 0.1, 3.0])
def test_a_target_scaled_by_c_gives_c_log_c(c):
    """Sum c p log(c p / p) = c log c, the target not being normalised; 1/4 a class is a power of two times c."""
    value = exact_kl([1.0, 1, 1, 1], [c / 4] * 4, target_kind="probs")
    with decimal.localcontext(decimal.Context(prec=100)):
        expected = Decimal(c) * Decimal(c).ln()
        assert abs(Decimal(mpmath.nstr(value, 80)) - expected) <= Decimal("1e-50") * abs(expected)


# Identities: each changes the rows and leaves the exact value.

ROWS = (
    st.integers(2, 12)
    .flatmap(lambda n: st.tuples(*[st.lists(st.integers(-(2**20), 2**20), min_size=n, max_size=n)] * 2))
    .map(lambda rows: tuple(np.array(row) / 2**14 for row in rows))
)
SAME = WIDE.mpf(10) ** -50


@given(ROWS, st.randoms(use_true_random=False))
def test_permuting_classes_leaves_kl(rows, random):
    x, y = rows
    order = random.sample(range(len(x)), len(x))
    assert relative_difference(exact_kl(x, y), exact_kl(x[order], y[order])) <= SAME


@given(ROWS, st.integers(-(2**30), 2**30), st.integers(-(2**30), 2**30))
def test_offsets_of_logits_leave_kl(rows, for_input, for_target):
    x, y = rows
    assert relative_difference(exact_kl(x, y), exact_kl(x + for_input, y + for_target)) <= SAME


@given(ROWS)
def test_duplicating_every_logit_leaves_kl(rows):
    x, y = rows
    assert relative_difference(exact_kl(x, y), exact_kl(np.tile(x, 2), np.tile(y, 2))) <= SAME


@given(ROWS)
def test_halving_a_probability_into_two_classes_leaves_kl(rows):
    q, p = (np.abs(row) + 2.0**-14 for row in rows)
    halved = [np.concatenate([row[:-1], [row[-1] / 2] * 2]) for row in (q, p)]
    with suppress(UsageError):  # a row that cancels exactly
        assert relative_difference(exact_kl(q, p, **PROBS), exact_kl(*halved, **PROBS)) <= SAME


@given(ROWS, ROWS)
def test_kl_of_a_product_is_the_sum(first, second):
    x, y = (np.add.outer(a, b).ravel() for a, b in zip(first, second, strict=True))
    parts = WIDE.mpf(exact_kl(*first)) + WIDE.mpf(exact_kl(*second))
    assert relative_difference(exact_kl(x, y), parts) <= 2 * SAME


# What is decided exactly.


@given(logit_pairs())
def test_a_row_against_itself_is_exactly_zero(pair):
    for row in pair:
        assert exact_kl(row, row) == 0
        assert exact_kl(row, row, input_kind="log_probs", target_kind="log_probs") == 0
        assert exact_kl(abs(row[row > -INF]), abs(row[row > -INF]), input_kind="probs", target_kind="probs") == 0


@pytest.mark.parametrize(
    ("input", "target", "kinds"),
    [
        ([1.0, 2, -INF], [1025.0, 1026, -INF], ("logits", "logits")),
        ([0.0, TINY, 1e300], [0.0, TINY, 1e300], ("logits", "logits")),
        ([5.0, 5], [0.5, 0.5], ("logits", "probs")),
        ([0.25, 0.25, 0.25, 0.25], [7.0, 7, 7, 7], ("probs", "logits")),
        ([0.25, 0.75], [0.25, 0.0], ("probs", "probs")),
        ([-1.0, -2], [-1.0, -INF], ("log_probs", "log_probs")),
        ([0.0, -INF], [1.0, 0.0], ("log_probs", "probs")),
        ([-INF, 3.0], [-INF, 0.0], ("logits", "log_probs")),
        ([-INF, 1.0, 2.0], [0.0, 0.0, 0.0], ("logits", "probs")),
    ],
)
def test_exact_zeros(input, target, kinds):
    assert exact_kl(input, target, input_kind=kinds[0], target_kind=kinds[1]) == 0


@pytest.mark.parametrize(
    ("input", "target", "kinds"),
    [
        ([0.0, TINY], [0.0, 0.0], ("logits", "logits")),
        ([-1.0, 0.0], [2.0**53, 2.0**53], ("logits", "logits")),  # the differences agree once rounded
        ([1e300, 0.0], [math.nextafter(1e300, INF), 0.0], ("logits", "logits")),
        ([0.0, 0, -1e300], [0.0, 0, -INF], ("logits", "logits")),
        ([1.0, 1.0, 1.0], [1 / 3, 1 / 3, 1 / 3], ("logits", "probs")),
        ([0.0, 0.0], [0.5, 0.25], ("logits", "probs")),
    ],
)
def test_the_smallest_difference_is_not_zero(input, target, kinds):
    assert exact_kl(input, target, input_kind=kinds[0], target_kind=kinds[1]) != 0


def test_rows_that_cancel_in_the_sum_keep_its_digits():
    """The rows are (log 2)/4 + t, -(log 2)/4 and, undecidable by itself, 0; their sum t = (1 + h) log(1 + h)."""
    h = 2.0**-40
    input = [[0.125, 1.0], [0.5, 1.0], CANCELLING[0]]
    target = [[0.25, 1 + h], [0.25, 1.0], CANCELLING[1]]
    value = exact_kl(input, target, **PROBS, reduction="sum")
    with decimal.localcontext(decimal.Context(prec=120)):
        expected = (1 + Decimal(h)) * (1 + Decimal(h)).ln()
        assert abs(Decimal(mpmath.nstr(value, 80)) - expected) < Decimal("1e-50") * expected


@pytest.mark.parametrize("digits", [1, 50])
@pytest.mark.parametrize("delta", [2.0**-760, 2.0**-801, -(2.0**-801), 2.0**-830])
def test_a_small_row_beside_large_ones_that_cancel_is_not_lost(delta, digits):
    """Weights of 1 make every row the negative sum of its input, whose bits are 860 apart and more."""
    rows = [[2.0**600, -(2.0**600), 2.0**-260, 0], [2.0**-800, 0, 0, 0], [2.0**600, -(2.0**600), -(2.0**-260), delta]]
    kinds = {"input_kind": "log_probs", "target_kind": "log_probs"}
    value = exact_kl([[-v for v in row] for row in rows], [[0.0] * 4] * 3, **kinds, reduction="sum", digits=digits)
    exact = sum(Fraction(v) for row in rows for v in row)
    sign, mantissa, exponent, _ = value._mpf_
    assert abs((-1) ** sign * mantissa * Fraction(2) ** exponent / exact - 1) <= Fraction(1, 10**digits)


def test_two_hundred_digits_of_nearly_equal_rows():
    """Input logits (0, h), target (0, 0): KL = log cosh(h/2), about h^2/8."""
    with decimal.localcontext(decimal.Context(prec=300)):
        h = Decimal(2) ** -50
        expected = (((h / 2).exp() + (-h / 2).exp()) / 2).ln()
        assert abs(8 * expected / h**2 - 1) < h
        value = Decimal(mpmath.nstr(exact_kl([0.0, 2.0**-50], [0.0, 0.0], digits=200), 210))
        assert abs(value / expected - 1) < Decimal("1e-200")
