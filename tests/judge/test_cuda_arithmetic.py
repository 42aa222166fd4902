"""Bounds hold for CUDA's arithmetic as it is emulated, and what is lossy on a CPU need not be there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from audit.looks.errors import within_bound
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
PATHS = [p for p in registered() if p.kind in ("kl", "identity") and p.input_kind == p.target_kind == "logits"
         and p.quantity in ("kl", "distillation") and p.runs_on("cuda") and p.name not in ("categorical", "liger")]  # fmt: skip


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
