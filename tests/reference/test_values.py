"""Tensors, arrays and nested lists become exactly the numbers they hold, or an error."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from audit import exact_kl
from audit.base.usage import UsageError
from audit.reference.values import as_rows, check_kind, exact_values

INF = math.inf
# Extremes that every format has, and what 0.1 is in each: (format, 0.1, largest, smallest subnormal).
FORMATS = [
    ("float16", Fraction(1638, 2**14), Fraction(65504), Fraction(1, 2**24)),
    ("bfloat16", Fraction(205, 2**11), Fraction(255 * 2**120), Fraction(1, 2**133)),
    ("float32", Fraction(13421773, 2**27), Fraction((2**24 - 1) * 2**104), Fraction(1, 2**149)),
    ("float64", Fraction(0.1), Fraction((2**53 - 1) * 2**971), Fraction(1, 2**1074)),
]


@pytest.mark.parametrize(("dtype", "tenth", "largest", "smallest"), FORMATS)
def test_tensors_are_taken_with_the_values_of_their_dtype(dtype, tenth, largest, smallest):
    torch = pytest.importorskip("torch")
    row = torch.tensor([0.1, float(largest), float(smallest), -0.0], dtype=getattr(torch, dtype), requires_grad=True)
    values = exact_values(row, "input")
    assert values.dtype == np.float64
    assert [Fraction(v) for v in values.tolist()] == [tenth, largest, smallest, 0]
    assert math.copysign(1, values[3]) == -1


@pytest.mark.parametrize(("dtype", "tenth", "largest", "smallest"), FORMATS)
def test_arrays_are_taken_with_the_values_of_their_dtype(dtype, tenth, largest, smallest):
    kind = getattr(pytest.importorskip("ml_dtypes"), dtype) if dtype == "bfloat16" else np.dtype(dtype)
    array = np.array([0.1, float(largest), float(smallest), -INF], dtype=kind)
    values = exact_values(array, "input")
    assert [Fraction(v) for v in values.tolist()[:3]] == [tenth, largest, smallest]
    assert values[3] == -INF


def test_byte_order_and_strides_do_not_matter():
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert exact_values(array.astype(">f4"), "input").tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    "rows", [[[1, 2], [3, 4]], [(1.0, 2.0), (3.0, 4.0)], [np.array([1.0, 2.0], np.float16), np.array([3.0, 4.0])]]
)
def test_nested_sequences_of_numbers_are_rows(rows):
    assert exact_values(rows, "input").tolist() == [[1, 2], [3, 4]]


def test_exact_numbers_of_other_types_are_taken():
    assert exact_values([Fraction(1, 4), mpmath.mpf(3), np.float32(0.1), 2**60], "input").tolist() == [
        0.25,
        3.0,
        13421773 / 2**27,
        2.0**60,
    ]


@pytest.mark.parametrize("dtype", ["bool", "complex128", "object", "str"])
def test_arrays_that_are_not_numbers_are_refused(dtype):
    with pytest.raises(UsageError, match="target: expected a floating or an integer dtype, got"):
        exact_kl([0.0, 1.0], np.array([0, 1]).astype(dtype))


@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_tensors_that_are_not_numbers_are_refused(dtype):
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match=f"input: expected a floating or an integer dtype, got {dtype}"):
        exact_kl(torch.zeros(2, dtype=getattr(torch, dtype)), [0.0, 1.0])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_integers_are_taken_exactly_or_not_at_all(dtype):
    torch = pytest.importorskip("torch")
    numbers = [[3, 1, 2], [0, 2, 2]]
    for made in (np.array(numbers, dtype), torch.tensor(numbers, dtype=getattr(torch, dtype))):
        assert exact_kl(made, [[1.0, 0.0, 0.0]] * 2) == exact_kl(numbers, [[1.0, 0.0, 0.0]] * 2)
    if dtype == "int64":
        for made in (np.array([2**53 + 1]), torch.tensor([2**53 + 1])):
            with pytest.raises(UsageError, match="9007199254740993 is not a binary64 number"):
                exact_values(made, "input")


@pytest.mark.parametrize("values", [[[1, 2], [3]], [["1", "2"]], [None, 1.0], "12", [1.0, [2.0]], [1j, 2.0]])
def test_what_is_not_rows_of_numbers_is_refused(values):
    with pytest.raises(UsageError, match="input: expected rows of numbers, all of one length"):
        exact_values(values, "input")


@pytest.mark.parametrize("value", [2**53 + 1, Fraction(1, 3), np.longdouble(1) / 3])
def test_a_number_between_two_binary64_numbers_is_refused(value):
    values = np.array([value]) if isinstance(value, np.longdouble) else [value]
    if float(value) == value and isinstance(value, np.longdouble):
        pytest.skip("long double is binary64 here")
    with pytest.raises(UsageError, match=r"is not a binary64 number \(nearest: "):
        exact_values(values, "input")


def test_a_number_beyond_binary64_is_refused():
    with pytest.raises(UsageError, match="beyond the range of binary64"):
        exact_values([10**400], "input")


@pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 1, 2), (2, 2, 2, 2)])
def test_leading_dimensions_are_rows(shape):
    rows, given = as_rows(np.arange(math.prod(shape), dtype=float).reshape(shape), "input", "logits")
    assert rows.shape == (math.prod(shape) // 2, 2) and given == shape
    x, y = np.random.default_rng(1).standard_normal((2, *shape))
    each = exact_kl(x, y)
    alone = [exact_kl(*pair) for pair in zip(x.reshape(-1, 2), y.reshape(-1, 2), strict=True)]
    assert (each if len(shape) > 1 else [each]) == alone
    for reduction, divisor in (("sum", 1), ("mean", x.size), ("batchmean", shape[0])):
        value = float(exact_kl(x, y, reduction=reduction))
        assert value == pytest.approx(float(sum(alone)) / divisor, rel=1e-14)


@pytest.mark.parametrize("kind", ["logits", "log_probs"])
def test_minus_infinity_is_a_logarithm_of_no_mass(kind):
    check_kind(np.array([[0.0, -INF]]), kind, "input")


def test_zeros_alone_are_probabilities_taken_as_they_are():
    check_kind(np.array([[0.0, -0.0]]), "probs", "target")
    assert exact_kl([-INF, 1.0], [0.0, 0.0], target_kind="probs") == 0
