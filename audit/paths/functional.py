"""KL as people write it with torch: softmax then log, log_softmax, log_target, KLDivLoss; of logits, or as given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audit.paths import REDUCTIONS, path
from audit.paths.rounding import PLAIN, torch_rounding

SOFTMAX_FIRST = torch_rounding(input="softmax")
LOG_TARGET = torch_rounding("log_softmax")
Step = Callable[[Tensor], Tensor]


def kl_div(log_q: Tensor, p: Tensor, *, reduction: str = "none", **options: bool) -> Tensor:
    """torch's kl_div, summed over the classes where it is not reduced."""
    loss = F.kl_div(log_q, p, reduction=reduction, **options)
    return loss.sum(-1) if reduction == "none" else loss


@path(
    "softmax_log",
    summary="kl_div(log(softmax(input)), softmax(target)): softmax first, then its logarithm",
    rounding=SOFTMAX_FIRST,
)
def softmax_log(input: Tensor, target: Tensor, *, reduction: str = "none") -> Tensor:
    return kl_div(torch.log(torch.softmax(input, -1)), torch.softmax(target, -1), reduction=reduction)


@path(
    "log_softmax",
    summary="kl_div(log_softmax(input), softmax(target)): the call torch's documentation recommends",
    rounding=PLAIN,
)
def log_softmax(input: Tensor, target: Tensor) -> Tensor:
    return kl_div(torch.log_softmax(input, -1), torch.softmax(target, -1))


@path("softmax_log", target_kind="probs", rounding=SOFTMAX_FIRST)
def softmax_log_of_probabilities(input: Tensor, target: Tensor) -> Tensor:
    """kl_div(log(softmax(input)), target): softmax first, then its logarithm."""
    return kl_div(torch.log(torch.softmax(input, -1)), target)


@path("log_softmax", target_kind="probs", rounding=PLAIN)
def log_softmax_of_probabilities(input: Tensor, target: Tensor) -> Tensor:
    """kl_div(log_softmax(input), target): the call torch's documentation recommends."""
    return kl_div(torch.log_softmax(input, -1), target)


@path("log_target", rounding=LOG_TARGET)
def log_target(input: Tensor, target: Tensor, *, reduction: str = "none") -> Tensor:
    """kl_div(log_softmax(input), log_softmax(target), log_target=True)."""
    log_q, log_p = torch.log_softmax(input, -1), torch.log_softmax(target, -1)
    return kl_div(log_q, log_p, reduction=reduction, log_target=True)


def kl_div_loss(input: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    loss: Tensor = nn.KLDivLoss(reduction=reduction)(torch.log_softmax(input, -1), torch.softmax(target, -1))
    return loss


for _name, _function, _rounding, _text in (
    ("kl_div_loss", kl_div_loss, PLAIN, "nn.KLDivLoss of log_softmax(input), softmax(target)"),
    ("softmax_log", softmax_log, SOFTMAX_FIRST, "kl_div of log(softmax(input)), softmax(target)"),
    ("log_target", log_target, LOG_TARGET, "kl_div with log_target=True"),
):
    for _reduction in REDUCTIONS[1:]:
        path(_name, summary=f'{_text}, reduction="{_reduction}"', reduction=_reduction, rounding=_rounding)(
            partial(_function, reduction=_reduction)
        )


@path("difference", kind="identity", rounding=SOFTMAX_FIRST)
def difference(input: Tensor, target: Tensor) -> Tensor:
    """sum(log(softmax(input)) - log_softmax(input)), which is 0: the thread's second check."""
    return (torch.log(torch.softmax(input, -1)) - torch.log_softmax(input, -1)).sum(-1)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _kl_div(input_step: Step, target_step: Step, log_target: bool, input: Tensor, target: Tensor) -> Tensor:
    return kl_div(input_step(input), target_step(target), log_target=log_target)


# kind -> (as written, how it becomes what kl_div takes, what that rounds). The input's side, and the target's.
_INPUTS: dict[str, tuple[str, Step, str]] = {
    "logits": ("log_softmax(input)", partial(torch.log_softmax, dim=-1), "log_softmax"),
    "log_probs": ("input", _as_it_is, "log_probs"),
    "probs": ("log(input)", torch.log, "probs"),
}
_TARGETS: dict[str, tuple[str, Step, str]] = {
    "logits": ("softmax(target)", partial(torch.softmax, dim=-1), "softmax"),
    "log_probs": ("target, log_target=True", _as_it_is, "log_probs"),
    "probs": ("target", _as_it_is, "given"),
}
for _input_kind, (_input_text, _input_step, _input) in _INPUTS.items():
    for _target_kind, (_target_text, _target_step, _target) in _TARGETS.items():
        if _input_kind != "logits" or _target_kind == "log_probs":
            path(
                "kl_div",
                summary=f"kl_div({_input_text}, {_target_text}), for {_input_kind} against {_target_kind}",
                input_kind=_input_kind,
                target_kind=_target_kind,
                rounding=torch_rounding(_target, _input),
            )(partial(_kl_div, _input_step, _target_step, _target_kind == "log_probs"))
