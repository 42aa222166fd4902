"""A kernel of one's own, judged in one call: what is sound passes, what is planted is found and named."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import audit
from audit.base.usage import UsageError
from audit.machine.plan import plan
from audit.paths import foreign
from audit.pipeline.loop import execute
from audit.publish.verdict import verdict

Kernel = Callable[[Tensor, Tensor], Tensor]


def torchs(x: Tensor, y: Tensor) -> Tensor:
    return F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="none").sum(-1)


def fused(x: Tensor, y: Tensor) -> Tensor:
    """Float32 inside, float64 for float64; the result in the logits' dtype."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    log_q, log_p = x.to(wide).log_softmax(-1), y.to(wide).log_softmax(-1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).to(x.dtype)


def check(kernel: Kernel, dtypes: str | list[str] | None = "float32", **options: object) -> audit.Verdict:
    return audit.check(kernel, profile="quick", dtypes=dtypes, devices="cpu", **options)  # type: ignore[arg-type]


def test_torchs_own_formula_is_sound_and_what_is_known_of_it_is_shared_with_its_reason() -> None:
    found = check(torchs, None)
    assert found.sound and set(found.findings["status"]) <= {"shared", "lossy"}
    nan = found.findings.query("symptom == 'not_a_number'")
    assert len(nan) and nan["reason"].str.contains("rule out").all()


