"""Known defects, by name (`defects.CAUSES`): each gives, class by class, what the defect adds up.

A cause takes `Rows` and returns the terms of its sum, rows x classes, or several sets of them that are summed apart.
In binary64 they say what the defect means; where it is a rounding they are tensors of the path's own formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from audit.paths.rounding import PLAIN, Rounding

Terms = Tensor | tuple[Tensor, ...]


class Rows:
    """Input and target, rows x classes in their dtype, the roundings of the path that was given them, and in binary64
    their logits x and y (the logarithms of what was given as probabilities), log q, log p, q, p and the divergence's
    terms. `kinds`: what input and target are.
    """

    def __init__(
        self, input: Tensor, target: Tensor, kinds: tuple[str, str] = ("logits", "logits"), rounding: Rounding = PLAIN
    ) -> None:
        self.input, self.target, self.kinds, self.rounding = input, target, kinds, rounding
        pairs = list(zip((input, target), kinds, strict=True))
        self.x, self.y = (t.double().log() if kind == "probs" else t.double() for t, kind in pairs)
        logs = zip((self.x, self.y), kinds, strict=True)
        self.log_q, self.log_p = (t.log_softmax(-1) if kind == "logits" else t for t, kind in logs)
        self.q, self.p = self.log_q.exp(), self.log_p.exp()
        self.terms = kl_terms(self.log_p, self.log_q)

    def stored(self, t: Tensor) -> Tensor:
        """In the format that the path's tensors have."""
        return t.to(self._format(self.rounding.storage or "logits"))

    def _format(self, name: str) -> torch.dtype:
        """What a Rounding's word for a format stands for."""
        if name == "compute":
            inside = torch.promote_types(self.input.dtype, torch.float32)
            return getattr(torch, self.rounding.compute) if self.rounding.compute else inside
        return self.input.dtype if name == "logits" else getattr(torch, name)

    def shifted(self, t: Tensor) -> Tensor:
        """Logits less their maximum, in the format that kernels compute in: float32 for halves."""
        wide = torch.promote_types(self.stored(t).dtype, torch.float32)
        return t.to(wide) - t.to(wide).amax(-1, keepdim=True)

    def probabilities(self) -> Tensor:
        """The target's, stored."""
        return self.target if self.kinds[1] == "probs" else self.stored(self.shifted(self.target).softmax(-1))

    def divergence(self, log_q: Tensor, p: Tensor, log_p: Tensor) -> Terms:
        """The terms that the path makes of stored (log-)probabilities, in its formats."""
        result = self._format(self.rounding.result) if self.rounding.result else log_q.dtype
        log_q, p, log_p = (t.to(result) for t in (log_q, p, log_p))
        if self.rounding.target == "log_softmax":
            return F.kl_div(log_q, log_p, reduction="none", log_target=True)
        if self.rounding.masses:
            return torch.xlogy(p, p) - p * log_q - p + log_q.exp()
        if self.rounding.separate:
            return torch.xlogy(p, p), -(p * log_q)
        return F.kl_div(log_q, p, reduction="none")


def kl_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q), 0 where p = 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0)


@dataclass(frozen=True)
class Cause:
    """A defect: `terms` of Rows, and of one of `values` where there are any, gives what it adds up.

    `paths`: those of the audit's own that have it by construction, so that it need not be shown there again.
    `emulated`: its terms have the roundings of the path's stored tensors, in halves to the bit. `chance`: how likely
    any other defect gives its result, at the least, where that is one of few.
    """

    name: str
    summary: str
    terms: Callable[..., Terms]
    values: tuple[Any, ...] = ()
    paths: tuple[str, ...] = ()
    emulated: bool = False
    chance: float = 0.0

    @property
    def variants(self) -> list[Callable[[Rows], Terms]]:
        """Each the function that may be it."""
        return [partial(self.terms, value) for value in self.values] or [self.terms]
