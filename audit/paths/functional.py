"""KL as people write it with torch: softmax then log, log_softmax, log_target, KLDivLoss."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audit.paths import REDUCTIONS, path
from audit.paths.rounding import torch_rounding

PLAIN = torch_rounding()
SOFTMAX_FIRST = torch_rounding(input="softmax")


def _softmax_log(input: Tensor, target: Tensor) -> Tensor:
    """kl_div(log(softmax(input)), target): softmax first, then its logarithm."""
    return F.kl_div(torch.log(torch.softmax(input, -1)), target, reduction="none").sum(-1)


def _log_softmax(input: Tensor, target: Tensor) -> Tensor:
    """kl_div(log_softmax(input), target): the call torch's documentation recommends."""
    return F.kl_div(torch.log_softmax(input, -1), target, reduction="none").sum(-1)


@path(
    "softmax_log",
    summary="kl_div(log(softmax(input)), softmax(target)): softmax first, then its logarithm",
    rounding=SOFTMAX_FIRST,
)
def softmax_log(input: Tensor, target: Tensor) -> Tensor:
    return _softmax_log(input, torch.softmax(target, -1))


@path(
    "log_softmax",
    summary="kl_div(log_softmax(input), softmax(target)): the call torch's documentation recommends",
    rounding=PLAIN,
)
def log_softmax(input: Tensor, target: Tensor) -> Tensor:
    return _log_softmax(input, torch.softmax(target, -1))


path("softmax_log", target_kind="probs", rounding=SOFTMAX_FIRST)(_softmax_log)
path("log_softmax", target_kind="probs", rounding=PLAIN)(_log_softmax)


@path("log_target", rounding=torch_rounding("log_softmax"))
def log_target(input: Tensor, target: Tensor) -> Tensor:
    """kl_div(log_softmax(input), log_softmax(target), log_target=True)."""
    return F.kl_div(torch.log_softmax(input, -1), torch.log_softmax(target, -1), reduction="none", log_target=True).sum(
        -1
    )


def kl_div_loss(input: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    loss: Tensor = nn.KLDivLoss(reduction=reduction)(torch.log_softmax(input, -1), torch.softmax(target, -1))
    return loss.sum(-1) if reduction == "none" else loss


def softmax_log_reduced(input: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    return F.kl_div(torch.log(torch.softmax(input, -1)), torch.softmax(target, -1), reduction=reduction)


def log_target_reduced(input: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    log_q, log_p = torch.log_softmax(input, -1), torch.log_softmax(target, -1)
    return F.kl_div(log_q, log_p, reduction=reduction, log_target=True)


for _name, _function, _rounding, _reductions, _text in (
    ("kl_div_loss", kl_div_loss, PLAIN, REDUCTIONS, "nn.KLDivLoss of log_softmax(input), softmax(target)"),
    (
        "softmax_log",
        softmax_log_reduced,
        SOFTMAX_FIRST,
        REDUCTIONS[1:],
        "kl_div of log(softmax(input)), softmax(target)",
    ),
    ("log_target", log_target_reduced, torch_rounding("log_softmax"), REDUCTIONS[1:], "kl_div with log_target=True"),
):
    for _reduction in _reductions:
        _summed = ", summed over the classes" if _reduction == "none" else ""
        path(_name, summary=f'{_text}, reduction="{_reduction}"{_summed}', reduction=_reduction, rounding=_rounding)(
            partial(_function, reduction=_reduction)
        )


@path("difference", kind="identity", rounding=SOFTMAX_FIRST)
def difference(input: Tensor, target: Tensor) -> Tensor:
    """sum(log(softmax(input)) - log_softmax(input)), which is 0: the thread's second check."""
    return (torch.log(torch.softmax(input, -1)) - torch.log_softmax(input, -1)).sum(-1)
