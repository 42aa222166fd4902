"""kl_div of what a user's file holds as probabilities or log-probabilities already, taken as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from audit.paths import path
from audit.paths.functional import kl_div
from audit.paths.rounding import torch_rounding

Step = Callable[[Tensor], Tensor]


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
