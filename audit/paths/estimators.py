"""KL estimated from one sampled token a row, as RLHF code does: k1, k2 and k3 (J. Schulman, "Approximating KL
Divergence", 2020).

With r = log q - log p at the token, sampled from the target: k1 = -r and k3 = exp(r) - 1 - r have the expectation KL,
k2 = r^2 / 2 does not. Cases put the sampled class first (cases.sampled), so that every device has the same sample.
Compared with their exact value on that sample, beside the KL they estimate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from audit.paths import path

Estimator = Callable[[Tensor], Tensor]


def estimator(of: Estimator) -> Estimator:
    """Registers a function of r, a value a row, and its mean over rows."""

    def rows(input: Tensor, target: Tensor) -> Tensor:
        return of(torch.log_softmax(input, -1).select(-1, 0) - torch.log_softmax(target, -1).select(-1, 0))

    def mean(input: Tensor, target: Tensor) -> Tensor:
        return rows(input, target).mean()

    for reduction, function in (("none", rows), ("batchmean", mean)):
        path(
            of.__name__,
            summary=of.__doc__ or "",
            kind="estimator",
            reduction=reduction,
            quantity=of.__name__,
            cases=("sampled_*",),
        )(function)
    return of


@estimator
def k1(r: Tensor) -> Tensor:
    """-r at a sampled token, r = log q - log p: unbiased, of either sign"""
    return -r


@estimator
def k2(r: Tensor) -> Tensor:
    """r^2 / 2 at a sampled token: biased, never negative"""
    return r.square() / 2


@estimator
def k3(r: Tensor) -> Tensor:
    """exp(r) - 1 - r at a sampled token: unbiased, never negative but for rounding"""
    return r.exp() - 1 - r
