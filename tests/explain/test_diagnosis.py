"""diagnose names every mistake that shows in the tensors, and raises no false alarm."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor, log_softmax, softmax
from torch.nn import functional as F

import audit
from audit.base.formats import FORMATS
from tests.judge.test_bounds import problems

SHAPES = [(16, 10), (4, 3, 50), (8, 100)]


def top(t: Tensor, k: int, nothing: float) -> Tensor:
    """All but the k largest classes of a row are `nothing`."""
    return t.masked_fill(t < t.topk(k, -1).values[..., -1:], nothing)


def nucleus(t: Tensor, nothing: float) -> Tensor:
    """All but the large probabilities are `nothing`, which leaves a row that is sure of its class whole."""
    return t.masked_fill(t < t.amax(-1, keepdim=True) / 2, nothing)


def with_sure_rows(t: Tensor) -> Tensor:
    rows = t.reshape(-1, t.shape[-1]).clone()
    rows[-1] = 2e3 * (torch.arange(t.shape[-1]) == 1)
    return rows.reshape(t.shape)


def without(t: Tensor, *classes: int) -> Tensor:
    return t.index_fill(-1, torch.tensor(classes), -torch.inf)


def with_empty_rows(t: Tensor) -> Tensor:
    return t.index_fill(0, torch.arange(1, len(t), max(1, len(t) - 2)), 0)


def with_raw_rows(t: Tensor) -> Tensor:
    return torch.cat([log_softmax(t, -1)[1:], 5 + t[:1]])


def one_hot(t: Tensor) -> Tensor:
    return F.one_hot(t.argmax(-1), t.shape[-1]).to(t.dtype)


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
        lambda x, y: (log_softmax(x, -1), softmax(y, -1) * 0, {}),
        lambda x, y: (log_softmax(x, -1), log_softmax(y, -1) - torch.inf, {"log_target": True}),
    ],
    "truncated": [
        lambda x, y: (log_softmax(x, -1), top(softmax(y, -1), 3, 0.0), {}),
        lambda x, y: (log_softmax(x, -1), top(log_softmax(y, -1), 3, -torch.inf), {"log_target": True}),
        lambda x, y: (top(log_softmax(x, -1), 3, -torch.inf), softmax(y, -1), {}),
        lambda x, y: (log_softmax(x, -1), nucleus(softmax(with_sure_rows(y), -1), 0.0), {}),
        lambda x, y: (nucleus(softmax(with_sure_rows(x), -1), 0.0).log(), softmax(y, -1), {}),
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
    "unnormalised_target": [
        lambda x, y: (log_softmax(x, -1), 0.5 * softmax(y, -1), {}),
        lambda x, y: (log_softmax(x, -1), 0.9 * one_hot(y), {}),
    ],
    "unnormalised_input": [
        lambda x, y: ((0.5 * softmax(x, -1)).log(), softmax(y, -1), {}),
        lambda x, y: (torch.sigmoid(x).log(), torch.sigmoid(y), {}),
        lambda x, y: (with_raw_rows(x), softmax(y, -1), {}),
    ],
    "double_softmax": [lambda x, y: (log_softmax(softmax(2 * x, -1), -1), softmax(y, -1), {})],
    "nan_in_data": [lambda x, y: (log_softmax(x / 0 * 0, -1), softmax(y, -1), {})],
    "infinite": [
        lambda x, y: (log_softmax(without(x, 1), -1), softmax(y, -1), {}),
        lambda x, y: (softmax(-math.log(torch.finfo(x.dtype).smallest_normal) * x, -1).log(), softmax(y, -1), {}),
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


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for one another take longer than small tensors do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("verdict", MISTAKES)
def test_a_mistake_is_named(verdict: str, dtype: str) -> None:
    wrong = []
    for seed in range(20):
        for shape in SHAPES:
            for form, make in enumerate(MISTAKES[verdict]):
                if verdict == "double_softmax" and shape[-1] > 10 and dtype in ("float16", "bfloat16"):
                    continue  # the probabilities of so many classes are below the roundoff of their logarithms
                x, y = logits(dtype, seed, shape)
                input, target, options = make(x, y)
                if "mask" in options:
                    options["mask"] = options["mask"].view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1])
                diagnosis = audit.diagnose(input, target, **options)
                if diagnosis.verdict != verdict:
                    wrong.append(f"form {form}, seed {seed}, {shape}: {diagnosis}")
    assert not wrong, f"{len(wrong)}, such as {wrong[0]} ... {wrong[-1]}"


FINE = ("sound", "rounding", "identical")  # what may be said of a call without a mistake


def sound_calls(seed: int) -> Iterator[tuple[str, str, Tensor, Tensor, bool]]:
    for family, dtype, x, y in problems([2, 3, 10, 300], seed):
        for target, log_target in ((softmax(y, -1), False), (log_softmax(y, -1), True)):
            for rows in (slice(0, 1), slice(1, 3), slice(None)):
                yield family, dtype, log_softmax(x, -1)[rows], target[rows], log_target


def no_alarm(seed: int) -> int:
    alarms, calls = [], 0
    for family, dtype, input, target, log_target in sound_calls(seed):
        # torch's softmax rounds its sum to the half format, which is more than a sound one may be off.
        if dtype not in ("float16", "bfloat16") or "one_hot" not in family:
            diagnosis = audit.diagnose(input, target, log_target=log_target)
            alarms += [f"{family} {dtype} {tuple(input.shape)}: {diagnosis}"] if diagnosis.verdict not in FINE else []
            calls += 1
    assert not alarms, f"{len(alarms)} of {calls}, such as {alarms[0]} ... {alarms[-1]}"
    return calls


def test_sound_calls_raise_no_alarm() -> None:
    assert no_alarm(9) > 900


def test_terms_that_cancel_exactly_are_a_loss_of_0() -> None:
    input, target = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.5]])
    diagnosis = audit.diagnose(input, target, reduction="sum", log_target=True)
    assert diagnosis.exact == 0.0


@pytest.mark.slow
def test_five_thousand_sound_calls_raise_no_alarm() -> None:
    assert sum(no_alarm(seed) for seed in range(6)) > 5_000


def generated(seed: int) -> tuple[Tensor, Tensor, dict[str, Any], dict[str, Any]]:
    """A call, sound or not, of a tensor of one to four dimensions, its options, and the names that a remedy may use."""
    generator = np.random.default_rng(seed)
    shape = (*generator.integers(1, 4, generator.integers(0, 4)), generator.integers(3, 13))
    dtype = getattr(torch, generator.choice(list(FORMATS)))
    x, y = (torch.tensor(generator.standard_normal(shape) * generator.choice([1, 5])).to(dtype) for _ in "xy")
    if generator.random() < 0.3:
        x = (y.double() + 10.0 ** generator.uniform(-9, -1) * x.double()).to(dtype)
    forms = [make for makes in MISTAKES.values() for make in makes]
    input, target, options = forms[generator.integers(len(forms))](x, y)
    dim = int(generator.integers(-len(shape), len(shape)))
    own = options.pop("dim", -1)
    given = [t.movedim(own, dim) if t.dim() == x.dim() else t for t in (input, target)]
    logits_ = [t[..., : input.movedim(own, -1).shape[-1]].movedim(-1, dim) for t in (x, y)]
    options |= {"dim": dim, "reduction": str(generator.choice(["none", "sum", "mean", "batchmean"]))}
    options.pop("mask", None)
    if generator.random() < 0.2:
        mask = torch.tensor(generator.random(shape[:-1]) < 0.7)
        options |= {"mask": mask} if mask.any() else {}
    names = {"input": given[0], "target": given[1], "input_logits": logits_[0], "target_logits": logits_[1]}
    return *given, options, names | {"mask": options.get("mask"), "F": F, "audit": audit, "torch": torch}


def true_kl(x: Tensor, y: Tensor, dim: int, keep: Tensor) -> float:
    """The mean over rows of KL(softmax(y) || softmax(x)), exactly."""
    rows = [t.double().movedim(dim, -1).reshape(-1, t.shape[dim])[keep.flatten()] for t in (x, y)]
    return float(audit.exact_kl(*rows, reduction="batchmean", digits=20))


def numbers(t: Tensor) -> list[mpf]:
    return [mpf(v) for v in t.double().flatten().tolist()]


@mp.workprec(200)
def check(seed: int) -> str:
    """Recomputes every number that the diagnosis of a generated call says, and runs the call that it recommends."""
    x, y, options, names = generated(seed)
    diagnosis = audit.diagnose(x, y, **options)
    said, dim, log_target = str(diagnosis), options["dim"], options.get("log_target", False)
    rows = x.numel() // x.shape[dim]
    divisor = {"none": 1, "sum": 1, "mean": x.numel(), "batchmean": len(x)}[options["reduction"]]
    keep = options.get("mask", torch.ones(x.movedim(dim, -1).shape[:-1], dtype=torch.bool))
    if diagnosis.verdict != "class_indices":
        a, b = numbers(x), numbers(y)
        weights = [mp.exp(v) if log_target else v for v in b]
        if any(map(mp.isnan, [*a, *weights])) or min(weights) < 0:
            assert diagnosis.exact is None
        else:
            logs = b if log_target else [mp.log(v) if v else mpf("-inf") for v in b]
            terms = [p * (l - q) for p, l, q in zip(weights, logs, a, strict=True) if p]
            assert diagnosis.exact == pytest.approx(float(mp.fsum(terms) / divisor), rel=1e-9, abs=1e-300), said
        empty = (y == 0).movedim(dim, -1).all(-1) | (y == -torch.inf).movedim(dim, -1).all(-1)
        keep = keep & ~empty if (keep & ~empty).any() else keep
        if match := re.search(
            r"mass is (\S+) less than the input's, and the formula on them is exactly (\S+)\.\s", said
        ):
            counted = [t.movedim(dim, -1)[keep].flatten() for t in (x, y)]
            less = mp.fsum(map(mp.exp, numbers(counted[0]))) - mp.fsum(
                map(mp.exp, numbers(counted[1])) if log_target else numbers(counted[1])
            )
            assert float(match[1]) == pytest.approx(float(less), rel=1e-2) and float(match[1]) > 0
            assert float(match[2]) == pytest.approx(diagnosis.exact, rel=1e-2) and diagnosis.exact < 0
        if "not below 0" in said:
            assert diagnosis.value < 0 <= mp.fsum(terms)
    if match := re.search(r"the sum of (\d+) rows by (\d+); the mean over (\d+) rows, (\S+),", said):
        assert [*map(int, match.groups()[:3])] == [rows, divisor, int(keep.sum())], said
        assert float(match[4]) == pytest.approx(diagnosis.kl, rel=1e-5)
    if "along dim 1: give dim=1" in said:
        dim, keep = 1, torch.ones(x.movedim(1, -1).shape[:-1], dtype=torch.bool)
    if diagnosis.kl is not None and diagnosis.verdict in (*FINE, "mixed_dtypes", "padding"):
        target = y.double() if log_target else y.double().log()
        assert diagnosis.kl == pytest.approx(true_kl(x, target, dim, keep), rel=1e-3, abs=1e-26), said
    if diagnosis.call:
        got = eval(diagnosis.call, dict(names))
        if diagnosis.verdict == "class_indices":
            classes = y.argmax(dim) if y.shape == x.shape else y
            one_hot = F.one_hot(classes, x.shape[dim]).movedim(-1, dim)
            truth = true_kl(names["input_logits"], one_hot.double().log(), dim, keep)
        elif "input_logits" in diagnosis.call:
            truth = true_kl(names["input_logits"], names["target_logits"], dim, keep)
        else:
            truth = diagnosis.kl
        u = FORMATS[str(got.dtype).removeprefix("torch.")].unit_roundoff
        # Of near rows the call of torch's gives a roundoff or two of the terms' sum, which is no less than 1.
        assert torch.isfinite(got) and float(got) == pytest.approx(truth, rel=max(0.01, 4 * u), abs=4 * u + 1e-9), said
    return diagnosis.verdict


def test_every_number_is_borne_out_and_every_call_gives_the_true_divergence() -> None:
    assert len({check(seed) for seed in range(400)}) >= 15


@pytest.mark.slow
def test_twenty_thousand_generated_calls() -> None:
    assert {check(seed) for seed in range(20_000)} >= MISTAKES.keys() - {"wrong_dim"}


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
