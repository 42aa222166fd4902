"""exact_kl against its definition in Arb and in decimal, closed forms, and identities that leave KL as it is."""

import decimal
import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit import exact_kl
from audit.errors import UsageError
from audit.reference import oracle
from audit.reference.exact import row_references
from audit.reference.values import KINDS

INF = math.inf
TINY = 5e-324
PROBS = {"input_kind": "probs", "target_kind": "probs"}
CANCELLING = ([0.25, 1.0], [0.5, 0.25])  # input, target: (1/2) log 2 + (1/4) log (1/4) = 0, as probabilities
WIDE = mpmath.MPContext()
WIDE.prec = 2_000


def relative_difference(a, b):
    a, b = WIDE.mpf(a), WIDE.mpf(b)
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0


# Rows of any kind that two distributions can be given as, the target first.


def _scaled(number, scale):
    return number.map(lambda v: v * scale)


@st.composite
def logit_pairs(draw):
    n = draw(st.integers(1, 50))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0, 1e3, 1e5, 1e300]))
    unit = st.floats(-1, 1, allow_subnormal=False)
    y = np.array(draw(st.lists(_scaled(unit, scale), min_size=n, max_size=n)))
    how = draw(st.sampled_from(["apart", "near", "offset", "peaked", "subnormal", "masked"]))
    x = np.array(draw(st.lists(_scaled(unit, scale), min_size=n, max_size=n)))
    if how == "near":
        x = y + y * draw(st.sampled_from([1e-15, 1e-9])) * np.sign(x)
    elif how == "offset":
        x = y + draw(st.sampled_from([1e-3, 7.0, 1e4]))
    elif how == "peaked":
        place = draw(st.integers(0, n - 1))
        for row in (x, y):
            row[place] = row.max() + draw(st.sampled_from([40.0, 460.0, 920.0, 2_000.0]))
    elif how == "subnormal":
        x, y = np.arange(n) * TINY, np.arange(n)[::-1] * 3 * TINY
    elif how == "masked":
        mask = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        mask[draw(st.integers(0, n - 1))] = False
        y[mask] = -INF
        if draw(st.booleans()):
            x[mask] = -INF
    return x, y


@st.composite
def pairs(draw):
    """(input, target, input_kind, target_kind); what is not logits is normalised in binary64, or not at all."""
    kinds = draw(st.sampled_from([(a, b) for a in KINDS for b in KINDS]))
    rows = draw(logit_pairs())
    factor = draw(st.sampled_from([1.0, 0.5, 3.0]))
    made = []
    for row, kind in zip(rows, kinds, strict=True):
        if kind == "logits":
            made.append(row)
        else:
            p = np.exp(np.maximum(row - row.max(), -1e308))
            p = p / p.sum() * factor
            with np.errstate(divide="ignore"):
                made.append(p if kind == "probs" else np.log(p))
    return (*made, *kinds)


# The definition, term by term, in two other arithmetics.


def definition(log, exp, number, input, target, input_kind, target_kind):
    """Sum of p (log p - log q) over p > 0, for an arithmetic's log, exp and conversion of floats."""

    def logs(row, kind):
        row = row.tolist()
        if kind != "logits":
            return [None if v == (0 if kind == "probs" else -INF) else v for v in row]
        top = number(max(row))
        shifted = [None if v == -INF else number(v) - top for v in row]
        normaliser = log(sum(exp(v) for v in shifted if v is not None))
        return [None if v is None else v - normaliser for v in shifted]

    def as_log(v, kind):
        return v if kind == "logits" else number(v) if kind == "log_probs" else log(number(v))

    total = number(0.0)
    for p, q in zip(logs(target, target_kind), logs(input, input_kind), strict=True):
        if p is None:
            continue
        if q is None:
            return None
        weight = number(p) if target_kind == "probs" else exp(as_log(p, target_kind))
        total += weight * (as_log(p, target_kind) - as_log(q, input_kind))
    return total


def in_arb(pair, bits):
    """An enclosure; None for +inf."""
    flint = pytest.importorskip("flint")
    with flint.ctx.workprec(bits):
        return definition(lambda v: v.log(), lambda v: v.exp(), flint.arb, *pair)


def in_decimal(pair, digits):
    with decimal.localcontext(decimal.Context(prec=digits, Emin=-(10**17), Emax=10**17)):
        return definition(Decimal.ln, Decimal.exp, Decimal, *pair)


def arb(number):
    import flint

    sign, man, exponent, _ = number._mpf_
    return flint.arb((-int(man) if sign else int(man), int(exponent)))


