"""What log-probabilities of sampled tokens tell, and how much of it is noise: k1, k2, k3 and the importance ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from audit.base.formats import FORMATS
from audit.base.kinds import TOKENS
from audit.base.usage import UsageError
from audit.explain.rows import kept
from audit.judge.limits import token_bound
from audit.paths import registered
from audit.reference.quantities import quantity_references


@dataclass(frozen=True)
class TokenDiagnosis:
    """`table`: a row a formula, its mean over the tokens that count (`value`), its `exact` mean, how far off a sound
    computation may be (`bound`), and how many tokens are negative, and not finite. `noise`: the root
    mean square by which two engines differ that do nothing but round these log-probabilities to this dtype; a k3 below
    `noise_k3` tells nothing.
    """

    table: pd.DataFrame
    tokens: int
    dtype: str
    noise: float

    @property
    def noise_k3(self) -> float:
        return self.noise**2 / 2

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens in {self.dtype}\n{self.table.to_string(float_format=lambda v: f'{v:.6g}')}\n"
            f"two {self.dtype} engines disagree by {self.noise:.2g} a token: below {self.noise_k3:.2g} k3 is noise"
        )


def diagnose_tokens(input: Tensor, target: Tensor, mask: Tensor | None = None) -> TokenDiagnosis:
    """What is made of log-probabilities of tokens that were sampled from the target, all of one shape (batch, time).

    As a penalty the target is the policy and the input the reference; as importance sampling the target is the policy
    that sampled and the input the new one. `mask` is boolean, true for tokens that count.

    Raises UsageError, a ValueError, for what is no pair of floating tensors of one shape, and where no token counts.
    """
    for name, side in (("input", input), ("target", target)):
        if not isinstance(side, Tensor) or str(side.dtype).removeprefix("torch.") not in FORMATS:
            given = side.dtype if isinstance(side, Tensor) else type(side).__name__
            raise UsageError(f"{name}: expected a floating tensor of log-probabilities, one a token, got {given}")
    if input.shape != target.shape or not input.numel():
        raise UsageError(f"expected two tensors of one shape; got {tuple(input.shape)} and {tuple(target.shape)}")
    keep = kept(mask, tuple(input.shape))
    dtype = torch.promote_types(input.dtype, target.dtype)
    x, y = (side.detach().cpu()[keep][:, None] for side in (input, target))
    noise = math.sqrt(sum(float((_spacing(side) ** 2).mean()) / 12 for side in (x, y)))
    x, y, name = x.to(dtype), y.to(dtype), str(dtype).removeprefix("torch.")
    numbers = x.double().numpy(), y.double().numpy()
    rows = {}
    for path in (p for p in registered() if p.input_kind == TOKENS):
        computed = path.function(x, y).double()
        exact = quantity_references(path.quantity, *numbers, digits=17)
        rows[path.name] = {
            "value": float(computed.mean()),
            "exact": float(np.array(exact, dtype=np.float64).mean()),
            "bound": float(token_bound(path.quantity, *numbers, name).mean()),
            "negative": int((computed < 0).sum()),
            "not_finite": int((~computed.isfinite()).sum()),
        }
    return TokenDiagnosis(pd.DataFrame.from_dict(rows, orient="index"), len(x), name, noise)


def _spacing(logs: Tensor) -> Tensor:
    """From each number to the next of its dtype."""
    return (torch.nextafter(logs, torch.full_like(logs, -math.inf)) - logs).double()
