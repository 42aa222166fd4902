"""exact_kl against Arb's enclosures, decimal and closed forms; never against itself."""

import math
import subprocess
import sys
from decimal import Decimal, localcontext

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import exact_kl
from audit.errors import UsageError

flint = pytest.importorskip("flint")


def arb_kl(x: list[float], y: list[float], bits: int) -> "flint.arb":
    """sum p (log p - log q) from two rows of logits, enclosed."""
    flint.ctx.prec = bits
    try:
        input, target = ([flint.arb(v) for v in row if v != -math.inf] for row in (x, y))
        log_mass = [(sum((v - row[0]).exp() for v in row)).log() + row[0] for row in (input, target)]
        pairs = [(flint.arb(a), flint.arb(b)) for a, b in zip(x, y, strict=True) if b != -math.inf]
        return sum(((b - log_mass[1]).exp() * ((b - log_mass[1]) - (a - log_mass[0])) for a, b in pairs), flint.arb(0))
    finally:
        flint.ctx.prec = 53


def agree(value: mpmath.mpf, enclosure: "flint.arb", digits: int) -> bool:
    sign, mantissa, exponent, _ = value._mpf_
    flint.ctx.prec = 6000
    try:
        exact = flint.arb(-mantissa if sign else mantissa) * flint.arb(2) ** exponent
        return bool(abs(exact - enclosure) < abs(enclosure) * flint.arb(10) ** -digits)
    finally:
        flint.ctx.prec = 53


rows = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*(st.lists(st.floats(-1, 1, width=32), min_size=n, max_size=n) for _ in range(2)))
)


@settings(max_examples=80, deadline=None)
@given(rows, st.sampled_from([1e-3, 1.0, 30.0, 300.0]), st.sampled_from([1.0, 1e-8, 1e-15]), st.integers(-4, 4))
def test_fifty_digits_are_right_whatever_cancels(pair, scale: float, distance: float, offset: int) -> None:
    x = [scale * v + offset for v in pair[0]]
    y = [a + distance * v for a, v in zip(x, pair[1], strict=True)]
    value = exact_kl(x, y)
    if len({Decimal(b) - Decimal(a) for a, b in zip(x, y, strict=True)}) == 1:
        assert value == 0
    else:
        assert agree(value, arb_kl(x, y, 4000), 50)


@pytest.mark.parametrize("digits", [1, 15, 50, 200])
def test_as_many_digits_as_asked_for(digits: int) -> None:
    x, y = [0.1, 0.7, -2.0], [0.3, -0.2, 1.0]
    assert agree(exact_kl(x, y, digits=digits), arb_kl(x, y, 2000), digits)


def test_near_one_hot_rows_keep_their_digits() -> None:
    x, y = [0.0, -920.0, -930.0], [0.0, -921.0, -930.0]
    value = exact_kl(x, y)
    assert 0 < value < mpmath.mpf(10) ** -390
    assert agree(value, arb_kl(x, y, 5000), 50)


def test_two_classes_are_the_closed_form_in_decimal() -> None:
    with localcontext() as context:
        context.prec = 80
        p, q = (Decimal(1) / (1 + Decimal(v).exp()) for v in (1, -2))
        wanted = p * (p / q).ln() + (1 - p) * ((1 - p) / (1 - q)).ln()
    value = exact_kl([0.0, -2.0], [0.0, 1.0])
    assert abs(Decimal(mpmath.nstr(value, 60)) / wanted - 1) < Decimal("1e-50")


def test_an_unnormalised_target_gives_c_log_c() -> None:
    value = exact_kl([0.25] * 4, [0.125] * 4, input_kind="probs", target_kind="probs")
    assert abs(Decimal(mpmath.nstr(value, 60)) - Decimal("-0.34657359027997265470861606072908828403775006718013")) < (
        Decimal("1e-49")
    )


def test_exact_zeros_and_infinities_are_decided() -> None:
    assert exact_kl([1.0, 2.0, 1e300], [1.0, 2.0, 1e300]) == 0
    assert exact_kl([1.0, 2.5], [3.0, 4.5]) == 0
    assert exact_kl([-math.inf, 1.0, 2.0], [-math.inf, 1.0, 2.0]) == 0
    assert exact_kl([-math.inf, 1.0], [0.0, 1.0]) == mpmath.inf
    assert exact_kl([0.5, 0.5], [1.0, 0.0], input_kind="probs", target_kind="probs") == pytest.approx(math.log(2))
    assert exact_kl([0.0], [5.0]) == 0
    assert exact_kl([0.0, -1e300], [0.0, -1.0]) > 1e299


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_tensor_is_taken_with_the_values_of_its_dtype(dtype: str) -> None:
    tensor = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64).to(getattr(torch, dtype))
    other = torch.tensor([[0.3, 0.1, 0.7]], dtype=torch.float64).to(getattr(torch, dtype))
    assert exact_kl(tensor, other) == [exact_kl(tensor[0].tolist(), other[0].tolist())]


def test_reductions_divide_as_torch_does() -> None:
    x, y = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 0.0]]), np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    first, second = exact_kl(x, y)
    total = first + second
    for reduction, divisor in (("sum", 1), ("mean", 6), ("batchmean", 2)):
        assert float(exact_kl(x, y, reduction=reduction)) == pytest.approx(float(total / divisor), rel=1e-15)


@settings(max_examples=30, deadline=None)
@given(rows, st.randoms())
def test_order_and_duplication_leave_kl_as_it_was(pair, random) -> None:
    x, y = pair
    value = exact_kl(x, y)
    order = random.sample(range(len(x)), len(x))
    for changed in (exact_kl([x[i] for i in order], [y[i] for i in order]), exact_kl(x + x, y + y)):
        assert abs(changed - value) <= abs(value) * mpmath.mpf(10) ** -15


@pytest.mark.parametrize(
    ("input", "target", "options", "message"),
    [
        ([[0.0, math.nan]], [[0.0, 1.0]], {}, "input: row 0, column 1 is nan"),
        ([0.0, 1.0], [0.0, math.inf], {}, "target: row 0, column 1 is inf"),
        ([0.5, 0.5], [-0.5, 1.5], {"target_kind": "probs"}, "target: row 0, column 0 is -0.5"),
        ([], [], {}, "at least one row and one class"),
        ([0.0, 1.0], [0.0], {}, "they must agree"),
        ([0.0], [0.0], {"reduction": "avg"}, "'avg' is not one of none, sum, mean, batchmean"),
        ([0.0], [0.0], {"digits": 0}, "1 or more"),
        ([0.0], [0.0], {"input_kind": "odds"}, "'odds' is not one of"),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), {}, "expected a floating dtype, got torch.int64"),
        ([-math.inf, -math.inf], [0.0, 0.0], {}, "-inf in every column"),
    ],
)
def test_bad_input_is_refused_by_name_and_place(input, target, options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        exact_kl(input, target, **options)


def test_what_cannot_be_settled_is_an_error_with_the_radius() -> None:
    # 2 log 2 + log(1/4) is exactly 0, which no precision can show.
    with pytest.raises(UsageError, match="KL is within"):
        exact_kl([1.0, 4.0], [2.0, 1.0], input_kind="probs", target_kind="probs")


def test_the_reference_imports_no_torch_and_leaves_mpmath_as_it_was() -> None:
    code = (
        "import mpmath; mpmath.mp.prec = 77; from audit.reference.exact import exact_kl;"
        "exact_kl([0., 1.], [1., 0.]); import sys; print('torch' in sys.modules, mpmath.mp.prec)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "77"]
