"""The fast engine's balls: against Arb enclosures at a higher precision, the oracle, and rows whose KL is the same."""

import threading
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from audit import exact_kl
from audit.base.usage import UsageError
from audit.reference import engine, exact, oracle
from audit.reference.engine import SMALLEST, kl_row
from audit.reference.oracle import row_ball

TINY = 5e-324


@pytest.fixture(autouse=True)
def all_limbs(monkeypatch) -> None:
    """The engine is attacked on all the limbs it has, though what cancels most goes to the oracle."""
    monkeypatch.setattr(engine, "CANCELLING", engine.MOST_LIMBS)


def enclosure(x, y, precision=1500):
    """KL(softmax(y) || softmax(x)) as an Arb ball."""
    flint = pytest.importorskip("flint")
    with flint.ctx.workprec(precision):
        top_x, top_y = flint.arb(float(x.max())), flint.arb(float(y.max()))
        s_x = sum(((flint.arb(float(v)) - top_x).exp() for v in x if v > -np.inf), flint.arb(0))
        pairs = [(flint.arb(float(a)), flint.arb(float(b))) for a, b in zip(x, y, strict=True) if b > -np.inf]
        weighted = [(a, b, (b - top_y).exp()) for a, b in pairs]
        s_y = sum((e for *_, e in weighted), flint.arb(0))
        return sum((e * (b - a) for a, b, e in weighted), flint.arb(0)) / s_y + (s_x / s_y).log() + top_x - top_y


def sharp_enclosure(x, y, ball):
    """An enclosure narrower than the ball."""
    ctx, precision = ball.value.context, 1_500
    wanted = int(ctx.log(abs(ball.value) / ball.radius, 2)) + 20
    while (exact := enclosure(x, y, precision)).rel_accuracy_bits() < wanted and precision < 40_000:
        precision *= 2
    return exact


def contains(ball, exact) -> bool:
    """Whether the ball holds the whole enclosure, whose ends Arb rounds to its current precision."""
    flint = pytest.importorskip("flint")
    ctx = ball.value.context
    with flint.ctx.workprec(6_000):
        ends = exact.lower().man_exp(), exact.upper().man_exp()
    with ctx.workprec(9_000):
        low, high = (ctx.ldexp(int(m), int(e)) for m, e in ends)
        return bool(ball.value - ball.radius <= low and high <= ball.value + ball.radius)


def settled(ball, digits: int) -> bool:
    ctx = ball.value.context
    with ctx.workprec(64):
        return bool(ball.radius <= abs(ball.value) * ctx.mpf(10) ** -digits)


def bfloat16(row):
    bits = row.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


ROUND = {
    "float16": lambda row: row.astype(np.float16),
    "bfloat16": bfloat16,
    "float32": lambda row: row.astype(np.float32),
    "float64": lambda row: row,
}


def rounded(row, dtype):
    with np.errstate(over="ignore"):
        return np.clip(ROUND[dtype](row).astype(float), -60_000, 60_000)


def some_rows(rng, most):
    """A pair of rows of one of the families that hurt, rounded to one of the formats."""
    n = int(rng.integers(SMALLEST, most))
    dtype = str(rng.choice(list(ROUND)))
    scale = 10.0 ** rng.uniform(-3, 2.5)
    x, y = scale * rng.standard_normal((2, n))
    family = rng.choice(["apart", "near", "offset", "peaked", "masked", "subnormal", "flat", "few", "tiny", "huge"])
    if family == "near":
        x = y * (1 + 10.0 ** rng.uniform(-12, -2) * rng.standard_normal(n))
    elif family == "offset":
        x, y = x + rng.uniform(-1e4, 1e4), y + rng.uniform(-1e4, 1e4)
    elif family == "peaked":
        place = rng.integers(n)
        x[place], y[place] = x.max() + rng.uniform(10, 300), y.max() + rng.uniform(10, 300)
    elif family == "subnormal":
        x, y = rng.integers(-9, 9, (2, n)) * TINY
        dtype = "float64"
    elif family == "flat":
        x = np.zeros(n)
    elif family == "few":
        x, y = rng.integers(-3, 3, (2, n)) * scale
    elif family == "tiny":
        x, y = x * 10.0 ** rng.uniform(-30, 0, n), y * 10.0 ** rng.uniform(-30, 0, n)
    x, y = rounded(x, dtype), rounded(y, dtype)
    if family == "huge":
        x, y = x * 10.0 ** -rng.uniform(290, 323), np.where(rng.random(n) < 0.9, 0, y) + 2.0 ** rng.integers(20, 39)
        x[rng.integers(n)] -= 2.0 ** rng.integers(20, 39) * rng.integers(2)
    if family == "masked":
        mask = rng.random(n) < 0.3
        mask[rng.integers(n)] = False
        y[mask] = -np.inf
        x[mask & (rng.random(n) < 0.5)] = -np.inf
    return x, y, f"{family} {dtype} n={n} scale={scale:.3g}"


