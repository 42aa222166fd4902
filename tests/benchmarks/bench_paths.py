"""Speed and accuracy of the paths side by side, forward and backward; the accuracy is in extra_info."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from audit.cases.streams import normal
from audit.devices import found
from audit.formats import FORMATS
from audit.judge.errors import error_columns
from audit.judge.scale import magnitude
from audit.paths import Path, registered
from audit.reference.exact import row_references

PATHS = ("softmax_log", "log_softmax", "log_target", "kl_div_from_logits")
SIZES = ((64, 10), (64, 1_000), (16, 32_000), (2, 262_144))
DEVICES = [device.name for device in found() if not device.absent]
CHOSEN = [p for p in registered() if p.name in PATHS and p.target_kind == "logits" and p.reduction == "none"]


def synchronised(function: Callable[[], object], device: str) -> Callable[[], None]:
    def call() -> None:
        function()
        if device != "cpu":
            torch.accelerator.synchronize()

    return call


def logits(rows: int, classes: int, dtype: str, device: str) -> tuple[Tensor, Tensor]:
    x, y = (torch.from_numpy(normal(f"bench {side}", rows, classes)) for side in ("input", "target"))
    return tuple(t.to(getattr(torch, dtype)).to(device) for t in (x, x + 0.1 * y))


def accuracy(path: Path, x: Tensor, y: Tensor) -> dict[str, float]:
    """Medians over the first rows; numbers that JSON has, so never NaN."""
    rows = min(len(x), 4)
    numbers = x[:rows].double().cpu().numpy(), y[:rows].double().cpu().numpy()
    value = path.function(x[:rows], y[:rows])
    table = pd.DataFrame(
        {
            "computed": value.double().cpu().numpy(),
            "result_dtype": str(value.dtype).removeprefix("torch."),
            "result_class": "",
            "reference": row_references(*numbers, "logits"),
            "scale": magnitude(*numbers, "logits"),
        }
    )
    errors = error_columns(table)[["scaled_error", "correct_bits"]].median()
    return {name: float(value) for name, value in errors.items() if np.isfinite(value)}


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
@pytest.mark.parametrize("path", CHOSEN, ids=lambda p: p.name)
def bench_path(benchmark, path: Path, rows: int, classes: int, dtype: str, device: str, direction: str) -> None:
    x, y = logits(rows, classes, dtype, device)
    benchmark.group = f"{direction} {rows}x{classes} {dtype} {device}"
    if direction == "forward":
        benchmark.extra_info.update(accuracy(path, x, y))
        call = synchronised(lambda: path.function(x, y), device)
    else:
        x.requires_grad_()
        value = path.function(x, y).sum()
        call = synchronised(lambda: torch.autograd.grad(value, x, retain_graph=True), device)
    benchmark.pedantic(call, warmup_rounds=2, rounds=9)
