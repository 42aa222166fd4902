"""The fast engine's arithmetic: every intermediate number stays an integer below 2^53, and the errors are within what
is added up."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from audit.reference import fixedpoint, limbs
from audit.reference.engine import MOST_LIMBS


def value_of(rows, first, bits=limbs.BITS):
    return sum(int(v) * limbs.unit(j, bits) for j, v in enumerate(rows, first))


@pytest.fixture
def largest(monkeypatch):
    """The largest integer met by a carry so far, in a list."""
    found, plain = [0.0], limbs.carry

    def watched(rows, scratch):
        found[0] = max(found[0], np.abs(rows).max())
        plain(rows, scratch)

    monkeypatch.setattr(limbs, "carry", watched)
    return found


def test_every_width_has_a_plan_and_products_for_the_longest_row() -> None:
    for width in range(3, MOST_LIMBS + 1):
        for tail_limbs in {0, 2, 3, width}:
            plan = limbs.plan(width, tail_limbs)
            for weights, first in (((fixedpoint.MOST,), 0), ((2 * limbs.HALF,) * (width + 2), 1)):
                assert limbs.product(width, plan.scale, plan.bound, weights, first).bound <= limbs.SUMMED


@pytest.mark.parametrize("width", [3, 5, 8, 9, 12, 33])
@pytest.mark.parametrize("tail_limbs", [2, 3, None])
def test_horners_rule_stays_within_its_plan_for_extreme_limbs(width, tail_limbs, largest) -> None:
    tail_limbs = tail_limbs or width
    chosen = limbs.plan(width, tail_limbs)
    half = limbs.HALF
    tables = [np.full(width, v) for v in (half - 1, -half)] + [np.where(np.arange(width) % 2, half - 1, -half)]
    ends = [1, 1 - 2.0**-52, -1, 0.75 + 2.0**-30, 2.0**-400, -(2.0**-38)]
    if tail_limbs < width:
        ends = [v for v in ends if (v * float(limbs.TAIL) * 2.0 ** (limbs.BITS * (tail_limbs + 1))).is_integer()]
    ctx = mpmath.MPContext()
    ctx.prec = limbs.BITS * width + 300
    for table in tables:
        t = np.array(ends) * float(limbs.TAIL)
        rows, *results, scratch = np.zeros((4, width + 2, len(t)))
        rows[1:-1] = table[:, None]
        rows[1] = 2**20 + table[0] // 2**12
        exact = value_of(rows[:, 0], 0)
        limbs.horner(rows, t, tail_limbs, chosen, results=results, scratch=scratch)
        assert np.abs(rows).max() <= chosen.bound
        for column, argument in enumerate(t.tolist()):
            power = ctx.exp(ctx.mpf(argument))
            expected = Fraction(int(power.man)) * Fraction(2) ** int(power.exp) * exact * chosen.scale
            allowed = chosen.error * chosen.scale + Fraction(1, 2 ** (limbs.BITS * width + 200))
            assert abs(value_of(rows[:, column], 0) - expected) <= allowed
    assert largest[0] < 2.0**53


def test_the_longest_row_stays_within_63_bits() -> None:
    assert fixedpoint.MOST * limbs.SUMMED * 2 ** (limbs.NARROW - 1) < 2**63
    assert fixedpoint.LARGEST * 2**12 <= 2**53


@pytest.mark.parametrize("bound", [limbs.HALF, limbs.LOOSE, limbs.SUMMED])
def test_so_many_products_as_are_taken_at_a_time_add_up_exactly_and_twice_as_many_do_not(bound: int) -> None:
    n = limbs.exact_terms(bound)
    sums = [int(np.full(k, bound - 1.0) @ np.full(k, 2.0 ** (limbs.NARROW - 1) - 1)) for k in (n, 2 * n + 1)]
    exact = [k * (bound - 1) * (2 ** (limbs.NARROW - 1) - 1) for k in (n, 2 * n + 1)]
    assert sums[0] == exact[0] and sums[1] != exact[1] and n >= 2_048


def test_an_integer_that_may_exceed_the_limit_is_an_error() -> None:
    with pytest.raises(ArithmeticError, match="may reach"):
        limbs.carried(2**53)
    with pytest.raises(ArithmeticError, match="may reach"):
        limbs.product(8, 4096, 2**22, (2**24,), 0)


def test_a_sum_without_tails_is_the_tables_products_to_the_last_bit() -> None:
    """Classes that are all the same, whose limbs are the largest found, in more than one block."""
    table, n = fixedpoint.tables(8), fixedpoint.BLOCK + 700
    largest = np.abs(table.coarse[:4000].astype(int)).max(axis=1)
    i, l = int(np.argmax(largest)), int(np.argmax(np.abs(table.fine).max(axis=1)))
    values = np.full(n, -i * 2.0**-12 + (l - fixedpoint.SPAN) * 2.0**-27)
    values[0] = 0
    _, (total,) = fixedpoint.exponential_sums(values, [fixedpoint.Weights.ones(n)], 8)

    def product(i, l):
        return value_of(table.coarse[i], 1, limbs.NARROW) * value_of(table.fine[l], 1)

    assert total.value == product(0, fixedpoint.SPAN) + (n - 1) * product(i, l)


# At the top T2's errors are most of it, of many classes at e^-14 T1's.
@pytest.mark.parametrize(("depth", "n", "width", "places"), [(0, 600, 3, 150), (57_000, 100_000, 8, 20)])
def test_the_radius_of_a_sum_holds_where_all_errors_add_up_and_is_no_larger_than_it_must(
    depth: int, n: int, width: int, places: int
) -> None:
    worst, ctx = 0.0, mpmath.MPContext()
    ctx.prec = 400
    for place in range(places):
        exact_x = -(depth + place % 15) * 2.0**-12 + (37 * place - 2_700) * 2.0**-27
        values = np.append(np.full(n, exact_x), 0.0)
        _, (total,) = fixedpoint.exponential_sums(values, [fixedpoint.Weights.ones(n + 1)], width)
        power = 1 + n * ctx.exp(ctx.mpf(exact_x))
        error = abs(total.value - Fraction(int(power.man)) * Fraction(2) ** int(power.exp))
        worst = max(worst, float(error / total.radius))
        assert error <= total.radius
    assert worst > 0.6


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("count", "width"), [(1, 8), (3, 8), (9, 8), (40, 33)])
def test_a_product_drops_no_more_than_it_says(count: int, width: int, first: int, largest) -> None:
    half, rng = limbs.HALF, np.random.default_rng(14)
    bound, columns = 2 * half, 300
    rows = np.rint(bound * rng.uniform(0.98, 1, (width + 2, columns)))
    rows[:, :3] = bound
    rows[:, 1], rows[1::2, 2], rows[0] = -bound, -bound, 0
    bounds = (3, *(half,) * (count - 1)) if first == 0 else (half,) * count
    weights = np.rint(np.array(bounds)[:, None] * rng.uniform(0.98, 1, (count, columns)))
    weights[:, :3] = np.array(bounds)[:, None]
    weights[:, 3] *= -1
    needs = limbs.product(width, 24, bound, bounds, first)
    out, scratch = np.zeros((2, width + 2, columns))
    limbs.times(rows, weights, first, needs, out=out, scratch=scratch)
    worst = 0
    for column in range(columns):
        weight = sum(Fraction(int(v), 2 ** (limbs.BITS * m)) for m, v in enumerate(weights[:, column], first))
        error = abs(value_of(out[:, column], 0) - weight * value_of(rows[:, column], 0))
        assert error <= needs.dropped
        worst = max(worst, error)
    assert np.abs(out).max() <= needs.bound
    assert count == 1 or (worst > needs.dropped / 20 and np.abs(out).max() > 0.8 * needs.bound)
    assert largest[0] < 2.0**53 and (count < 9 or needs.carries.every < count)


@pytest.mark.parametrize("limit", [2, 9])
@pytest.mark.parametrize("errors", [False, True])
def test_differences_are_split_exactly_or_to_within_what_is_missing(limit: int, errors: bool) -> None:
    rng = np.random.default_rng(13)
    values = rng.standard_normal(500)
    small = np.where(rng.random(500) < 0.5, 0, values * 2.0**-54) if errors else None
    weights = fixedpoint.Weights.differences([values, small] if errors else [values], 4, limit)
    rows = np.array(weights.limbs)
    assert limit == 2 or not weights.missing
    assert all((np.abs(row) <= bound).all() for row, bound in zip(rows, weights.bounds, strict=True))
    for column in range(500):
        got = sum(Fraction(int(v)) / 2 ** (limbs.BITS * (m + 1)) for m, v in enumerate(rows[:, column])) * 16
        exact = Fraction(values[column]) + Fraction(small[column] if errors else 0)
        assert abs(got - exact) <= weights.missing * 16
