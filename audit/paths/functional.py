"""KL as people write it with torch: softmax then log, log_softmax, log_target, KLDivLoss, of logits or of what is given
as probabilities; dtype arguments, upcasts, cross-entropy, distributions, another dim.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audit.paths import REDUCTIONS, path
from audit.paths.rounding import ANY_ORDER, PLAIN, torch_rounding

SOFTMAX_FIRST = torch_rounding(input="softmax")
LOG_TARGET = torch_rounding("log_softmax")
APART = torch_rounding(separate=True)
HALVES = ("float16", "bfloat16")
TEMPERATURE = 4.0
Step = Callable[[Tensor], Tensor]


def kl_div(log_q: Tensor, p: Tensor, *, reduction: str = "none", **options: bool) -> Tensor:
    """torch's kl_div, summed over the classes where it is not reduced."""
    loss = F.kl_div(log_q, p, reduction=reduction, **options)
    return loss.sum(-1) if reduction == "none" else loss


@path("softmax_log", rounding=SOFTMAX_FIRST)
def softmax_log(input: Tensor, target: Tensor, *, reduction: str = "none") -> Tensor:
    """kl_div(log(softmax(input)), softmax(target)): softmax first, then its logarithm."""
    return kl_div(torch.log(torch.softmax(input, -1)), torch.softmax(target, -1), reduction=reduction)


@path("log_softmax", rounding=PLAIN)
def log_softmax(input: Tensor, target: Tensor) -> Tensor:
    """kl_div(log_softmax(input), softmax(target)): the call torch's documentation recommends."""
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


def _of_given(input_step: Step, target_step: Step, log_target: bool, input: Tensor, target: Tensor) -> Tensor:
    return kl_div(input_step(input), target_step(target), log_target=log_target)


# kind -> (as written, how it becomes what kl_div takes, what that rounds). The input's side, and the target's.
_INPUTS: dict[str, tuple[str, Step, str]] = {
    "logits": ("log_softmax(input)", lambda x: x.log_softmax(-1), "log_softmax"),
    "log_probs": ("input", lambda x: x, "log_probs"),
    "probs": ("log(input)", torch.log, "probs"),
}
_TARGETS: dict[str, tuple[str, Step, str]] = {
    "logits": ("softmax(target)", lambda y: y.softmax(-1), "softmax"),
    "log_probs": ("target, log_target=True", lambda y: y, "log_probs"),
    "probs": ("target", lambda y: y, "given"),
}
for _kinds in product(_INPUTS, _TARGETS):
    if _kinds not in (("logits", "logits"), ("logits", "probs")):
        (_input, _step, _rounds), (_target, _target_step, _target_rounds) = _INPUTS[_kinds[0]], _TARGETS[_kinds[1]]
        path(
            "kl_div",
            summary=f"kl_div({_input}, {_target}), for {_kinds[0]} against {_kinds[1]}",
            input_kind=_kinds[0],
            target_kind=_kinds[1],
            rounding=torch_rounding(_target_rounds, _rounds),
        )(partial(_of_given, _step, _target_step, _kinds[1] == "log_probs"))


@path("softmax_dtype", dtypes=HALVES, rounding=torch_rounding(storage="float32"))
def softmax_dtype(input: Tensor, target: Tensor) -> Tensor:
    """kl_div with log_softmax(dtype=float32) and softmax(dtype=float32): the result is float32."""
    return kl_div(torch.log_softmax(input, -1, dtype=torch.float32), torch.softmax(target, -1, dtype=torch.float32))


@path("softmax_dtype_cast", dtypes=HALVES, rounding=PLAIN)
def softmax_dtype_cast(input: Tensor, target: Tensor) -> Tensor:
    """The same, each rounded back to the logits' dtype: not what softmax in that dtype gives."""
    log_q, p = torch.log_softmax(input, -1, dtype=torch.float32), torch.softmax(target, -1, dtype=torch.float32)
    return kl_div(log_q.to(input.dtype), p.to(input.dtype))


@path("upcast", dtypes=(*HALVES, "float32"), rounding=ANY_ORDER)
def upcast(input: Tensor, target: Tensor) -> Tensor:
    """log_softmax path on the logits in the next wider format, cast back."""
    wide = torch.float64 if input.dtype == torch.float32 else torch.float32
    return kl_div(torch.log_softmax(input.to(wide), -1), torch.softmax(target.to(wide), -1)).to(input.dtype)


