"""diagnose names every mistake that shows in the tensors, raises no false alarm, and says no number that is not so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor, log_softmax, softmax
from torch.nn import functional as F

import audit
from audit.base.formats import FORMATS
from tests.explain.mistakes import MISTAKES, SHAPES, logits
from tests.judge.test_bounds import problems


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
    if match := re.search(r"the sum of (\d+) rows(?: by (\d+))?; the mean over (\d+) rows, (\S+),", said):
        assert [*map(int, match.groups("1")[:3])] == [rows, divisor, int(keep.sum())], said
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
