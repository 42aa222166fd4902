"""Every path, against the exact value and on a device that is not there."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import audit
from audit.errors import UsageError
from audit.formats import FORMATS
from audit.measure import measure
from audit.paths import Path, own_path, path, registered

PATHS = registered()
RAISING = {"loss_from_tensors", "log_softmax_from_tensor"}
COMPUTING = [p for p in PATHS if p.name not in RAISING and not p.absent]
# What leaves torch, or compiles, cannot be traced on a device that is not there.
UNTRACEABLE = {"compiled", "scipy_rel_entr", "scipy_kl_div", "scipy_entropy"}
TRACEABLE = [p for p in COMPUTING if p.name not in UNTRACEABLE]
MEANT = [p for p in COMPUTING if p.kind in ("kl", "identity")]


def name(path: Path) -> str:
    return f"{path.name}-{path.reduction}-{path.input_kind}-{path.target_kind}"


def pair(dtype: str, *kinds: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and target of the two kinds, logits by default."""
    generator = torch.Generator().manual_seed(7)
    form = {"logits": lambda t: t, "log_probs": lambda t: t.log_softmax(-1), "probs": lambda t: t.softmax(-1)}
    input, target = (
        form[kind](torch.randn(6, 20, generator=generator, dtype=torch.float64)).to(getattr(torch, dtype))
        for kind in kinds or ("logits", "logits")
    )
    return input, target


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("tested", MEANT, ids=name)
def test_every_path_comes_near_the_exact_value(tested: Path, dtype: str) -> None:
    if dtype not in tested.dtypes:
        pytest.skip("not one of the path's dtypes")
    kinds = {"input_kind": tested.input_kind, "target_kind": tested.target_kind}
    input, target = pair(dtype, *kinds.values())
    result = measure(tested, input, target)
    assert not result.note
    exact = audit.exact_kl(input, target, **kinds, reduction=tested.reduction)
    exact = exact if tested.reduction == "none" else [exact]
    # Rounding of 20 terms of magnitude below 10 each, in the format: a wrong formula is off by 0.01 and more.
    tolerance = min(200 * FORMATS[dtype].unit_roundoff, 0.4)
    for computed, value in zip(result.computed.tolist(), exact, strict=True):
        wanted = {"kl": float(value), "zero": 0.0}.get(tested.quantity, computed)
        assert abs(computed - wanted) <= tolerance * (20 if tested.reduction == "sum" else 1)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("tested", TRACEABLE, ids=name)
def test_every_path_runs_on_cuda_without_mixing_devices(tested: Path, dtype: str) -> None:
    if dtype not in tested.dtypes:
        pytest.skip("not one of the path's dtypes")
    with FakeTensorMode():
        logits = torch.empty(4, 10, device="cuda", dtype=getattr(torch, dtype))
        try:
            output = tested.function(logits, torch.empty_like(logits))
        except RuntimeError as error:
            # A write through a mask and a copy to contiguous memory cannot be faked by a build without CUDA.
            if tested.name in ("categorical", "strided") and "not linked with support for cuda" in str(error):
                pytest.skip(str(error))
            raise
    assert output.device.type == "cuda"
    assert tuple(output.shape) == ((4,) if tested.reduction == "none" else ())


@pytest.mark.parametrize("tested", [p for p in PATHS if p.name in RAISING], ids=name)
def test_a_module_built_from_tensors_raises_and_the_message_is_its_note(tested: Path) -> None:
    assert measure(tested, *pair("float32")).note.startswith(("RuntimeError: ", "TypeError: "))


def test_thread_era_rounds_as_the_2017_kernels_did() -> None:
    """Against the same steps in exact arithmetic, for two classes where exp and log are known: logits (0, 0)."""
    zeros = torch.zeros(1, 2)
    era = next(p for p in PATHS if p.name == "thread_era")
    # p = 1/2 exactly; log_softmax rounds -log 2 to float32 once; the terms are formed in double and summed in float32.
    rounded = Fraction(torch.tensor(0.5).log().item())
    term = float(Fraction(1, 2) * (Fraction(torch.tensor(0.5, dtype=torch.float64).log().item()) - rounded))
    assert era.function(zeros, zeros).item() == pytest.approx(2 * term, rel=1e-6)


def test_registering_a_taken_name_or_an_unknown_word_is_refused() -> None:
    with pytest.raises(UsageError, match="registered already"):
        path("log_softmax")(lambda input, target: input)
    with pytest.raises(UsageError, match="reduction 'avg' is not one of none, sum, mean, batchmean"):
        path("new", reduction="avg")


def test_an_own_function_is_named_after_itself_and_may_not_take_a_name_of_ours() -> None:
    def my_kl(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return input.sum(-1)

    assert own_path(my_kl).name == "my_kl"
    my_kl.__name__ = "log_softmax"
    with pytest.raises(UsageError, match="give your function another name"):
        own_path(my_kl)


def broken(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    raise ValueError("no\nluck")


@pytest.mark.parametrize(
    ("function", "note"),
    [
        (broken, "ValueError: no"),
        (lambda x, y: 1.0, "returned float, expected a tensor"),
        (lambda x, y: x, "returned shape (6, 20), expected one value a row: (6,)"),
        (lambda x, y: x.sum(-1).long(), "returned torch.int64, expected one of float16"),
        (lambda x, y: x.sub_(1).sum(-1), "changed its inputs in place"),
        (lambda x, y: x.sum(-1).to("meta"), "returned a tensor on meta, expected cpu"),
    ],
)
def test_what_a_kernel_does_wrong_becomes_its_note(function: object, note: str) -> None:
    result = measure(Path("mine", function, ""), *pair("float32"))  # type: ignore[arg-type]
    assert result.note.startswith(note)
    assert len(result.computed) == 6
    assert all(value != value for value in result.computed)


def test_a_path_that_cannot_run_here_is_listed_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from audit import paths, pipeline

    key = ("liger", "none", "logits", "logits")
    absent = replace(paths._REGISTRY[key], absent="no such package")
    monkeypatch.setitem(paths._REGISTRY, key, absent)
    assert absent in registered()
    with pytest.raises(UsageError, match="path 'liger' cannot run here: no such package"):
        pipeline.plan("quick", paths="liger")
    assert absent not in pipeline.plan("quick").paths


def test_the_estimators_at_a_known_ratio() -> None:
    """q = 1/2 and p = 1/4 at the sampled class: r = log 2."""
    input, target = (torch.tensor([row], dtype=torch.float64) for row in ([0.0, 0.0], [0.0, math.log(3)]))
    value = {p.name: measure(p, input, target).computed.item() for p in PATHS if p.kind == "estimator"}
    assert value["k1"] == pytest.approx(-math.log(2), rel=1e-15)
    assert value["k2"] == pytest.approx(math.log(2) ** 2 / 2, rel=1e-15)
    assert value["k3"] == pytest.approx(1 - math.log(2), rel=1e-15)


def test_distillation_is_t_squared_times_the_kl_of_the_divided_logits() -> None:
    input, target = pair("float64")
    path = next(p for p in PATHS if p.name == "distillation")
    exact = audit.exact_kl(input / 4, target / 4)
    assert measure(path, input, target).computed.tolist() == pytest.approx([16 * float(v) for v in exact], rel=1e-12)