@path("cross_entropy_minus_entropy", rounding=APART)
def cross_entropy_minus_entropy(input: Tensor, target: Tensor) -> Tensor:
    """-sum p log q + sum p log p, summed apart."""
    p = torch.softmax(target, -1)
    return torch.xlogy(p, p).sum(-1) - (p * torch.log_softmax(input, -1)).sum(-1)


@path("soft_cross_entropy", rounding=APART)
def soft_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    """F.cross_entropy with probabilities as its target, minus their entropy."""
    p = torch.softmax(target, -1)
    return F.cross_entropy(input, p, reduction="none") + torch.xlogy(p, p).sum(-1)


@path("llama_cpp", kind="estimator", dtypes=(*HALVES, "float32"))
def llama_cpp(input: Tensor, target: Tensor) -> Tensor:
    """What llama.cpp's perplexity --kl-divergence gives: the target's log-probabilities in 65,535 steps.

    They are kept from the largest to 16 below it, and terms under exp(-16) left out (llama.cpp, tools/perplexity).
    """
    x, y = input.float(), target.float()
    top = y.amax(-1, keepdim=True)
    shift = top + (y - top).exp().sum(-1, keepdim=True).log()
    low = torch.maximum(y.amin(-1, keepdim=True), top - 16)
    step = ((top - low) / 65_535).clamp(min=torch.finfo(torch.float32).tiny)
    log_p = ((y - low) / step).round().clamp(min=0) * step + (low - shift)
    terms = log_p.exp() * (log_p - torch.log_softmax(x, -1))
    return torch.where(log_p > -16, terms, 0.0).sum(-1)


@path("categorical", rounding=torch_rounding("log_softmax"))
def categorical(input: Tensor, target: Tensor) -> Tensor:
    """torch.distributions.kl_divergence of two Categoricals; it rounds an unshifted log-sum-exp."""
    p, q = (torch.distributions.Categorical(logits=t, validate_args=False) for t in (target, input))
    divergence: Tensor = torch.distributions.kl_divergence(p, q)
    return divergence


@path("generalised", rounding=torch_rounding(input="any", masses=True))
def generalised(input: Tensor, target: Tensor) -> Tensor:
    """The generalised KL, term by term p log(p / q) - p + q, as scipy.special.kl_div has it."""
    p, log_q = torch.softmax(target, -1), torch.log_softmax(input, -1)
    return (torch.xlogy(p, p) - p * log_q - p + log_q.exp()).sum(-1)


@path(
    "distillation",
    kind="identity",
    quantity="distillation",
    cases=("temperature_*", "random_scale*", "near_*", "peaked_gap*", "mistakes_*", "digits_*"),
    rounding=torch_rounding(temperature=TEMPERATURE),
)
def distillation(input: Tensor, target: Tensor) -> Tensor:
    """T^2 KL of the logits over T = 4, as distillation has it; the reference is that value."""
    log_q, p = torch.log_softmax(input / TEMPERATURE, -1), torch.softmax(target / TEMPERATURE, -1)
    return kl_div(log_q, p) * TEMPERATURE**2


def _first_dim(input: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    x, y = (torch.stack(t.unbind(0), 1) for t in (input, target))
    loss = F.kl_div(torch.log_softmax(x, 0), torch.softmax(y, 0), reduction=reduction)
    return loss.sum(0) if reduction == "none" else loss


for _reduction in ("none", "sum", "mean"):  # "batchmean" would divide by the first dim, the number of classes
    path(
        "first_dim",
        summary=f'kl_div(log_softmax(input, 0), softmax(target, 0), reduction="{_reduction}"): classes first',
        reduction=_reduction,
        rounding=ANY_ORDER,
    )(partial(_first_dim, reduction=_reduction))


# torch's lists for its accelerators have softmax and log_softmax in float32; the one for the CPU has kl_div alone.
@path("autocast", dtypes=(*HALVES, "float32"), rounding=torch_rounding(storage="float32"), where="accelerator")
@path("autocast", dtypes=(*HALVES, "float32"), rounding=torch_rounding(result="float32"), where="cpu")
def autocast(input: Tensor, target: Tensor) -> Tensor:
    """The log_softmax path under torch.autocast: kl_div in float32, and softmax too but for a CPU."""
    with torch.autocast(input.device.type, dtype=torch.bfloat16):
        return kl_div(torch.log_softmax(input, -1), torch.softmax(target, -1))
