"""The radius of exact_kl's values: that it holds, what it rests on, and where it is zero."""

import math

import mpmath
import numpy as np
import pytest
from definition import INF, WIDE, arb, distance, in_arb, pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.reference import oracle


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
        ball = oracle.kl_sum(np.array([[0.0, 2.0**-exponent]]), np.zeros((1, 2)), "logits", "logits", digits)
        assert 0 < WIDE.mpf(ball.radius) <= WIDE.mpf(ball.value) * WIDE.mpf(10) ** -(digits + 1)


def test_zero_and_infinity_have_radius_zero():
    x, y = np.array([[0.0, -INF]]), np.array([[0.0, 1.0]])
    assert oracle.kl_sum(x, y, "logits", "logits", 50) == oracle.Ball(INF, 0)
    assert oracle.kl_sum(x, x, "logits", "logits", 50) == oracle.Ball(0, 0)


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
