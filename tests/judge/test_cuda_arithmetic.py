"""Bounds hold for CUDA's arithmetic as it is emulated, and what is lossy on a CPU need not be there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from audit.paths import Path, registered
from audit.paths.functional import log_softmax
from tests.judge import test_bounds
from tests.judge.cuda_arithmetic import Arithmetic, Cuda

ARITHMETICS = {
    "expf too large": Arithmetic(bias=1),
    "expf too small": Arithmetic(bias=-1),
    "expf at random": Arithmetic(warp=2_048, threads=512),
    "online": Arithmetic(bias=1, online=True, division=2.0),
    "__expf": Arithmetic(bias=1, slope=1.173),
}
PATHS = [
    p
    for p in registered()
    if p.kind in ("kl", "identity")
    and p.input_kind == p.target_kind == "logits"
    and p.quantity in ("kl", "distillation")
    and p.runs_on("cuda")
    and p.name not in ("categorical", "liger", "thread_era")
]


def leading(x: np.ndarray, place: int) -> np.ndarray:
    """One class leads so far that each of the others is less than a roundoff of the sum, which together are not."""
    return 0.1 * x + 17.0 * (np.arange(x.shape[1]) == place)


# Where a CPU's sums stagnate, and where they do not.
LEADERS = {
    "leader first": lambda x, y: (leading(x, 0), leading(y, 0)),
    "leader last": lambda x, y: (leading(x, x.shape[1] - 1), leading(y, y.shape[1] - 1)),
    "random": lambda x, y: (x, y),
}


def in_float32(input, target):
    """What autocast makes of the path on an accelerator."""
    return log_softmax(input.float(), target.float())


def fused(input, target):
    """What Inductor makes of it: halves are rounded once, at the end."""
    halves = input.dtype in (torch.float16, torch.bfloat16)
    return in_float32(input, target).to(input.dtype) if halves else log_softmax(input, target)


def within(arithmetic: Arithmetic, path: Path) -> Path:
    eager = {"autocast": in_float32, "compiled": fused}.get(path.name, path.function)

    def function(input, target):
        with Cuda(arithmetic), torch.no_grad():
            return eager(input, target)

    return replace(path, function=function)


def judged(arithmetic: str, sizes: list[int], seed: int = 0) -> pd.DataFrame:
    of = ARITHMETICS[arithmetic]
    # What Inductor compiles promises nothing of its sums; eager kernels have a library's exp.
    paths = [p for p in PATHS if p.compiles == of.online and p.reduction in ("none", "sum")]
    table = test_bounds.trial([within(of, path) for path in paths], sizes, seed)
    underflow = table["path"].isin(["softmax_log", "difference"]) & (table["result_class"] != "finite")
    return table[~underflow]


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_every_path_keeps_its_bound_in_cudas_arithmetic(arithmetic: str) -> None:
    table = judged(arithmetic, [2, 300, 5_000])
    assert len(table) > 1_000
    broken = table[~table["kept"]]
    assert broken.empty, broken.groupby(["path", "family", "dtype"]).size().to_string()


@pytest.mark.slow
def test_what_a_cpu_loses_where_the_leader_comes_first_is_kept_by_cudas_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/bounds.md has the table that this prints."""
    monkeypatch.setattr(test_bounds, "FAMILIES", LEADERS)
    chosen = [p for p in PATHS if p.reduction == "none" and not p.compiles and p.name != "autocast"]
    rows = {"cpu": test_bounds.trial(chosen, [16_384], 3)}
    rows |= {name: judged(name, [16_384], 3) for name in ("expf too large", "expf at random")}
    table = pd.concat(rows, names=["where"]).reset_index("where")
    table["times"] = table["abs_error"] / table["attainable"]
    print(
        table.pivot_table(index=["path", "dtype"], columns="where", values="times", aggfunc="max").round(2).to_string()
    )
    assert not table.loc[table["where"] != "cpu", "lossy"].any()


def test_an_exp_that_is_further_off_than_the_table_has_it_is_seen() -> None:
    path = next(p for p in PATHS if (p.name, p.reduction) == ("log_softmax", "none"))
    errors = test_bounds.trial([within(Arithmetic(bias=1, slope=1_000.0), path)], [300], 0)
    assert not errors["kept"].all()


def test_sums_of_a_row_are_those_of_torch_but_for_rounding() -> None:
    x = torch.randn(3, 4_097, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for of in ARITHMETICS.values():
        with Cuda(of):
            here = torch.log_softmax(x, -1), torch.softmax(x, 0), x.sum(), x.sum(0, keepdim=True), torch.logsumexp(x, 1)
        there = torch.log_softmax(x, -1), torch.softmax(x, 0), x.sum(), x.sum(0, keepdim=True), torch.logsumexp(x, 1)
        for ours, theirs in zip(here, there, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