def distance(enclosure, number, bits):
    """The least and the greatest distance that the enclosed number can have from `number`, as arbs."""
    import flint

    with flint.ctx.workprec(bits):
        gap = enclosure - arb(number)
        return gap.abs_lower(), gap.abs_upper()


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


@settings(max_examples=60)
@given(pairs(), st.sampled_from([64, 100, 700, 10_000]))
def test_every_radius_holds_at_every_precision(pair, precision):
    enclosure = in_arb(pair, 12_000)
    if enclosure is None or oracle.is_zero(*pair):
        return
    ball = oracle.row_ball(*pair, precision)
    least, _ = distance(enclosure, ball.value, 12_000)
    assert least <= arb(ball.radius)


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


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_target_mass_where_the_input_has_none_is_infinite(reduction):
    x, y = [[0.0, -INF], [0.0, 1.0]], [[0.0, -1e300], [0.0, 1.0]]
    value = exact_kl(x, y, reduction=reduction)
    assert value == ([INF, 0] if reduction == "none" else INF)
    assert exact_kl([0.5, 0.0], [0.5, TINY], **PROBS, reduction=reduction) == INF


def test_zero_and_infinity_have_radius_zero():
    x, y = np.array([[0.0, -INF]]), np.array([[0.0, 1.0]])
    assert oracle.kl_sum(x, y, "logits", "logits", 50) == oracle.Ball(INF, 0)
    assert oracle.kl_sum(x, x, "logits", "logits", 50) == oracle.Ball(0, 0)


# Reductions and digits.


def test_reductions_divide_the_sum_as_torch_does():
    rng = np.random.default_rng(1)
    x, y = rng.integers(-9, 9, (2, 3, 5)) / 4
    rows = [Decimal(mpmath.nstr(v, 70)) for v in exact_kl(x, y, digits=60)]
    for row, pair in zip(rows, zip(x, y, strict=True), strict=True):
        assert abs(row - in_decimal((*pair, "logits", "logits"), 120)) < row * Decimal("1e-55")
    for reduction, divisor in {"sum": 1, "mean": 15, "batchmean": 3}.items():
        value = Decimal(mpmath.nstr(exact_kl(x, y, reduction=reduction), 60))
        with decimal.localcontext(decimal.Context(prec=80)):
            assert abs(value * divisor / sum(rows) - 1) < Decimal("1e-50")


@pytest.mark.parametrize(("reduction", "divisor"), [("none", 1), ("sum", 1), ("mean", 4), ("batchmean", 4)])
def test_one_distribution_is_reduced_over_its_classes_as_torch_does(reduction, divisor):
    x, y = [0.0, 1, 2, 3], [3.0, 2, 1, 0]
    assert relative_difference(exact_kl(x, y, reduction=reduction) * divisor, exact_kl(x, y)) < 1e-15


@pytest.mark.parametrize("digits", [1, 20, 50])
def test_the_radius_is_below_the_asked_digits_whatever_cancels(digits):
    for exponent in range(20, 120, 3):
        ball = oracle.kl_sum(np.array([[0.0, 2.0**-exponent]]), np.zeros((1, 2)), "logits", "logits", digits)
        assert 0 < WIDE.mpf(ball.radius) <= WIDE.mpf(ball.value) * WIDE.mpf(10) ** -(digits + 1)


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


def test_each_thread_has_a_context_of_its_own():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(oracle._context).result() is not oracle._context() is oracle._context()


def test_two_hundred_digits_of_nearly_equal_rows():
    """Input logits (0, h), target (0, 0): KL = log cosh(h/2), about h^2/8."""
    with decimal.localcontext(decimal.Context(prec=300)):
        h = Decimal(2) ** -50
        expected = (((h / 2).exp() + (-h / 2).exp()) / 2).ln()
        assert abs(8 * expected / h**2 - 1) < h
        value = Decimal(mpmath.nstr(exact_kl([0.0, 2.0**-50], [0.0, 0.0], digits=200), 210))
        assert abs(value / expected - 1) < Decimal("1e-200")


# The interface.


def test_bits_are_kept_and_the_number_pickles():
    value = exact_kl([0.0, 1.0], [1.0, 0.0], digits=100)
    with mpmath.workprec(value._mpf_[3]):
        assert pickle.loads(pickle.dumps(value)) == value
    assert isinstance(value, mpmath.mpf) and value._mpf_[3] > 300