def test_nan_where_torchs_path_gives_a_number_is_the_kernels_own() -> None:
    def nan_at_large(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(x.amax(-1) > 3, torch.nan, torchs(x, y))

    found = check(nan_at_large)
    assert not found.sound and "not_a_number" in set(found.findings.query("status == 'new'")["symptom"])


def test_a_dropped_tail_is_told_with_where_it_fails_and_passes_in_ten_lines_and_raised() -> None:
    def in_fours(x: Tensor, y: Tensor) -> Tensor:
        n = max(x.shape[1] // 4 * 4, min(x.shape[1], 2))
        return F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="none")[:, :n].sum(-1)

    with pytest.raises(AssertionError) as raised:
        audit.assert_sound(in_fours, profile="quick", dtypes="float32", devices="cpu")
    text = str(raised.value)
    assert text.startswith("in_fours is not sound") and len(text.splitlines()) <= 10
    fails, passes = (text.split(f"{word} at ")[1] for word in ("fails", "passes"))
    assert "10, 81 classes" in fails and {"2", "32", "64"} <= set(passes.splitlines()[0].split(", "))
    assert "times the bound; smallest: [" in text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_what_most_fused_kernels_promise_can_be_declared_and_is_held_to(dtype: str) -> None:
    def careless(x: Tensor, y: Tensor) -> Tensor:
        return torchs(x.half(), y.half()).to(x.dtype) if x.dtype != torch.float16 else torchs(x, y)

    assert check(fused, dtype, rounding=audit.FUSED).sound
    assert not check(careless, dtype, rounding=audit.FUSED).sound


def test_a_dtype_it_does_not_take_is_said_and_fails_where_it_was_asked_for() -> None:
    def no_double(x: Tensor, y: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise TypeError("no double")
        return fused(x, y)

    every, asked = check(no_double, None), check(no_double, ["float64"])
    assert every.sound and "not taken: float64 (TypeError: no double)" in str(every)
    assert not asked.sound


def test_a_result_in_a_coarser_dtype_is_named_as_that() -> None:
    def single(x: Tensor, y: Tensor) -> Tensor:
        return fused(x.float(), y.float())

    found = check(single, "float64")
    assert not found.sound and "narrow_result" in str(found)


@pytest.mark.parametrize("degree", [1, 4])
def test_a_temperature_moves_what_is_compared_whether_or_not_its_square_is_a_factor(degree: int) -> None:
    def tempered(x: Tensor, y: Tensor) -> Tensor:
        return degree * fused(x / 2, y / 2)

    assert check(tempered, temperature=2.0).sound
    assert not check(tempered).sound
    assert not check(fused, temperature=2.0).sound
    with pytest.raises(UsageError, match="power of two"):
        check(tempered, temperature=3.0)


@pytest.mark.parametrize(("degree", "said"), [(0, "without its square as a factor"), (2, "times the square of it")])
def test_a_temperature_is_tried_where_the_kernel_runs_and_what_was_seen_is_said(degree: int, said: str) -> None:
    def of_halves(x: Tensor, y: Tensor) -> Tensor:
        assert x.dtype == torch.bfloat16, "halves alone"
        return 2.0**degree * fused(x / 2, y / 2)

    found = check(of_halves, "bfloat16", rounding=audit.FUSED, temperature=2.0)
    assert found.sound and f"at temperature 2, judged as the divergence of the quotients {said}" in str(found)

    def never(x: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this device")

    assert "RuntimeError: no kernel for this device" in str(check(never, temperature=2.0))


def test_what_is_acknowledged_is_counted_in_the_verdict() -> None:
    def halved(x: Tensor, y: Tensor) -> Tensor:
        return fused(x, y) / 2

    tables = execute(plan("quick", ["random_scale1"], [halved], "float32", "cpu")).tables
    findings = tables["findings"].assign(status="acknowledged")
    known = verdict({**tables, "findings": findings}, "halved", "log_softmax")
    assert known.startswith(f"halved is sound but for {findings['results'].sum()} results acknowledged: 16 results")
    assert "accurate" not in known


def test_a_kernel_that_hangs_at_some_width_fails_there_and_not_where_it_was_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hangs(x: Tensor, y: Tensor) -> Tensor:
        if x.shape[1] == 81:
            time.sleep(30)
        return fused(x, y)

    monkeypatch.setattr("audit.machine.devices.LIMIT_SECONDS", 0.5)
    cases = ["two_classes", "random_64x81", "random_scale1"]
    findings = execute(plan("quick", cases, [hangs], "float32", "cpu")).tables["findings"]
    (finding,) = findings[findings["symptom"] == "not_computed"].to_dict("records")
    assert (finding["fails_at"], finding["results"], finding["cases"]) == ("81", 64, "random_64x81")


def test_a_reduced_kernel_is_judged_with_its_gradient() -> None:
    def batchmean(x: Tensor, y: Tensor) -> Tensor:
        return fused(x, y).mean()

    def mean_of_a_class(x: Tensor, y: Tensor) -> Tensor:
        return fused(x, y).sum() / x.numel()

    assert check(batchmean, reduction="batchmean").sound
    wrong = check(mean_of_a_class, reduction="batchmean")
    assert not wrong.sound and len(wrong.findings.query("symptom == 'beyond_bound'"))
    assert set(check(batchmean, reduction="batchmean").gradients["side"]) == {"input", "target"}


class Backward(torch.autograd.Function):
    """q - p for the input alone, wrong as `defect` has it."""

    defect = ""
    calls = 0

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.defect, ctx.calls = Backward.defect, 0
        return fused(x.detach(), y.detach())

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, y = ctx.saved_tensors
        ctx.calls += 1
        if ctx.defect == "second time" and ctx.calls > 1:
            upstream = 2 * upstream
        if ctx.defect == "target detached" and not ctx.needs_input_grad[1]:
            upstream = 2 * upstream
        if ctx.defect == "expanded" and upstream.stride() == (0,):
            upstream = upstream / len(x)
        if ctx.defect == "scaled" and upstream.max() > 2:
            upstream = upstream.clamp(max=100)
        gradient = upstream[:, None] * (x.softmax(-1) - y.softmax(-1))
        if ctx.defect == "middle rows":
            gradient[1:-1] = 0
        log = y.log_softmax(-1) - x.log_softmax(-1)
        p = y.softmax(-1)
        other = upstream[:, None] * p * (log - (p * log).sum(-1, keepdim=True))
        return gradient, other if ctx.needs_input_grad[1] else None


@pytest.mark.parametrize("defect", ["", "second time", "target detached", "expanded", "scaled", "middle rows"])
def test_a_gradient_that_is_wrong_in_one_use_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backward, "defect", defect)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return Backward.apply(x, y)

    found = check(kernel)
    assert found.sound == (defect == ""), str(found)
    if defect:
        assert "input_gradient_beyond_bound" in str(found)


def test_no_gradient_at_all_is_said() -> None:
    def no_gradient(x: Tensor, y: Tensor) -> Tensor:
        return fused(x.detach(), y.detach())

    assert "it has no gradient" in str(check(no_gradient))


SEEN: list[int] = []


def after_half_the_classes(x: Tensor, values: Tensor) -> Tensor:
    """Twice the values where the call before had half as many classes."""
    SEEN.append(x.shape[1])
    return values * (1 + (SEEN[-2:-1] == [x.shape[1] // 2]))


EXECUTION: dict[str, Kernel] = {
    "strided": lambda x, y: torchs(*(torch.as_strided(t, t.shape, (t.shape[1], 1)) for t in (x, y))),
    "views with an offset": lambda x, y: torchs(*(torch.as_strided(t, t.shape, t.stride(), 0) for t in (x, y))),
    "in batches of 7": lambda x, y: torchs(x, y) * (1 + (len(x) == 7)),
    "after another shape": lambda x, y: after_half_the_classes(x, torchs(x, y)),
    "with gradients": lambda x, y: torchs(x, y) * (1 + (x.requires_grad and torch.is_grad_enabled())),
}


@pytest.mark.parametrize("name", EXECUTION)
def test_a_value_that_depends_on_how_it_is_called_is_found_and_said(name: str) -> None:
    SEEN[:] = []

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return EXECUTION[name](x, y)

    found = check(kernel)
    assert not found.sound
    told = found.findings.query("symptom == 'changes' and status == 'new'")["note"]
    assert told.str.contains(name).any(), found.findings["note"].tolist()


def test_a_kernel_made_by_exec_is_judged() -> None:
    made: dict[str, Kernel] = {}
    exec("def halved(x, y):\n    return (y.softmax(-1) * (y.log_softmax(-1) - x.log_softmax(-1))).sum(-1) / 2", made)
    found = check(made["halved"])
    assert not found.sound and "halved is not sound" in str(found)


def test_several_kernels_are_judged_in_one_call() -> None:
    def half(x: Tensor, y: Tensor) -> Tensor:
        return torchs(x, y) / 2

    found = audit.check([fused, half], profile="quick", dtypes="float32", devices="cpu")
    assert not found.sound and set(found.findings.query("status == 'new'")["path"]) == {"half"}
    assert str(found).count("sound: ") == 2


def test_a_function_of_arrays_is_judged_as_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def numpys(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        def log_softmax(t: np.ndarray) -> np.ndarray:
            t = t.astype(np.float64)
            t = t - t.max(-1, keepdims=True)
            return t - np.log(np.exp(t).sum(-1, keepdims=True))

        log_p, log_q = log_softmax(y), log_softmax(x)
        with np.errstate(invalid="ignore"):
            return np.where(log_p > -np.inf, np.exp(log_p) * (log_p - log_q), 0.0).sum(-1).astype(x.dtype)

    kernel = audit.from_numpy(numpys)
    assert kernel.__name__ == "numpys"
    assert check(kernel, ["float16", "float32", "float64"]).sound
    monkeypatch.setattr(foreign, "find_spec", lambda name: None)
    with pytest.raises(TypeError, match="ml_dtypes"):
        kernel(torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2, dtype=torch.bfloat16))


def test_the_exact_value_of_a_tempered_kernel_is_that_of_the_logits_over_it() -> None:
    """So that `check` may feed it T times the logits: KL at temperature T of (T x, T y) is KL of (x, y)."""
    x, y = [0.25, -1.5, 2.0], [1.0, 0.5, -0.75]
    direct = audit.exact_kl(x, y)
    divided = audit.exact_kl([4 * v / 4 for v in x], [4 * v / 4 for v in y])
    assert math.isclose(float(direct), float(divided), rel_tol=1e-15)
