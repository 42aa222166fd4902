"""Every path, against the exact value and on a device that is not there."""

import math
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
import torch._dynamo.config as dynamo
from torch._subclasses.fake_tensor import FakeTensorMode

import audit
from audit.base.formats import FORMATS
from audit.base.kinds import TOKENS
from audit.base.usage import UsageError
from audit.machine.measure import measure
from audit.machine.plan import plan
from audit.paths import Path, execution, own_path, path, registered
from audit.paths.misuse import MAPS
from audit.reference.quantities import quantity_references

PATHS = registered()
RAISING = {"loss_from_tensors", "log_softmax_from_tensor"}
COMPUTING = [p for p in PATHS if p.name not in RAISING and not p.absent]
# What leaves torch, or compiles, cannot be traced on a device that is not there.
UNTRACEABLE = {"compiled", "scipy_rel_entr", "scipy_kl_div", "scipy_entropy"}
TRACEABLE = [p for p in COMPUTING if p.name not in UNTRACEABLE]
MEANT = [p for p in COMPUTING if p.kind in ("kl", "identity") and p.input_kind != TOKENS]


def name(path: Path) -> str:
    return f"{path.name}-{path.reduction}-{path.input_kind}-{path.target_kind}"


def pair(dtype: str, *kinds: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and target of the two kinds, logits by default."""
    generator = torch.Generator().manual_seed(7)
    form = {"logits": lambda t: t, "log_probs": lambda t: t.log_softmax(-1), "probs": lambda t: t.softmax(-1)}
    form[TOKENS] = lambda t: -t[:, :1].abs()
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
        shape = (3, 64) if tested.cases == (MAPS,) else (4, 1 if tested.input_kind == TOKENS else 10)
        logits = torch.empty(shape, device="cuda", dtype=getattr(torch, dtype))
        try:
            output = tested.function(logits, torch.empty_like(logits))
        except RuntimeError as error:
            # A write through a mask cannot be faked by a build without CUDA.
            if tested.name == "categorical" and "not linked with support for cuda" in str(error):
                pytest.skip(str(error))
            raise
    assert output.device.type == "cuda"
    assert tuple(output.shape) == (shape[:1] if tested.reduction == "none" else ())


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
        path("new", reduction="avg")(lambda input, target: input)


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
        (lambda x, y: x.data.sub_(1).sum(-1), "changed its inputs in place"),
        (lambda x, y: y.numpy().sort() or x.sum(-1), "changed its inputs in place"),
        (lambda x, y: x.t_().sum(0), "changed its inputs in place"),
        (lambda x, y: sys.exit("enough"), "SystemExit: enough"),
        (lambda x, y: x.sum(-1).to("meta"), "returned a tensor on meta, expected cpu"),
    ],
)
def test_what_a_kernel_does_wrong_becomes_its_note(function: object, note: str) -> None:
    result = measure(Path("mine", function, ""), *pair("float32"))  # type: ignore[arg-type]
    assert result.note.startswith(note)
    assert len(result.computed) == 6
    assert all(value != value for value in result.computed)


def survives(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


@pytest.mark.parametrize("function", [survives, lambda x, y: time.sleep(1) or x.sum(-1)])
def test_a_kernel_that_does_not_end_is_stopped(function: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.machine.devices.LIMIT_SECONDS", 0.1)
    start = time.monotonic()
    result = measure(Path("slow", function, ""), *pair("float32"))  # type: ignore[arg-type]
    assert result.note == "too slow: took more than 0.1 s" and result.too_slow
    assert time.monotonic() - start < 0.9
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_timer_of_the_callers_own_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rang = []
    signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    assert not measure(Path("quick", lambda x, y: x.sum(-1), ""), *pair("float32")).note
    time.sleep(0.3)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert rang == [1]


def test_a_kernel_that_was_too_slow_once_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.machine.devices.LIMIT_SECONDS", 0.5)
    runs = []

    def dawdles(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        runs.append(len(x))
        time.sleep(2)
        return x.sum(-1)

    errors = audit.run(cases=["two_classes", "one_ulp"], paths=[dawdles], dtypes="float32", devices="cpu")
    notes = errors[errors["path"] == "dawdles"].groupby("case")["note"].unique().map(list)
    assert notes["one_ulp"] == ["too slow: took more than 0.5 s"]
    assert notes["two_classes"][0].startswith("not run: too slow") and "on one_ulp float32" in notes["two_classes"][0]
    # Once in the table; the pace, on 64 rows, and gradients, on two classes, know nothing of it.
    assert runs.count(8) == 1
    assert (errors.loc[errors["path"] == "log_softmax", "note"] == "").all()


def test_a_path_of_one_kind_of_device_runs_there_alone() -> None:
    by_name = {p.name: p for p in PATHS}
    assert by_name["scipy_entropy"].runs_on("cpu") and not by_name["scipy_entropy"].runs_on("cuda:1")
    assert by_name["liger"].runs_on("cuda") and not by_name["liger"].runs_on("cpu")
    assert by_name["log_softmax"].runs_on("cpu") and by_name["log_softmax"].runs_on("cuda")


def test_compiled_raises_rather_than_falling_back_and_says_nothing_of_recompiling(capfd) -> None:
    compiled = next(p for p in PATHS if p.name == "compiled")
    if compiled.absent:
        pytest.skip(compiled.absent)
    # Two kernels, where dynamo would give up after one. monkeypatch would leave its configuration without the setting.
    with dynamo.patch(recompile_limit=1):
        for rows in (1, 2):
            assert not measure(compiled, *(t[:rows] for t in pair("float32"))).note
    assert capfd.readouterr().err == ""

    def breaks(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x.sum(-1)

    assert measure(Path("breaks", partial(execution.compiled, breaks), ""), *pair("float32")).note


def test_compiled_finds_dynamos_limit_under_its_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.6 has it: a configuration that knows no other name refuses it."""
    set_to = {}

    class Older:
        cache_size_limit = 8

        def patch(self, changes: dict[str, int]) -> AbstractContextManager[None]:
            assert set(changes) == {"cache_size_limit"}
            set_to.update(changes)
            return nullcontext()

    monkeypatch.setitem(sys.modules, "torch._dynamo.config", Older())
    monkeypatch.setattr(torch._dynamo, "config", Older())
    monkeypatch.setattr(execution, "_compiled", lambda f: f)
    assert measure(next(p for p in PATHS if p.name == "compiled"), *pair("float32")).note == ""
    assert set_to["cache_size_limit"] > 8


MISUSE = {p.name: p for p in PATHS if p.kind == "misuse" and p.name not in RAISING}


@pytest.mark.parametrize("name", MISUSE)
def test_a_mistakes_reference_is_its_own_formula_at_two_equal_classes(name: str) -> None:
    """Where softmax gives 1/2 and 1/2 on both sides, each mistake has a value in closed form."""
    if name == "maps_over_different_dims":
        pytest.skip("of maps alone")
    half, e = math.log(2), math.e
    wanted = {
        "probabilities_as_input": -half - 0.5,
        "logits_as_input": -half,
        "logits_as_target": 0.0,
        "log_probabilities_as_target": math.nan,
        "probabilities_with_log_target": 2 * e**0.5 * (0.5 + half),
        "swapped": 0.0,
        "wrong_dim": 0.0,
        "different_dims": 0.0,
        "half_mass": 0.5 * math.log(0.5),
        "double_softmax": 0.0,
        "epsilon_in_log": 0.0,
        "clamped": 0.0,
        "threshold_skipped": 0.0,
        "mean_for_batchmean": 0.0,
    }
    zeros = np.zeros((2, 2))
    exact = [float(v) for v in quantity_references(MISUSE[name].quantity, zeros, zeros)]
    assert exact == pytest.approx([wanted[name]] * 2, rel=1e-15, nan_ok=True)
    computed = measure(MISUSE[name], torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
    assert computed.computed.item() == pytest.approx(wanted[name], rel=1e-14, abs=1e-15, nan_ok=True)


def test_mean_for_batchmean_stands_beside_the_kl_that_was_meant() -> None:
    errors = audit.run(cases="mistakes_apart", paths="mean_for_batchmean", dtypes="float64", devices="cpu")
    (row,) = errors.to_dict("records")
    assert Decimal(row["exact_kl"]) / 10 == pytest.approx(Decimal(row["reference"]), rel=Decimal("1e-48"))
    assert row["computed"] == pytest.approx(float(row["reference"]), rel=1e-14)


def test_maps_over_different_dims_is_what_torch_gives_in_three_dimensions() -> None:
    errors = audit.run(cases="maps_3x8x8", paths="maps_over_different_dims", dtypes="float64", devices="cpu")
    (row,) = errors.to_dict("records")
    assert row["computed"] == pytest.approx(float(row["reference"]), rel=1e-13)
    assert float(row["reference"]) < -1


def test_a_path_that_cannot_run_here_is_listed_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from audit import paths

    key = ("liger", "none", "logits", "logits", "accelerator")
    absent = replace(paths.PATHS[key], absent="no such package")
    monkeypatch.setitem(paths.PATHS, key, absent)
    assert absent in registered()
    with pytest.raises(UsageError, match="path 'liger' cannot run here: no such package"):
        plan("quick", paths="liger")
    assert absent not in plan("quick").paths


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
