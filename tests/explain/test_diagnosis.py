"""diagnose names every mistake that shows in the tensors, and raises no false alarm."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, log_softmax, softmax
from torch.nn import functional as F

import audit
from audit.base.formats import FORMATS

SHAPES = [(16, 10), (4, 3, 50), (8, 100)]


def top(t: Tensor, k: int, nothing: float) -> Tensor:
    """All but the k largest classes of a row are `nothing`."""
    return t.masked_fill(t < t.topk(k, -1).values[..., -1:], nothing)


def without(t: Tensor, *classes: int) -> Tensor:
    return t.index_fill(-1, torch.tensor(classes), -torch.inf)


def with_empty_rows(t: Tensor) -> Tensor:
    return t.index_fill(0, torch.tensor([1, len(t) - 1]), 0)


# verdict -> what logits x and y are given as: input, target and the options of the call
MISTAKES: dict[str, list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor, dict[str, Any]]]]] = {
    "sound": [
        lambda x, y: (log_softmax(x, -1), softmax(y, -1), {}),
        lambda x, y: (log_softmax(x, -1), log_softmax(y, -1), {"log_target": True}),
        lambda x, y: (log_softmax(x.movedim(-1, 0), 0), softmax(y.movedim(-1, 0), 0), {"dim": 0}),
    ],
    "identical": [
        lambda x, y: (log_softmax(y, -1), softmax(y, -1), {}),
        lambda x, y: (log_softmax(y, -1), log_softmax(y, -1), {"log_target": True}),
    ],
    "mixed_dtypes": [
        lambda x, y: (log_softmax(x.double(), -1), softmax(y.to(narrower(y.dtype)), -1), {}),
        lambda x, y: (log_softmax(x.double(), -1), log_softmax(y.to(narrower(y.dtype)), -1), {"log_target": True}),
    ],
    "eps_in_log": [
        lambda x, y: ((softmax(x, -1) + eps_that_shows(x)).log(), softmax(y, -1), {}),
        lambda x, y: (log_softmax(x, -1), (softmax(y, -1) + eps_that_shows(x)).log(), {"log_target": True}),
        lambda x, y: (softmax(20 * x, -1).clamp(min=1e-4).log(), softmax(y, -1), {}),
    ],
    "padding": [
        lambda x, y: (log_softmax(x, -1), with_empty_rows(softmax(y, -1)), {}),
        lambda x, y: (log_softmax(x, -1), softmax(y, -1), {"mask": torch.arange(len(x)) > 0}),
        lambda x, y: (
            log_softmax(x, -1),
            with_empty_rows(softmax(y, -1)).log(),
            {"log_target": True},
        ),
        lambda x, y: (with_empty_rows(log_softmax(x, -1)), with_empty_rows(softmax(y, -1)), {}),
    ],
    "truncated": [
        lambda x, y: (log_softmax(x, -1), top(softmax(y, -1), 3, 0.0), {}),
        lambda x, y: (log_softmax(x, -1), top(log_softmax(y, -1), 3, -torch.inf), {"log_target": True}),
        lambda x, y: (top(log_softmax(x, -1), 3, -torch.inf), softmax(y, -1), {}),
        lambda x, y: (log_softmax(top(x, 3, -torch.inf), -1), softmax(y, -1), {}),
        lambda x, y: (log_softmax(x, -1)[..., :4], softmax(y, -1)[..., :4], {}),
    ],
    "temperature": [
        lambda x, y: (log_softmax(x, -1) / 2, softmax(y, -1) / 2, {}),
        lambda x, y: (log_softmax(x, -1) / 4, softmax(y / 4, -1), {}),
        lambda x, y: (log_softmax(y / 2, -1), softmax(y, -1), {}),
        lambda x, y: (log_softmax(y, -1), log_softmax(y / 4, -1), {"log_target": True}),
    ],
    "class_indices": [
        lambda x, y: (log_softmax(x, -1), y.argmax(-1), {}),
        lambda x, y: (log_softmax(x, -1), F.one_hot(y.argmax(-1), y.shape[-1]), {}),
    ],
    "raw_logits": [lambda x, y: (x, y, {}), lambda x, y: (x, y, {"log_target": True})],
    "probs_as_input": [lambda x, y: (softmax(x, -1), softmax(y, -1), {})],
    "logits_as_input": [lambda x, y: (x, softmax(y, -1), {})],
    "logits_as_target": [lambda x, y: (log_softmax(x, -1), y, {})],
    "log_probs_without_log_target": [lambda x, y: (log_softmax(x, -1), log_softmax(y, -1), {})],
    "probs_with_log_target": [lambda x, y: (log_softmax(x, -1), softmax(y, -1), {"log_target": True})],
    "arguments_swapped": [lambda x, y: (softmax(y, -1), log_softmax(x, -1), {})],
    "wrong_dim": [
        lambda x, y: (log_softmax(x, 0), softmax(y, 0), {}),
        lambda x, y: (log_softmax(x, 0), log_softmax(y, 0), {"log_target": True}),
    ],
    "different_dims": [lambda x, y: (log_softmax(x, 0), softmax(y, -1), {})],
    "unnormalised_target": [lambda x, y: (log_softmax(x, -1), 0.5 * softmax(y, -1), {})],
    "double_softmax": [lambda x, y: (log_softmax(softmax(2 * x, -1), -1), softmax(y, -1), {})],
    "nan_in_data": [lambda x, y: (log_softmax(x / 0 * 0, -1), softmax(y, -1), {})],
    "infinite": [
        lambda x, y: (log_softmax(without(x, 1), -1), softmax(y, -1), {}),
    ],
    "impossible_class": [
        lambda x, y: (
            log_softmax(x, -1),
            log_softmax(without(y, 0, 1), -1),
            {"log_target": True},
        ),
        lambda x, y: (log_softmax(without(x, 1), -1), softmax(without(y, 1), -1), {}),
    ],
}


def narrower(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else dtype


def eps_that_shows(x: Tensor) -> float:
    """A power of ten that the format keeps beside x's probabilities, and which their sum shows."""
    return {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(x.dtype, 1e-6)


def logits(dtype: str, seed: int, shape: tuple[int, ...] = (16, 10)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator).to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("verdict", MISTAKES)
def test_a_mistake_is_named(verdict: str, dtype: str) -> None:
    wrong = []
    for seed in range(20):
        for shape in SHAPES:
            for form, make in enumerate(MISTAKES[verdict]):
                x, y = logits(dtype, seed, shape)
                input, target, options = make(x, y)
                if "mask" in options:
                    options["mask"] = options["mask"].view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1])
                diagnosis = audit.diagnose(input, target, **options)
                if diagnosis.verdict != verdict:
                    wrong.append(f"form {form}, seed {seed}, {shape}: {diagnosis}")
    assert not wrong, f"{len(wrong)}, such as {wrong[0]} ... {wrong[-1]}"


