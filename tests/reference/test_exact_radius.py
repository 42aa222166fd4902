"""The radius of exact_kl's values: that it holds, what it rests on, and where it is zero."""

import math
from time import process_time

import mpmath
import numpy as np
import pytest
from definition import INF, WIDE, arb, distance, in_arb, pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import exact_kl
from audit.reference import oracle
from audit.reference.exact import kl_sum


@settings(max_examples=60)
@given(pairs(), st.sampled_from([64, 100, 700, 10_000]))
def test_every_radius_holds_at_every_precision(pair, precision):
    enclosure = in_arb(pair, 12_000)
    if enclosure is None or oracle.is_zero(*pair):
        return
    ball = oracle.row_ball(*pair, precision)
    least, _ = distance(enclosure, ball.value, 12_000)
    assert least <= arb(ball.radius)


@pytest.mark.parametrize("digits", [1, 20, 50])
def test_the_radius_is_below_the_asked_digits_whatever_cancels(digits):
    for exponent in range(20, 120, 3):
        ball, _ = kl_sum(np.array([[0.0, 2.0**-exponent]]), np.zeros((1, 2)), "logits", "logits", digits)
        assert 0 < WIDE.mpf(ball.radius) <= WIDE.mpf(ball.value) * WIDE.mpf(10) ** -(digits + 1)


def test_zero_and_infinity_have_radius_zero():
    x, y = np.array([[0.0, -INF]]), np.array([[0.0, 1.0]])
    assert kl_sum(x, y, "logits", "logits", 50) == (oracle.Ball(INF, 0), "oracle")
    assert kl_sum(x, x, "logits", "logits", 50) == (oracle.Ball(0, 0), "oracle")


@pytest.mark.parametrize("precision", [64, 250, 700, 10_000])
def test_mpmath_keeps_the_error_bound_that_the_radius_assumes(precision):
    """2^(12 - precision), relative; exp near 2^-26 loses 5 bits at 10,000."""
    flint = pytest.importorskip("flint")
    ctx = mpmath.MPContext()
    ctx.prec = precision
    rng = np.random.default_rng(4)
    for magnitude in [-1074, -60, -40, -26, -24, -10, -1, 0, 1, 2, 6, 900]:
        x = math.ldexp(1 + rng.random(), magnitude)
        for name, argument in [("exp", x), ("exp", -x), ("log1p", x), ("log1p", -x), ("log", x)]:
            if (name, magnitude >= 0, argument < 0) == ("log1p", True, True):
                continue
            got = getattr(ctx, name)(ctx.mpf(argument))
            with flint.ctx.workprec(precision + 2_500):
                exact = getattr(flint.arb(argument), name)()
                assert abs(arb(got) - exact) <= abs(exact) * flint.arb((1, 12 - precision)), (name, argument)


def wild(rng, n, low, high):
    """Numbers of every exponent from `low` to `high`."""
    return rng.choice([-1, 1], n) * rng.uniform(1, 2, n) * 2.0 ** rng.integers(low, high, n)


def cancelling(rng, n):
    """(name, input, target): rows of logits whose KL is far below its terms, or whose terms are far from each other."""
    small, any_size, common = wild(rng, n, -1074, -500), wild(rng, n, -1074, 1023), rng.normal(0, 3, n)
    yield "tiny", small, wild(rng, n, -1074, -500)
    yield "wild", any_size, wild(rng, n, -1074, 1023)
    yield "one moved", small, np.where(np.arange(n) == n // 2, 1e-3, small)
    yield "half wild", np.where(np.arange(n) % 2, any_size, common), np.where(np.arange(n) % 7, common, any_size)
    yield "offset", common + 2.0**20, common * (1 + 2.0**-50 * rng.integers(-4, 5, n))
    yield "about 1", common + rng.choice([-1.0, 1.0, 1 - 2.0**-40, 1 + 2.0**-40], n), common
    yield "peaked", np.where(np.arange(n) == 1, 2_000.0, common), np.where(np.arange(n) == 1, 2_001.0, common)


@pytest.mark.parametrize("n", [2, 7, 60])
def test_what_cancels_in_logits_is_within_its_radius(n):
    flint = pytest.importorskip("flint")
    rng, settled = np.random.default_rng(n), 0
    for _ in range(max(3, 60 // n)):
        for name, x, y in cancelling(rng, n):
            pair = x, y, "logits", "logits"
            for precision in (264, 800):
                ball = oracle.row_ball(*pair, precision)
                assert ball.settles(10), name
                with flint.ctx.workprec(8_000):
                    exact = in_balls(flint.arb, x, y)
                    settled += exact.rel_accuracy_bits() > precision
                    assert abs(arb(ball.value) - exact).overlaps(arb(ball.radius) * flint.arb("0.5 +/- 0.5")), name
    assert settled > 20  # Arb's plain form has bits left in most families


def test_no_row_of_5_000_classes_takes_2_seconds():
    for name, x, y in cancelling(np.random.default_rng(5), 5_000):
        start = process_time()
        exact_kl(x, y)
        assert process_time() - start < 2, name


def in_balls(number, x, y):
    """KL of two rows of logits by its plain form, as Arb balls."""
    x, y = ([number(v) - number(max(row)) for v in row] for row in (x.tolist(), y.tolist()))
    weights = [v.exp() for v in y]
    total = sum((v.exp() for v in x), number(0)) / sum(weights, number(0))
    return (
        sum((w * (b - a) for w, a, b in zip(weights, x, y, strict=True)), number(0)) / sum(weights, number(0))
        + total.log()
    )
