"""The float32 CPU kernels of 2017, emulated: what gave the thread its numbers.

From the C sources of that time (facts, not code): the maximum is taken in float32. log_softmax sums exp(x - max) in
double, takes max + log(sum) in double and rounds x - that to float32 once. softmax rounds each exp to float32, sums
those in double and multiplies by 1/sum with one rounding. The criterion forms target * (log(target) - input) in
double where target > 0 and adds it to a float32 sum that is rounded at every step.
"""

from __future__ import annotations

from ctypes import c_float
from functools import reduce

import torch
from torch import Tensor

from audit.paths import path
from audit.paths.rounding import ANY_ORDER, torch_rounding


def softmax(logits: Tensor) -> Tensor:
    exponentials = torch.exp((logits - logits.amax(-1, keepdim=True)).double()).float()
    return (exponentials.double() * (1 / exponentials.sum(-1, keepdim=True, dtype=torch.float64))).float()


def log_softmax(logits: Tensor) -> Tensor:
    top = logits.amax(-1, keepdim=True)
    log_sum = torch.log(torch.exp((logits - top).double()).sum(-1, keepdim=True))
    return (logits.double() - (top.double() + log_sum)).float()


@path(
    "thread_era",
    dtypes=("float32",),
    summary="kl_div(log_softmax(input), softmax(target)) as the CPU had it in 2017",
    rounding=ANY_ORDER,
)
def kl_div(input: Tensor, target: Tensor) -> Tensor:
    p = softmax(target).double()
    terms = torch.where(p > 0, p * (torch.log(p) - log_softmax(input).double()), 0.0)
    if terms.is_cpu and not terms.requires_grad and len(terms) < terms.shape[1]:
        # Python's numbers are twenty times as fast as tensors of one.
        return torch.tensor([reduce(_added, row, 0.0) for row in terms.tolist()])
    total = torch.zeros(len(terms), dtype=torch.float32, device=terms.device)
    for column in terms.unbind(1):
        total = (total.double() + column).float()
    return total


def _added(total: float, term: float) -> float:
    return c_float(total + term).value


@path(
    "era_difference",
    kind="identity",
    dtypes=("float32",),
    summary="sum(log(softmax(input)) - log_softmax(input)), which is 0, as the CPU had it in 2017",
    rounding=torch_rounding(input="softmax"),
)
def difference(input: Tensor, target: Tensor) -> Tensor:
    """The sum of a float32 tensor was accumulated in double and returned rounded."""
    logarithms = torch.log(softmax(input).double()).float()
    return (logarithms - log_softmax(input)).sum(-1, dtype=torch.float64).float()