def fuzz(seed, most, digits):
    rng = np.random.default_rng(seed)
    x, y, what = some_rows(rng, most)
    ball = kl_row(x, y, digits)
    if ball is None:
        return False
    if ball.radius == 0:
        assert len({Fraction(a) - Fraction(b) for a, b in zip(x, y, strict=True) if b > -np.inf}) == 1, what
        return True
    assert settled(ball, digits), what
    assert contains(ball, sharp_enclosure(x, y, ball)), what
    return True


def test_the_balls_contain_arbs_enclosures_and_settle_the_digits() -> None:
    settled = [fuzz(seed, 2_000, (20, 50, 50, 100)[seed % 4]) for seed in range(30)]
    assert sum(settled) > 20


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_thousands_of_balls_contain_arbs_enclosures(block: int) -> None:
    for seed in range(1_000 + 150 * block, 1_150 + 150 * block):
        fuzz(seed, 20_000 if seed % 10 == 0 else 3_000, (10, 50, 70, 200)[seed % 4])


def extremes():
    rng = np.random.default_rng(1)
    n = 4_500
    signs = np.where(np.arange(n) % 2, 1.0, -1.0)
    ramp = np.arange(n) * 2.0**-12
    normal = rng.standard_normal(n)
    return {
        "one bin holds all": (normal * 2.0**-30, normal[::-1] * 2.0**-30),
        "tails all at their longest": (ramp + 2.0**-28 - 2.0**-60, ramp[::-1] - 2.0**-28 + 2.0**-61),
        "weights alternate at their largest": (signs * 1000, -signs * 1000),
        "weights just below a power of two": (np.zeros(n), signs * np.nextafter(8.0, 0)),
        "logits at the largest": (2.0**39 - np.arange(n) % 7, 2.0**39 - np.arange(n) % 5 * 1.0),
        "logits at both ends": (np.full(n, 2.0**39), np.where(np.arange(n) == 3, 2.0**39, -(2.0**39))),
        "a spread over many pages": (rng.uniform(-3000, 0, n), rng.uniform(-3000, 0, n)),
        "subnormal beside large": (np.where(signs > 0, TINY, 700.0), np.where(signs > 0, 3 * TINY, 699.0)),
        "every exponent of binary64": (2.0 ** rng.uniform(-1074, 8, n) * signs, 2.0 ** rng.uniform(-1074, 8, n)),
        "differences with an error": (normal * 1e-20, 1.0 + np.arange(n) % 11 * 2.0**-40),
        "weights long at the end alone": (np.where(np.arange(n) < 4_300, ramp, normal), ramp),
        "unlikely classes that weigh much": (
            np.where(np.arange(n) % 100, normal, -(2.0**38)),
            np.where(np.arange(n) % 100, normal[::-1], -140.0),
        ),
        "two numbers": (np.where(signs > 0, 1.0, 0.0), np.where(np.arange(n) % 3, 1.0, 0.0)),
        "one number against two": (np.zeros(n), np.where(np.arange(n) == 7, 2.0**-10, 0.0)),
    }


@pytest.mark.parametrize("name", extremes())
def test_extreme_rows_are_contained(name: str) -> None:
    x, y = extremes()[name]
    ball = kl_row(x, y, 50)
    assert ball is not None and settled(ball, 50)
    assert contains(ball, enclosure(x, y, 2_500))


@pytest.mark.parametrize("digits", [1, 50, 200])
def test_nearly_equal_rows_have_their_digits(digits: int) -> None:
    y = np.random.default_rng(2).standard_normal(700)
    x = y.copy()
    x[::2] += 2.0**-49
    ball = kl_row(x, y, digits)
    assert 0 < ball.value < 1e-29 and settled(ball, digits)
    assert contains(ball, enclosure(x, y, 3_000))


@pytest.mark.parametrize("digits", [1, 10, 50])
@pytest.mark.parametrize("name", ["offset", "unlikely class", "full mantissas"])
def test_what_is_below_1e_300_is_not_lost_beside_a_huge_difference(name: str, digits: int) -> None:
    """A difference is scaled by its largest: those near the least of binary64 must not vanish in that."""
    x, y = np.zeros((2, 600))
    if name == "offset":
        y[:], x[::2] = 2.0**24, 3 * TINY
    elif name == "unlikely class":
        x[1::2], y[0], x[0] = TINY, -750, -750 - 2.0**27
    else:
        y[:], x = 2.0**38, 1e-300 * np.random.default_rng(15).standard_normal(600)
    ball = kl_row(x, y, digits)
    if ball is None:
        assert name != "unlikely class", "only what needs over 84 limbs is left to the oracle"
    else:
        assert settled(ball, digits) and contains(ball, sharp_enclosure(x, y, ball))


@pytest.mark.parametrize("digits", [1, 50, 200])
def test_peaked_rows_have_their_digits(digits: int) -> None:
    x, y = np.random.default_rng(3).standard_normal((2, 700))
    x[5], y[5] = 930, 935
    ball = kl_row(x, y, digits)
    assert 0 < ball.value < mpmath.mpf("1e-400") and settled(ball, digits)
    assert contains(ball, enclosure(x, y, 6_000))


