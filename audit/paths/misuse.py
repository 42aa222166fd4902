"""Known mistakes: what each gives, beside the KL that was meant. Shown, never gated.

Each is compared with the exact value of its own mistaken formula (reference.quantities, under the same name), beside
the KL that was meant. `reduction` is what was meant. A call that raises is a row without a result, its message the
note, its reference the KL.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, log_softmax, nn, softmax
from torch.nn import functional as F

from audit.paths import path

MAPS = "maps_3x8x8"
RAISING = ("loss_from_tensors", "log_softmax_from_tensor")


def _batchmean(input: Tensor, target: Tensor, *, log_target: bool = False) -> Tensor:
    return F.kl_div(input, target, reduction="batchmean", log_target=log_target)


def _epsilon_in_log(x: Tensor, y: Tensor) -> Tensor:
    q, p = softmax(x, -1), softmax(y, -1)
    return (p * (torch.log(p + 1e-8) - torch.log(q + 1e-8))).sum() / len(x)


def _threshold_skipped(x: Tensor, y: Tensor) -> Tensor:
    p = softmax(y, -1)
    return torch.where(p >= 1e-3, p * (p.log() - log_softmax(x, -1)), 0.0).sum() / len(x)


_MISTAKES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "probabilities_as_input": (
        "kl_div(softmax(x), softmax(y)): probabilities where log-probabilities belong; negative, -1 - log n at least",
        lambda x, y: _batchmean(softmax(x, -1), softmax(y, -1)),
    ),
    "logits_as_input": (
        "kl_div(x, softmax(y)): raw logits as input; off by the input's log-sum-exp, of either sign",
        lambda x, y: _batchmean(x, softmax(y, -1)),
    ),
    "logits_as_target": (
        "kl_div(log_softmax(x), y): raw logits as target; NaN as soon as one is negative",
        lambda x, y: _batchmean(log_softmax(x, -1), y),
    ),
    "log_probabilities_as_target": (
        "kl_div(log_softmax(x), log_softmax(y)) without log_target=True: NaN",
        lambda x, y: _batchmean(log_softmax(x, -1), log_softmax(y, -1)),
    ),
    "probabilities_with_log_target": (
        "kl_div(log_softmax(x), softmax(y), log_target=True): exp of probabilities; far too large, positive",
        lambda x, y: _batchmean(log_softmax(x, -1), softmax(y, -1), log_target=True),
    ),
    "swapped": (
        "kl_div(log_softmax(y), softmax(x)): arguments swapped, so KL(input || target)",
        lambda x, y: _batchmean(log_softmax(y, -1), softmax(x, -1)),
    ),
    "wrong_dim": (
        "Both sides normalised down the rows: a divergence, of other distributions",
        lambda x, y: _batchmean(log_softmax(x, 0), softmax(y, 0)),
    ),
    "different_dims": (
        "log_softmax down the rows against softmax along the classes: of either sign",
        lambda x, y: _batchmean(log_softmax(x, 0), softmax(y, -1)),
    ),
    "maps_over_different_dims": (
        "Maps (C, W, H): log_softmax over the channels against softmax over the last dim: always negative, and large",
        lambda x, y: _batchmean(log_softmax(x.reshape(-1, 8, 8), 0), softmax(y.reshape(-1, 8, 8), 2)),
    ),
    "half_mass": (
        "A target of mass c = 1/2: c KL + c log c, that is -0.3466 for equal distributions; never below c log c",
        lambda x, y: _batchmean(log_softmax(x, -1), 0.5 * softmax(y, -1)),
    ),
    "double_softmax": (
        "softmax applied twice on both sides: a divergence of nearly flat distributions, far too small",
        lambda x, y: _batchmean(log_softmax(softmax(x, -1), -1), softmax(softmax(y, -1), -1)),
    ),
    "epsilon_in_log": (
        "sum p (log(p + 1e-8) - log(q + 1e-8)): the epsilon bounds each logarithm, and the result with it",
        _epsilon_in_log,
    ),
    "clamped": (
        "clamp(min=1e-10) on both sides: adds mass, and is nothing at all in float16",
        lambda x, y: _batchmean(softmax(x, -1).clamp(min=1e-10).log(), softmax(y, -1).clamp(min=1e-10)),
    ),
    "threshold_skipped": ("Terms with p < 1e-3 left out: what remains need not be positive", _threshold_skipped),
    "mean_for_batchmean": (
        'reduction="mean" where "batchmean" is meant: smaller by the number of classes, torch\'s own default',
        lambda x, y: F.kl_div(log_softmax(x, -1), softmax(y, -1), reduction="mean"),
    ),
    "loss_from_tensors": (
        "nn.KLDivLoss(log_softmax(x), softmax(y))(...): tensors given to the constructor; raises",
        lambda x, y: nn.KLDivLoss(log_softmax(x, -1), softmax(y, -1))(log_softmax(x, -1), softmax(y, -1)),
    ),
    "log_softmax_from_tensor": (
        "nn.LogSoftmax(x)(x): a tensor given for dim; raises",
        lambda x, y: _batchmean(nn.LogSoftmax(x)(x), softmax(y, -1)),  # type: ignore[arg-type]
    ),
}
for _name, (_summary, _function) in _MISTAKES.items():
    path(
        _name,
        summary=_summary,
        kind="misuse",
        reduction="batchmean",
        quantity="kl" if _name in RAISING else _name,
        cases=(MAPS,) if _name == "maps_over_different_dims" else ("mistakes_*",),
    )(_function)
