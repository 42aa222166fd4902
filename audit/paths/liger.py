"""Liger's fused Triton kernel, where liger_kernel is installed and there is a CUDA device for it."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from audit.paths import path
from audit.paths.rounding import Rounding

ABSENT = (
    "liger_kernel is not installed"
    if find_spec("liger_kernel") is None
    else ""
    if torch.cuda.is_available()
    else "liger_kernel needs a CUDA device"
)


# Its terms are computed and kept in float32, whatever it is given.
IN_FLOAT32 = Rounding("softmax", "log_softmax", compute="float32", result="float32", separate=False, exp_slope=0.0)


@path("liger", absent=ABSENT, where="accelerator", rounding=IN_FLOAT32)
def liger(input: Tensor, target: Tensor) -> Tensor:
    """LigerKLDIVLoss(reduction="none")(log_softmax(input), softmax(target)), summed: needs liger_kernel and CUDA."""
    from liger_kernel.transformers import LigerKLDIVLoss

    loss: Tensor = LigerKLDIVLoss(reduction="none")(torch.log_softmax(input, -1), torch.softmax(target, -1))
    return loss.sum(-1)
