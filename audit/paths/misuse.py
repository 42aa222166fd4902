"""Known mistakes, which mistakes.csv describes: what each gives, beside the KL that was meant. Shown, never gated.

Each is compared with the exact value of its own mistaken formula (reference.quantities, under the same name), beside
the KL that was meant. `reduction` is what was meant. A call that raises is a row without a result, its message the
note, its reference the KL.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from importlib.resources import files

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


_MISTAKES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "probabilities_as_input": lambda x, y: _batchmean(softmax(x, -1), softmax(y, -1)),
    "logits_as_input": lambda x, y: _batchmean(x, softmax(y, -1)),
    "logits_as_target": lambda x, y: _batchmean(log_softmax(x, -1), y),
    "log_probabilities_as_target": lambda x, y: _batchmean(log_softmax(x, -1), log_softmax(y, -1)),
    "probabilities_with_log_target": lambda x, y: _batchmean(log_softmax(x, -1), softmax(y, -1), log_target=True),
    "swapped": lambda x, y: _batchmean(log_softmax(y, -1), softmax(x, -1)),
    "wrong_dim": lambda x, y: _batchmean(log_softmax(x, 0), softmax(y, 0)),
    "different_dims": lambda x, y: _batchmean(log_softmax(x, 0), softmax(y, -1)),
    "maps_over_different_dims": lambda x, y: _batchmean(
        log_softmax(x.reshape(-1, 8, 8), 0), softmax(y.reshape(-1, 8, 8), 2)
    ),
    "half_mass": lambda x, y: _batchmean(log_softmax(x, -1), 0.5 * softmax(y, -1)),
    "double_softmax": lambda x, y: _batchmean(log_softmax(softmax(x, -1), -1), softmax(softmax(y, -1), -1)),
    "epsilon_in_log": _epsilon_in_log,
    "clamped": lambda x, y: _batchmean(softmax(x, -1).clamp(min=1e-10).log(), softmax(y, -1).clamp(min=1e-10)),
    "threshold_skipped": _threshold_skipped,
    "mean_for_batchmean": lambda x, y: F.kl_div(log_softmax(x, -1), softmax(y, -1), reduction="mean"),
    "loss_from_tensors": lambda x, y: nn.KLDivLoss(log_softmax(x, -1), softmax(y, -1))(
        x.log_softmax(-1), y.softmax(-1)
    ),
    "log_softmax_from_tensor": lambda x, y: _batchmean(nn.LogSoftmax(x)(x), softmax(y, -1)),  # type: ignore[arg-type]
}
for _mistake in csv.DictReader((files("audit.paths") / "mistakes.csv").read_text(encoding="utf-8").splitlines()):
    _name = _mistake["name"]
    path(
        **_mistake,
        kind="misuse",
        reduction="batchmean",
        quantity="kl" if _name in RAISING else _name,
        cases=(MAPS,) if _name == "maps_over_different_dims" else ("mistakes_*",),
    )(_MISTAKES[_name])
