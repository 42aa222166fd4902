"""Kernels outside torch, as functions of arrays: JAX, MLX, ONNX Runtime, a C library."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor


def from_numpy(function: Callable[[Any, Any], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of two arrays, (rows, classes) each, as a path: what it returns becomes a tensor of its dtype.

    Arrays are float16, float32 and float64 as numpy has them, and bfloat16 as ml_dtypes has it; where that is not
    installed a bfloat16 logit raises TypeError. Nothing is differentiated.
    """

    @wraps(function)
    def kernel(input: Tensor, target: Tensor) -> Tensor:
        returned = np.asarray(function(_array(input), _array(target)))
        if returned.dtype.name == "bfloat16":
            return torch.from_numpy(returned.view(np.int16).copy()).view(torch.bfloat16).to(input.device)
        return torch.from_numpy(np.array(returned)).to(input.device)

    return kernel


def _array(tensor: Tensor) -> Any:
    here = tensor.detach().cpu()
    if here.dtype != torch.bfloat16:
        return here.numpy().copy()
    if find_spec("ml_dtypes") is None:
        raise TypeError("bfloat16 arrays need ml_dtypes, which is not installed")
    return here.view(torch.int16).numpy().copy().view(import_module("ml_dtypes").bfloat16)