def test_the_engines_agree() -> None:
    x, y = np.random.default_rng(6).standard_normal((2, 600))
    fast, slow = kl_row(x, y, 50), row_ball(x, y, "logits", "logits", 400)
    assert abs(fast.value - slow.value) <= fast.radius + slow.radius


# What leaves KL as it is; every number below is exact.


def same(first, second, times=1) -> bool:
    """Whether both pairs of rows have the same KL, the second so many times."""
    a, b = kl_row(*first, 50), kl_row(*second, 50)
    with a.value.context.workprec(400):
        return bool(abs(times * a.value - b.value) <= times * a.radius + b.radius)


@pytest.mark.parametrize("step", [2.0**-40, 2.0**-8])
def test_identities_hold(step: float) -> None:
    rng = np.random.default_rng(7)
    rows = (
        rng.integers(-(2**40), 2**40, (2, 800)) * 2.0**-38 if step < 1e-6 else rng.integers(-900, 900, (2, 800)) * step
    )
    order = rng.permutation(800)
    assert same(rows, rows[:, order])
    assert same(rows, [row + offset for row, offset in zip(rows, (1000.0, -77.5), strict=True)])
    assert same(rows, np.tile(rows, 2))
    assert same(rows, np.repeat(rows, 3, axis=1)[:, ::-1])


def test_kl_of_a_product_is_the_sum() -> None:
    rng = np.random.default_rng(8)
    rows = rng.integers(-(2**30), 2**30, (2, 600)) * 2.0**-28
    product = np.add(rows[:, :, None], rows[:, None, ::20]).reshape(2, -1)
    parts = [kl_row(*rows, 50), row_ball(*rows[:, ::20], "logits", "logits", 400)]
    whole = kl_row(*product, 50)
    with whole.value.context.workprec(400):
        radius = whole.radius + sum(part.radius for part in parts)
        assert abs(whole.value - sum(part.value for part in parts)) <= radius


def test_rows_equal_up_to_a_constant_give_exactly_zero() -> None:
    y = np.random.default_rng(9).integers(-999, 999, 600) / 8
    y[3] = -np.inf
    assert kl_row(y + 2.0**20, y, 50).radius == kl_row(y + 2.0**20, y, 50).value == 0
    one_off = y + 2.0**20
    one_off[17] = np.nextafter(one_off[17], 0)
    assert kl_row(one_off, y, 50).value > 0


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_one_long_row_and_reductions_of_long_rows_are_the_engines_too(reduction: str, monkeypatch) -> None:
    x, y = np.random.default_rng(16).standard_normal((2, 3, 700))
    y[1] = x[1]
    with monkeypatch.context() as patch:
        patch.setattr(oracle, "kl_row", None)
        one, several = exact_kl(x[0], y[0], reduction=reduction), exact_kl(x, y, reduction=reduction)
    single = {"none": 1, "sum": 1, "mean": 700, "batchmean": 700}[reduction]
    whole = {"none": 1, "sum": 1, "mean": x.size, "batchmean": 3}[reduction]
    monkeypatch.setattr(engine, "SMALLEST", np.inf)
    for value, rows, divisor in ((one, slice(1), single), (several, slice(3), whole)):
        ball, name = exact.kl_sum(x[rows], y[rows], "logits", "logits", 60, divisor=divisor)
        assert name == "oracle"
        expected = exact._public(ball)
        with mpmath.workdps(70):
            total = mpmath.fsum(value) if isinstance(value, list) else value
            assert abs(total / expected - 1) < mpmath.mpf(10) ** -50


def test_what_it_declines_goes_to_the_oracle() -> None:
    x, y = np.random.default_rng(10).standard_normal((2, 600))
    missing = x.copy()
    missing[4] = -np.inf
    assert kl_row(missing, y, 50) is None and exact_kl(missing, y) == np.inf
    assert kl_row(x * 2.0**41, y, 50) is None and exact_kl(x * 2.0**41, y) > 0


@pytest.mark.parametrize(("column", "number"), [(0, np.nan), (599, np.inf), (17, np.nan)])
def test_bad_numbers_are_named_by_row_and_column(column: int, number: float) -> None:
    x, y = np.random.default_rng(11).standard_normal((2, 3, 600))
    y[2, column] = number
    with pytest.raises(UsageError, match=rf"target: row 2, column {column} is {number}"):
        exact_kl(x, y)


def test_threads_do_not_disturb_each_other_and_the_global_precision_stays() -> None:
    pairs = np.random.default_rng(12).standard_normal((6, 2, 600))
    digits = [20, 150, 50, 90, 30, 200]
    expected = [kl_row(*pair, d).value for pair, d in zip(pairs, digits, strict=True)]
    found = [None] * 6

    def work(k):
        found[k] = kl_row(*pairs[k], digits[k]).value

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    with mpmath.workprec(37):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert mpmath.mp.prec == 37
    assert found == expected
