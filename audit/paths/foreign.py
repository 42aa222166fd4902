"""What computes outside torch: kernels of arrays, scipy's KL, Liger's fused Triton kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audit.paths import path
from audit.paths.rounding import ANY_ORDER, Rounding


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


_PROBABILITIES = Rounding("softmax", "softmax")
_SCIPY: dict[str, Any] = {
    "dtypes": ("float32", "float64"),
    "absent": "" if find_spec("scipy") else "scipy is not installed",
    "where": "cpu",
}


def _probabilities(input: Tensor, target: Tensor) -> list[Any]:
    """p and q as arrays, in scipy's order."""
    return [torch.softmax(t, -1).numpy() for t in (target, input)]


@path("scipy_rel_entr", rounding=_PROBABILITIES, **_SCIPY)
def rel_entr(input: Tensor, target: Tensor) -> Tensor:
    """scipy.special.rel_entr(softmax(target), softmax(input)), summed over the classes."""
    from scipy.special import rel_entr

    return torch.as_tensor(rel_entr(*_probabilities(input, target))).sum(-1)


@path("scipy_kl_div", rounding=replace(_PROBABILITIES, masses=True), **_SCIPY)
def kl_div(input: Tensor, target: Tensor) -> Tensor:
    """scipy.special.kl_div(softmax(target), softmax(input)), summed: p log(p / q) - p + q."""
    from scipy.special import kl_div

    return torch.as_tensor(kl_div(*_probabilities(input, target))).sum(-1)


@path("scipy_entropy", rounding=_PROBABILITIES, **_SCIPY)
def entropy(input: Tensor, target: Tensor) -> Tensor:
    """scipy.stats.entropy(softmax(target), softmax(input)), which normalises both once more."""
    from scipy.stats import entropy

    return torch.as_tensor(entropy(*_probabilities(input, target), axis=-1))


_NO_LIGER = "liger_kernel needs a CUDA device" if find_spec("liger_kernel") else "liger_kernel is not installed"


@path(
    "liger",
    absent="" if find_spec("liger_kernel") and torch.cuda.is_available() else _NO_LIGER,
    where="accelerator",
    # Its terms are computed and kept in float32, whatever it is given.
    rounding=replace(ANY_ORDER, compute="float32", result="float32"),
)
def liger(input: Tensor, target: Tensor) -> Tensor:
    """LigerKLDIVLoss(reduction="none")(log_softmax(input), softmax(target)), summed: needs liger_kernel and CUDA."""
    from liger_kernel.transformers import LigerKLDIVLoss

    loss: Tensor = LigerKLDIVLoss(reduction="none")(torch.log_softmax(input, -1), torch.softmax(target, -1))
    return loss.sum(-1)