def test_the_value_is_torchs_and_the_exact_one_that_of_the_same_numbers() -> None:
    x, y = logits("float64", 3)
    for reduction in ("sum", "mean", "batchmean"):
        diagnosis = audit.diagnose(log_softmax(x, -1), softmax(y, -1), reduction=reduction)
        assert diagnosis.value == pytest.approx(
            F.kl_div(log_softmax(x, -1), softmax(y, -1), reduction=reduction).item(), rel=1e-14
        )
        assert diagnosis.exact == pytest.approx(diagnosis.value, rel=1e-12)


def test_a_negative_value_of_a_sound_call_is_explained_by_the_masses() -> None:
    for seed in range(50):
        x = logits("float32", seed, (1, 1000))[0]
        diagnosis = audit.diagnose(log_softmax(x, -1), softmax(x, -1), reduction="sum")
        assert diagnosis.verdict == "rounding"
        if diagnosis.value < 0:
            assert "mass" in str(diagnosis) and "kl_div_from_logits" in str(diagnosis)
            return
    pytest.fail("no negative value in 50 draws")


def test_other_dims_are_as_good_as_the_last() -> None:
    x, y = logits("float32", 4, (3, 10, 7))
    assert audit.diagnose(log_softmax(x, 1), softmax(y, 1), dim=1).verdict == "rounding"
    assert audit.diagnose(log_softmax(x, 1), softmax(y, 1)).verdict == "wrong_dim"


def test_it_says_when_it_cannot_tell() -> None:
    noise = logits("float32", 1)
    assert audit.diagnose(*noise).verdict == "cannot_tell"


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_format_that_a_side_was_computed_in_is_what_counts(dtype: str) -> None:
    """Neither a later cast to double nor two different formats make a call unsound."""
    for seed in range(20):
        x, y = logits(dtype, seed)
        for input, target in (
            (log_softmax(x, -1), softmax(y.double(), -1)),
            (log_softmax(x.float(), -1).double(), softmax(y.float(), -1).double()),
        ):
            assert audit.diagnose(input, target, reduction="batchmean").verdict == "rounding"


def test_arrays_and_lists_are_as_good_as_tensors() -> None:
    x, y = logits("float32", 5)
    assert audit.diagnose(log_softmax(x, -1).numpy(), softmax(y, -1).tolist()).verdict == "rounding"


def test_what_is_normalised_in_no_way_is_not_called_logits_where_nothing_is_positive() -> None:
    x, y = logits("float32", 6)
    for input in (softmax(x, -1).log2(), torch.sigmoid(x).log(), (softmax(x, -1) + 1e-3).log().clamp(max=0)):
        assert audit.diagnose(input, softmax(y, -1)).verdict == "unnormalised_input"


def test_maps_of_classes_along_dim_1() -> None:
    x, y = logits("float32", 7, (2, 5, 4, 4))
    diagnosis = audit.diagnose(log_softmax(x, 1), softmax(y, 1), dim=1, reduction="batchmean")
    torchs = F.kl_div(log_softmax(x, 1), softmax(y, 1), reduction="batchmean").item()
    assert diagnosis.verdict == "rounding" and diagnosis.value == pytest.approx(torchs, rel=1e-6)
    wrong = audit.diagnose(log_softmax(x, -1), softmax(y, -1), dim=1)
    assert wrong.verdict == "wrong_dim" and "log_softmax(input_logits, 1)" in wrong.call


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
