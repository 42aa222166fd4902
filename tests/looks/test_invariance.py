"""Each check of invariance.csv catches a kernel made to fail it, and only that."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from audit.base.formats import FORMATS
from audit.cases import build, registered
from audit.judge.references import Engine
from audit.looks import Run
from audit.looks.invariance import begin
from audit.machine.devices import Device
from audit.machine.plan import Plan
from audit.paths import Path
from audit.paths import registered as registered_paths
from audit.paths.execution import EXECUTIONS, NO_COMPILER, coarse, constant

CASES = {case.name: case for case in registered()}
PATHS = {p.name: p for p in registered_paths() if p.target_kind == "logits" and p.reduction == "none"}
ON_CPU = {
    name for name, check in EXECUTIONS.items() if check.where != "accelerator" and not (check.costly or check.own)
}


def steady(x: Tensor, y: Tensor) -> Tensor:
    """In integers, so that neither order nor place can matter: how many classes lead the row's middle."""
    return ((x - x.amax(-1, keepdim=True)) > -1).sum(-1).to(x.dtype) + (y > y.amin(-1, keepdim=True)).sum(-1) * 0


CALLS = count()
DEFECTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "run to run": lambda x, y: steady(x, y) + next(CALLS),  # torch's own seeds are put back after each call
    "row alone": lambda x, y: steady(x, y) + len(x),
    "classes permuted": lambda x, y: steady(x, y) + (x.argmax(-1) % 7).to(x.dtype),
    "constant added": lambda x, y: steady(x, y) + x.amax(-1),
    "padded with -inf": lambda x, y: steady(x, y) + x.shape[-1],
    "one thread": lambda x, y: steady(x, y) + torch.get_num_threads(),
    "strided": lambda x, y: steady(x, y) + x.stride(-1),
}


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def measured(case: str, dtype: str, paths: list[Path], profile: str = "quick") -> pd.DataFrame:
    return begin(Run(Plan(profile, [CASES[case]], paths, [dtype], [Device("cpu")], "whole"), Engine()))()


def shares(function: Callable[[Tensor, Tensor], Tensor], dtype: str = "float32") -> pd.Series:
    return measured("random_scale10", dtype, [Path("tried", function, "")]).set_index("check")["changed_share"]


def test_every_check_that_means_something_here_has_its_defect() -> None:
    assert set(DEFECTS) == ON_CPU


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_steady_kernel_passes_every_check(dtype: str) -> None:
    assert dict(shares(steady, dtype)) == dict.fromkeys(ON_CPU, 0.0)


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_shows_in_its_own_check(defect: str) -> None:
    found = shares(DEFECTS[defect])
    assert found[defect] > 0.5
    # What changes at random changes everywhere; a permuted winner's place is all that the others may share.
    others = found.drop(["run to run", defect], errors="ignore")
    assert defect == "run to run" or (others == 0).all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", ["random_scale1", "offset_1e+04", "peaked_gap20", "impossible_matched"])
def test_a_constant_is_added_exactly_and_is_not_0(name: str, dtype: str) -> None:
    x = coarse(build(CASES[name], dtype).input)
    shifted = constant(lambda a, _: a, x, x)
    # Both fit binary64 with bits to spare, where their difference is exact: the same for every finite class of a row.
    moved = (shifted.double() - x.double()).nan_to_num(nan=0.0)
    moved = torch.where(x.isfinite(), moved, moved.amax(-1, keepdim=True))
    assert (moved == moved[:, :1]).all() and (moved > 0).all()


def test_a_check_that_raises_loses_the_rows() -> None:
    def picky(x: Tensor, y: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError("a batch of one")
        return steady(x, y)

    table = measured("random_scale10", "float32", [Path("tried", picky, "")]).set_index("check")
    assert table.loc["row alone", "non_finite"] == len(build(CASES["random_scale10"], "float32").input)
    assert np.isnan(table.loc["row alone", "largest_ulp"])
    assert table.loc["run to run", "non_finite"] == 0


def test_ulp_are_those_of_the_result_and_a_multiple_of_the_bound_is_that() -> None:
    def nudged(x: Tensor, y: Tensor) -> Tensor:
        ones = torch.ones(len(x), dtype=torch.float32)
        return torch.nextafter(ones, 2 * ones) if len(x) == 1 else ones

    table = measured("random_scale10", "bfloat16", [Path("tried", nudged, "")])
    assert table.set_index("check").loc["row alone", "largest_ulp"] == 1


def test_a_check_that_compiles_is_done_where_it_is_asked_for() -> None:
    if NO_COMPILER["cpu"]:
        pytest.skip(NO_COMPILER["cpu"])
    both = [PATHS["log_softmax"], PATHS["log_target"]]
    table = measured("random_scale1", "float32", both, "standard")
    assert set(table.loc[table["check"] == "compiled", "path"]) == {"log_softmax"}
    assert (table["non_finite"][table["check"] == "compiled"] == 0).all()


# Autograd on a device that is faked asks for a stream, and aborts.
@pytest.mark.parametrize("name", [n for n, c in EXECUTIONS.items() if not c.costly and n != "with gradients"])
@pytest.mark.parametrize("path", ["log_softmax", "log_target", "softmax_log", "cross_entropy_minus_entropy"])
def test_every_execution_runs_on_cuda_without_mixing_devices(name: str, path: str) -> None:
    with FakeTensorMode():
        logits = torch.empty(4, 10, device="cuda")
        try:
            output = EXECUTIONS[name].run(PATHS[path].function, logits, torch.empty_like(logits))
        except RuntimeError as error:
            # A copy to contiguous memory cannot be faked by a build without CUDA.
            if "not linked with support for cuda" in str(error):
                pytest.skip(str(error))
            raise
        assert output.device.type == "cuda" and tuple(output.shape) == (4,)