@pytest.mark.parametrize("precision", [20, 53, 900])
def test_the_callers_precision_is_neither_used_nor_touched(precision):
    before = exact_kl([0.0, 1.0], [1.5, 0.0])
    with mpmath.workprec(precision):
        assert exact_kl([0.0, 1.0], [1.5, 0.0]) == before
        with pytest.raises(UsageError):
            exact_kl(*CANCELLING, **PROBS)
        assert mpmath.mp.prec == precision


def test_the_own_context_is_left_at_its_precision():
    with suppress(UsageError):
        exact_kl(*CANCELLING, **PROBS)
    assert oracle._context() is not mpmath.mp
    assert oracle._context().prec == mpmath.MPContext().prec


def test_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(2)
    tasks = [(*rng.normal(size=(2, 40)), digits) for digits in (20, 300, 50, 150) * 8]

    def work(task):
        return exact_kl(task[0], task[1], digits=task[2])

    expected = [work(task) for task in tasks]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, tasks)) == expected


def test_importing_it_imports_no_torch():
    code = (
        "import sys, audit.reference.exact, audit; audit.exact_kl([0., 1.], [1., 0.]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_decided_is_an_error_with_the_radius():
    with pytest.raises(UsageError, match=r"KL: 10000 bits do not settle 50 digits.* radius \d.*e-30\d\d.*cancel"):
        exact_kl(*CANCELLING, **PROBS)
    with pytest.raises(UsageError, match="row 1: KL: "):
        exact_kl([[0.5, 0.5], CANCELLING[0]], [[0.5, 0.25], CANCELLING[1]], **PROBS)


@pytest.mark.parametrize(
    ("input", "target", "options", "message"),
    [
        ([0.0, math.nan], [0.0, 1.0], {}, r"input: row 0, column 1 is nan"),
        ([[0.0, 1], [0, 1]], [[0.0, 1], [INF, 1]], {}, r"target: row 1, column 0 is inf"),
        ([0.0, 1], [0.5, -0.5], {"target_kind": "probs"}, r"target: row 0, column 1 is -0.5"),
        ([0.0, INF], [0.5, 0.5], {"input_kind": "log_probs"}, r"input: row 0, column 1 is inf"),
        ([[0.0, 1], [-INF, -INF]], [[0.0, 1], [0, 1]], {}, r"input: row 1 is -inf in every column"),
        ([], [], {}, r"at least one row and one class.*\(0,\)"),
        ([[], []], [[], []], {}, r"at least one row and one class.*\(2, 0\)"),
        ([0.0, 1], [0.0, 1, 2], {}, r"\(2,\) and target \(3,\)"),
        ([[0.0, 1]], [0.0, 1], {}, r"\(1, 2\) and target \(2,\)"),
        ([[[0.0]]], [[[0.0]]], {}, r"expected shape.*\(1, 1, 1\)"),
        (3.0, 3.0, {}, r"expected shape.*\(\)"),
        ([0.0, 1], [0.0, 1], {"input_kind": "softmax"}, r"input_kind: 'softmax'.*logits, log_probs, probs"),
        ([0.0, 1], [0.0, 1], {"target_kind": None}, r"target_kind: None"),
        ([0.0, 1], [0.0, 1], {"reduction": "max"}, r"reduction: 'max'.*none, sum, mean, batchmean"),
        ([0.0, 1], [0.0, 1], {"digits": 0}, r"digits: .*1 or more, got 0"),
        ([0.0, 1], [0.0, 1], {"digits": 50.0}, r"digits: .*got 50.0"),
        ([0.0, 1], [1.0, 0], {"digits": 5_000}, r"do not settle 5000 digits.*ask for fewer"),
        ([0.0, 1], [1.0, 0], {"digits": 10**400}, r"digits: at most 100,000"),
        ([0.0, 1], [1.0, 0], {"input_kind": np.array(["probs"])}, r"input_kind: .*logits, log_probs, probs"),
        ([0.0, 1], np.ma.array([0.0, 1], mask=[0, 1]), {}, r"target: .*without a mask"),
        (torch.eye(2).to_sparse(), torch.eye(2), {}, r"input: expected a dense tensor"),
        (torch.empty(2, 2, device="meta"), torch.eye(2), {}, r"input: expected a dense tensor"),
    ],
)
def test_wrong_usage_is_one_line_that_names_what_was_given(input, target, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        exact_kl(input, target, **options)
    assert "\n" not in str(caught.value)


# Text for the tables.


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


# What the radius rests on.


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
