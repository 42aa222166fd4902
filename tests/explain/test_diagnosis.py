"""diagnose, call by call: what it says of each, what it refuses, and the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import log_softmax, softmax
from torch.nn import functional as F

import audit
from audit.base.formats import FORMATS
from tests.explain.mistakes import logits, top, with_empty_rows


def test_terms_that_cancel_exactly_are_a_loss_of_0() -> None:
    input, target = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.5]])
    diagnosis = audit.diagnose(input, target, reduction="sum", log_target=True)
    assert diagnosis.exact == 0.0


def test_the_value_is_torchs_and_the_exact_one_that_of_the_same_numbers() -> None:
    x, y = logits("float64", 3)
    for reduction in ("sum", "mean", "batchmean"):
        diagnosis = audit.diagnose(log_softmax(x, -1), softmax(y, -1), reduction=reduction)
        assert diagnosis.value == pytest.approx(
            F.kl_div(log_softmax(x, -1), softmax(y, -1), reduction=reduction).item(), rel=1e-14
        )
        assert diagnosis.exact == pytest.approx(diagnosis.value, rel=1e-12)


def test_a_negative_value_is_explained_by_the_masses_only_where_the_formula_is_negative() -> None:
    explained = set()
    for seed in range(60):
        x, y = logits("float32", seed, (1, 1000))
        for input, target in (
            (log_softmax(x, -1), softmax(x, -1)),
            (log_softmax(x, -1), softmax(x + 1e-3 * y, -1).bfloat16()),
        ):
            diagnosis = audit.diagnose(input, target, reduction="sum")
            assert diagnosis.verdict in ("identical", "mixed_dtypes")
            if diagnosis.value < 0:
                assert ("mass" in diagnosis.meaning) == (diagnosis.exact < 0), diagnosis
                assert ("arithmetic" in diagnosis.meaning) == (diagnosis.exact >= 0), diagnosis
                explained.add((diagnosis.verdict, diagnosis.exact < 0))
    assert explained >= {("identical", True), ("mixed_dtypes", False)}, explained


def test_other_dims_are_as_good_as_the_last() -> None:
    x, y = logits("float32", 4, (3, 10, 7))
    assert audit.diagnose(log_softmax(x, 1), softmax(y, 1), dim=1).verdict == "sound"
    assert audit.diagnose(log_softmax(x, 1), softmax(y, 1)).verdict == "wrong_dim"


def test_it_says_when_it_cannot_tell() -> None:
    sigmoids = torch.sigmoid(logits("float32", 1))
    assert audit.diagnose(*sigmoids).verdict == "cannot_tell"


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_format_that_a_side_was_computed_in_is_what_counts(dtype: str) -> None:
    """Neither a later cast to a wider format nor two different ones make a call unsound."""
    for seed in range(20):
        x, y = logits(dtype, seed)
        for input, target in (
            (log_softmax(x, -1), softmax(y.double(), -1)),
            (log_softmax(x.float(), -1).double(), softmax(y.float(), -1).double()),
            (log_softmax(x, -1).double(), softmax(y, -1).double()),
        ):
            assert audit.diagnose(input, target, reduction="batchmean").verdict == "sound"


def test_arrays_and_lists_are_as_good_as_tensors() -> None:
    x, y = logits("float32", 5)
    assert audit.diagnose(log_softmax(x, -1).numpy(), softmax(y, -1).tolist()).verdict == "sound"


def test_what_is_normalised_in_no_way_is_not_called_logits_where_nothing_is_positive() -> None:
    x, y = logits("float32", 6)
    for input in (softmax(x, -1).log2(), torch.sigmoid(x).log(), torch.zeros(16, 10)):
        assert audit.diagnose(input, softmax(y, -1)).verdict == "unnormalised_input"


def test_the_eps_is_named_and_the_base_of_a_logarithm() -> None:
    x, y = logits("float32", 6, (4, 1000))
    said = audit.diagnose((softmax(x, -1) + 1e-8).log(), softmax(y, -1))
    assert said.verdict == "eps_in_log" and "an eps of 1e-08" in said.evidence
    assert "to base 2." in audit.diagnose(softmax(x, -1).log2(), softmax(y, -1)).meaning


def test_maps_of_classes_along_dim_1() -> None:
    x, y = logits("float32", 7, (2, 5, 4, 4))
    diagnosis = audit.diagnose(log_softmax(x, 1), softmax(y, 1), dim=1, reduction="batchmean")
    torchs = F.kl_div(log_softmax(x, 1), softmax(y, 1), reduction="batchmean").item()
    assert diagnosis.verdict == "sound" and diagnosis.value == pytest.approx(torchs, rel=1e-6)
    wrong = audit.diagnose(log_softmax(x, -1), softmax(y, -1), dim=1)
    assert wrong.verdict == "wrong_dim" and "log_softmax(input_logits, 1)" in wrong.call
    forgotten = audit.diagnose(log_softmax(x, 1), softmax(y, 1))
    assert "along dim 1" in forgotten.meaning and forgotten.kl == pytest.approx(diagnosis.kl)


def test_sequences_get_the_true_divisor() -> None:
    x, y = logits("float32", 8, (4, 6, 50))
    for reduction, divisor in (("mean", 1200), ("batchmean", 4), ("sum", 1)):
        diagnosis = audit.diagnose(log_softmax(x, -1), softmax(y, -1), reduction=reduction)
        assert f"the sum of 24 rows by {divisor}; the mean over 24 rows, {diagnosis.kl:.6g}," in diagnosis.meaning
        assert diagnosis.value * divisor == pytest.approx(24 * diagnosis.kl, rel=1e-5)


def test_an_infinite_log_target_has_a_finite_divergence_and_a_call_that_gives_it() -> None:
    input, target = torch.log_softmax(torch.tensor([[1.0, 2, -1]]), -1), torch.tensor([[-torch.inf, -torch.inf, 0]])
    diagnosis = audit.diagnose(input, target, log_target=True, reduction="sum")
    assert diagnosis.verdict == "impossible_class" and np.isnan(diagnosis.value)
    assert diagnosis.exact == pytest.approx(-input[0, 2].item())
    assert eval(diagnosis.call, {"audit": audit, "input": input, "target": target}).item() == pytest.approx(
        diagnosis.kl
    )


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_row_that_is_no_distribution_is_named_but_a_row_of_logits_that_is_one_by_chance_is_not(dtype: str) -> None:
    x, y = logits(dtype, 9, (64, 2))
    wrong = log_softmax(x, -1).index_copy(0, torch.tensor([5]), 2 + x[5:6].abs())
    said = audit.diagnose(wrong, softmax(y, -1))
    assert said.verdict == "unnormalised_input"
    assert "63 of 64 rows of the input are distributions; row 5, counted from 0," in said.meaning
    assert audit.diagnose(x, y).verdict == "raw_logits"


def test_underflow_is_told_from_classes_that_were_cut_off() -> None:
    x, y = logits("float32", 10, (8, 50))
    said = audit.diagnose(softmax(100 * x, -1).log(), softmax(y, -1))
    assert said.verdict == "infinite" and "a softmax in float32 underflows" in said.meaning
    cut = audit.diagnose(log_softmax(top(x, 20, -torch.inf), -1), softmax(y, -1))
    assert cut.verdict == "truncated" and "underflows" not in cut.meaning


@pytest.mark.parametrize("shape", [(50,), (4, 50)])
def test_logits_whose_exponentials_overflow_are_logits(shape: tuple[int, ...]) -> None:
    x, y = (1_000 * t for t in logits("float32", 11, shape))
    for input in (x, -x, 1_000 + x, log_softmax(x, -1).clamp(min=-700).index_fill(-1, torch.tensor(0), torch.inf)):
        said = audit.diagnose(input, softmax(y / 1_000, -1))
        assert said.verdict == "logits_as_input"
    assert audit.diagnose(x, y).verdict == "raw_logits"
    assert audit.diagnose(log_softmax(x / 1_000, -1), y, log_target=True).verdict == "logits_as_target"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_nearly_flat_rows_of_few_classes_are_not_taken_for_a_softmax_of_a_softmax(dtype: str) -> None:
    for shape, spread in (((6, 7), 0.1), ((8, 5), 0.15), ((16, 7), 0.1), ((64, 3), 0.3)):
        for seed in range(20):
            x, y = logits(dtype, seed, shape)
            assert audit.diagnose(log_softmax(spread * x, -1), softmax(y, -1)).verdict == "sound"


def test_raw_logits_that_are_positive_have_the_divergence_of_logits() -> None:
    x, y = (t.abs() for t in logits("float64", 12))
    said = audit.diagnose(x, y)
    names = {"F": F, "audit": audit, "input_logits": x, "target_logits": y}
    assert said.verdict == "raw_logits" and said.kl == pytest.approx(eval(said.call, names).item(), rel=1e-9)


def test_classes_without_any_probability_get_a_call_that_takes_them() -> None:
    x, y = (t.index_fill(-1, torch.tensor([3, 7]), -torch.inf) for t in logits("float32", 13))
    for input, target in ((softmax(x, -1), log_softmax(y, -1)), (softmax(x, -1), softmax(y, -1))):
        said = audit.diagnose(input, target)
        given = {"input": input, "target": target, "input_logits": x, "target_logits": y, "audit": audit, "F": F}
        assert said.kl == pytest.approx(eval(said.call, given).item(), rel=1e-5)


def test_a_formula_of_numbers_that_are_none_has_no_exact_value() -> None:
    x = log_softmax(logits("float32", 14)[0], -1)
    for wrong in (torch.inf, torch.nan):
        input, target = x.index_fill(0, torch.tensor(0), wrong), x.exp().index_fill(0, torch.tensor(0), 0.0)
        assert audit.diagnose(input, target).exact is None


def test_what_fits_twice_is_said_twice() -> None:
    x, y = logits("float32", 8)
    both = audit.diagnose(softmax(x, -1), with_empty_rows(softmax(y, -1)))
    assert both.verdict == "probs_as_input" and "The target of 2 of 16 rows is empty." in both.meaning
    scaled = audit.diagnose(log_softmax(x, -1), softmax(y, -1) / 4)
    assert scaled.verdict == "unnormalised_target" and "divided by 4, a temperature" in scaled.meaning


@pytest.mark.parametrize(
    ("input", "target", "arguments", "complaint"),
    [
        (None, None, {}, "got NoneType"),
        (torch.zeros(0, 3), torch.zeros(0, 3), {}, "(0, 3)"),
        (torch.tensor(1.0), torch.tensor(1.0), {}, "()"),
        (torch.zeros(2, 3), torch.zeros(1, 3), {}, "(2, 3) and (1, 3)"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3), {}, "int64"),
        (torch.zeros(2, 3), torch.zeros(2, 3).to_sparse(), {}, "sparse"),
        (torch.zeros(2, 3, device="meta"), torch.zeros(2, 3), {}, "with numbers in it"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"dim": 2}, "dim 2"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"reduction": "average"}, "'average'"),
    ],
)
def test_what_is_no_call_of_kl_div_is_refused_in_words(input, target, arguments: dict, complaint: str) -> None:
    with pytest.raises(audit.UsageError) as raised:
        audit.diagnose(input, target, **arguments)
    assert complaint in str(raised.value)


def diagnose(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "audit", "diagnose", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_reads_a_file(tmp_path: Path) -> None:
    x, y = logits("float32", 2)
    file = tmp_path / "mine.npz"
    np.savez(file, input=softmax(x, -1), target=softmax(y, -1))
    answer = diagnose(tmp_path, str(file), "--reduction", "batchmean")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("probs_as_input: the loss is -")
    assert "log_softmax(input_logits, -1)" in answer.stdout


def test_the_command_reads_other_names_and_says_which_it_found(tmp_path: Path) -> None:
    x, y = logits("float32", 2)
    file = tmp_path / "mine.npz"
    np.savez(file, student=log_softmax(x, -1), teacher=softmax(y, -1))
    refused = diagnose(tmp_path, str(file))
    assert refused.returncode == 2 and "--input-name student --target-name teacher" in refused.stderr
    answer = diagnose(tmp_path, str(file), "--input-name", "student", "--target-name", "teacher")
    assert answer.returncode == 0 and answer.stdout.startswith("sound: "), answer.stderr


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return print, ("run",)

    file = tmp_path / "evil.pt"
    torch.save({"input": torch.zeros(2, 3), "target": Evil()}, file)
    answer = diagnose(tmp_path, str(file))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "run code" in answer.stderr and "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"input": np.zeros((2, 3))}, "named target"),
        ({"input": np.zeros((2, 3)), "target": np.zeros((2, 4))}, "shape"),
        ({"input": np.zeros((2, 3), int), "target": np.zeros((2, 3), int)}, "int64"),
    ],
)
def test_a_file_without_two_fitting_tensors_is_refused(tmp_path: Path, arrays: dict, complaint: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    answer = diagnose(tmp_path, str(tmp_path / "bad.npz"))
    assert answer.returncode == 2
    assert complaint in answer.stderr
