"""One path, once, on one device, for all rows of a problem."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.formats import FORMATS
from audit.paths import Path


class Stopwatch:
    """Adds up the seconds spent in its `with` blocks."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += perf_counter() - self._start


# What this process has spent in the paths themselves, until their numbers were here.
TORCH = Stopwatch()


@dataclass(frozen=True)
class Result:
    """The numbers a path returned, in binary64 (exact), one a row or one in all; or `note`, why there are none."""

    computed: NDArray[np.float64]
    dtype: str = ""
    note: str = ""


def measure(path: Path, input: Tensor, target: Tensor) -> Result:
    """Runs the path on two tensors of shape (rows, classes), checks what it returns, and brings it back at once.

    Whatever the path does wrong (raises, returns another shape, dtype or device, changes its inputs) becomes the
    note of a result without numbers; the caller must renew inputs that were changed.
    """
    rows = len(input) if path.reduction == "none" else 1
    versions = input._version, target._version
    try:
        with TORCH, torch.no_grad(), warnings.catch_warnings():
            # Whoever wrote the call may need torch's advice on reductions; a table made of it does not.
            warnings.simplefilter("ignore")
            output = path.function(input, target)
            # On an accelerator the numbers are there only once they are here.
            here = output.detach().cpu() if isinstance(output, Tensor) else output
        note = _objection(path, output, input)
        if not note:
            if (input._version, target._version) != versions:
                note = "changed its inputs in place"
            else:
                dtype = str(output.dtype).removeprefix("torch.")
                return Result(here.reshape(rows).double().numpy(), dtype)
    except Exception as error:
        note = describe(error)
    return Result(np.full(rows, np.nan), note=note)


def _objection(path: Path, output: object, input: Tensor) -> str:
    if not isinstance(output, Tensor):
        return f"returned {type(output).__name__}, expected a tensor"
    if path.reduction == "none" and tuple(output.shape) != (len(input),):
        return f"returned shape {tuple(output.shape)}, expected one value a row: ({len(input)},)"
    if path.reduction != "none" and output.numel() != 1:
        return f"returned shape {tuple(output.shape)}, expected one value"
    if str(output.dtype).removeprefix("torch.") not in FORMATS:
        return f"returned {output.dtype}, expected one of {', '.join(FORMATS)}"
    if output.device != input.device:
        return f"returned a tensor on {output.device}, expected {input.device}"
    return ""


def describe(error: BaseException) -> str:
    """An exception on one line, for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
