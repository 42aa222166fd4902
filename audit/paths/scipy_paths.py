"""scipy's KL, on probabilities from torch's softmax, where scipy is installed; on the CPU alone, as numpy is."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from audit.paths import path
from audit.paths.rounding import Rounding

ABSENT = "" if find_spec("scipy") else "scipy is not installed"
DTYPES = ("float32", "float64")
PROBABILITIES = Rounding("softmax", "softmax")


def _probabilities(input: Tensor, target: Tensor) -> list[Any]:
    """p and q as arrays, in scipy's order."""
    return [torch.softmax(t, -1).numpy() for t in (target, input)]


@path("scipy_rel_entr", dtypes=DTYPES, rounding=PROBABILITIES, absent=ABSENT, where="cpu")
def rel_entr(input: Tensor, target: Tensor) -> Tensor:
    """scipy.special.rel_entr(softmax(target), softmax(input)), summed over the classes."""
    from scipy.special import rel_entr

    return torch.as_tensor(rel_entr(*_probabilities(input, target))).sum(-1)


@path("scipy_kl_div", dtypes=DTYPES, rounding=replace(PROBABILITIES, masses=True), absent=ABSENT, where="cpu")
def kl_div(input: Tensor, target: Tensor) -> Tensor:
    """scipy.special.kl_div(softmax(target), softmax(input)), summed: p log(p / q) - p + q."""
    from scipy.special import kl_div

    return torch.as_tensor(kl_div(*_probabilities(input, target))).sum(-1)


@path("scipy_entropy", dtypes=DTYPES, rounding=PROBABILITIES, absent=ABSENT, where="cpu")
def entropy(input: Tensor, target: Tensor) -> Tensor:
    """scipy.stats.entropy(softmax(target), softmax(input)), which normalises both once more."""
    from scipy.stats import entropy

    return torch.as_tensor(entropy(*_probabilities(input, target), axis=-1))
