"""How exact_kl is used: its reductions, the numbers it returns, what it leaves alone, and what it refuses."""

import decimal
import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal

import mpmath
import numpy as np
import pytest
import torch
from definition import CANCELLING, INF, PROBS, TINY, in_decimal, relative_difference

from audit import exact_kl
from audit.base.usage import UsageError
from audit.reference import oracle


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_target_mass_where_the_input_has_none_is_infinite(reduction):
    x, y = [[0.0, -INF], [0.0, 1.0]], [[0.0, -1e300], [0.0, 1.0]]
    value = exact_kl(x, y, reduction=reduction)
    assert value == ([INF, 0] if reduction == "none" else INF)
    assert exact_kl([0.5, 0.0], [0.5, TINY], **PROBS, reduction=reduction) == INF


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


def test_of_no_row_there_is_no_value_and_their_sum_is_0():
    none = np.ones((0, 3))
    assert exact_kl(none, none) == [] and exact_kl(none, none, reduction="sum") == 0


def test_integers_are_taken_exactly_however_large():
    small = exact_kl([1, 0], [0, 2])
    assert exact_kl([2**53 + 1, 2**53], [-(2**60), 2 - 2**60]) == small
    assert exact_kl(torch.tensor([[2**62 + 1, 2**62]]), np.array([[-(2**62), 2 - 2**62]])) == [small]


def test_each_thread_has_a_context_of_its_own():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(oracle.context).result() is not oracle.context() is oracle.context()


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
    assert oracle.context() is not mpmath.mp
    assert oracle.context().prec == mpmath.MPContext().prec


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
        ([], [], {}, r"at least one class.*\(0,\)"),
        ([[], []], [[], []], {}, r"at least one class.*\(2, 0\)"),
        (np.ones((0, 3)), np.ones((0, 3)), {"reduction": "mean"}, r"no row in shape \(0, 3\)"),
        ([0.0, 1], [0.0, 1, 2], {}, r"\(2,\) and target \(3,\)"),
        ([[0.0, 1]], [0.0, 1], {}, r"\(1, 2\) and target \(2,\)"),
        ([[[]]], [[[]]], {}, r"expected shape.*\(1, 1, 0\)"),
        (3.0, 3.0, {}, r"expected shape.*\(\)"),
        ([0.0, 1], [0.0, 1], {"input_kind": "softmax"}, r"input_kind 'softmax'.*logits, log_probs, probs"),
        ([0.0, 1], [0.0, 1], {"target_kind": None}, r"target_kind None"),
        ([0.0, 1], [0.0, 1], {"reduction": "max"}, r"reduction 'max'.*none, sum, mean, batchmean"),
        ([0.0, 1], [0.0, 1], {"digits": 0}, r"digits: .*1 or more, got 0"),
        ([0.0, 1], [0.0, 1], {"digits": 50.0}, r"digits: .*got 50.0"),
        ([0.0, 1], [1.0, 0], {"digits": 5_000}, r"do not settle 5000 digits.*ask for fewer"),
        ([0.0, 1], [1.0, 0], {"digits": 10**400}, r"digits: at most 100,000"),
        ([0.0, 1], [1.0, 0], {"input_kind": np.array(["probs"])}, r"input_kind .*logits, log_probs, probs"),
        ([0.0, 1], np.ma.array([0.0, 1], mask=[0, 1]), {}, r"target: .*without a mask"),
        (torch.eye(2).to_sparse(), torch.eye(2), {}, r"input: expected a dense tensor"),
        (torch.empty(2, 2, device="meta"), torch.eye(2), {}, r"input: expected a dense tensor"),
    ],
)
def test_wrong_usage_is_one_line_that_names_what_was_given(input, target, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        exact_kl(input, target, **options)
    assert "\n" not in str(caught.value)
