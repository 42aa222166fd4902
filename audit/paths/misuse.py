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

Mistake = Callable[[Tensor, Tensor], Tensor]
CASES = ("mistakes_*",)
MAPS = "maps_3x8x8"


def _batchmean(input: Tensor, target: Tensor, *, log_target: bool = False) -> Tensor:
    return F.kl_div(input, target, reduction="batchmean", log_target=log_target)


def mistake(function: Mistake) -> Mistake:
    return path(function.__name__, kind="misuse", reduction="batchmean", quantity=function.__name__, cases=CASES)(
        function
    )


@mistake
def probabilities_as_input(x: Tensor, y: Tensor) -> Tensor:
    """kl_div(softmax(x), softmax(y)): probabilities where log-probabilities belong; negative, -1 - log n at least."""
    return _batchmean(softmax(x, -1), softmax(y, -1))


@mistake
def logits_as_input(x: Tensor, y: Tensor) -> Tensor:
    """kl_div(x, softmax(y)): raw logits as input; off by the input's log-sum-exp, of either sign."""
    return _batchmean(x, softmax(y, -1))


@mistake
def logits_as_target(x: Tensor, y: Tensor) -> Tensor:
    """kl_div(log_softmax(x), y): raw logits as target; NaN as soon as one is negative."""
    return _batchmean(log_softmax(x, -1), y)


@mistake
def log_probabilities_as_target(x: Tensor, y: Tensor) -> Tensor:
    """kl_div(log_softmax(x), log_softmax(y)) without log_target=True: NaN."""
    return _batchmean(log_softmax(x, -1), log_softmax(y, -1))


@mistake
def probabilities_with_log_target(x: Tensor, y: Tensor) -> Tensor:
    """kl_div(log_softmax(x), softmax(y), log_target=True): exp of probabilities; far too large, positive."""
    return _batchmean(log_softmax(x, -1), softmax(y, -1), log_target=True)


@mistake
def swapped(x: Tensor, y: Tensor) -> Tensor:
    """kl_div(log_softmax(y), softmax(x)): arguments swapped, so KL(input || target)."""
    return _batchmean(log_softmax(y, -1), softmax(x, -1))


@mistake
def wrong_dim(x: Tensor, y: Tensor) -> Tensor:
    """Both sides normalised down the rows: a divergence, of other distributions."""
    return _batchmean(log_softmax(x, 0), softmax(y, 0))


@mistake
def different_dims(x: Tensor, y: Tensor) -> Tensor:
    """log_softmax down the rows against softmax along the classes: of either sign."""
    return _batchmean(log_softmax(x, 0), softmax(y, -1))


@path(
    "maps_over_different_dims", kind="misuse", reduction="batchmean", quantity="maps_over_different_dims", cases=(MAPS,)
)
def maps_over_different_dims(x: Tensor, y: Tensor) -> Tensor:
    """Maps (C, W, H): log_softmax over the channels against softmax over the last dim: always negative, and large."""
    maps = (len(x), 8, 8)
    return _batchmean(log_softmax(x.reshape(maps), 0), softmax(y.reshape(maps), 2))


@mistake
def half_mass(x: Tensor, y: Tensor) -> Tensor:
    """A target of mass c = 1/2: c KL + c log c, that is -0.3466 for equal distributions; never below c log c."""
    return _batchmean(log_softmax(x, -1), 0.5 * softmax(y, -1))


@mistake
def double_softmax(x: Tensor, y: Tensor) -> Tensor:
    """softmax applied twice on both sides: a divergence of nearly flat distributions, far too small."""
    return _batchmean(log_softmax(softmax(x, -1), -1), softmax(softmax(y, -1), -1))


@mistake
def epsilon_in_log(x: Tensor, y: Tensor) -> Tensor:
    """sum p (log(p + 1e-8) - log(q + 1e-8)): the epsilon bounds each logarithm, and the result with it."""
    q, p = softmax(x, -1), softmax(y, -1)
    return (p * (torch.log(p + 1e-8) - torch.log(q + 1e-8))).sum() / len(x)


@mistake
def clamped(x: Tensor, y: Tensor) -> Tensor:
    """clamp(min=1e-10) on both sides: adds mass, and is nothing at all in float16."""
    q, p = softmax(x, -1).clamp(min=1e-10), softmax(y, -1).clamp(min=1e-10)
    return _batchmean(q.log(), p)


@mistake
def threshold_skipped(x: Tensor, y: Tensor) -> Tensor:
    """Terms with p < 1e-3 left out: what remains need not be positive."""
    p = softmax(y, -1)
    return torch.where(p >= 1e-3, p * (p.log() - log_softmax(x, -1)), 0.0).sum() / len(x)


@mistake
def mean_for_batchmean(x: Tensor, y: Tensor) -> Tensor:
    """reduction="mean" where "batchmean" is meant: smaller by the number of classes, torch's own default."""
    return F.kl_div(log_softmax(x, -1), softmax(y, -1), reduction="mean")


@path("loss_from_tensors", kind="misuse", reduction="batchmean", cases=CASES)
def loss_from_tensors(x: Tensor, y: Tensor) -> Tensor:
    """nn.KLDivLoss(log_softmax(x), softmax(y))(...): tensors given to the constructor; raises."""
    loss: Tensor = nn.KLDivLoss(log_softmax(x, -1), softmax(y, -1))(log_softmax(x, -1), softmax(y, -1))
    return loss


@path("log_softmax_from_tensor", kind="misuse", reduction="batchmean", cases=CASES)
def log_softmax_from_tensor(x: Tensor, y: Tensor) -> Tensor:
    """nn.LogSoftmax(x)(x): a tensor given for dim; raises."""
    return _batchmean(nn.LogSoftmax(x)(x), softmax(y, -1))  # type: ignore[arg-type]
