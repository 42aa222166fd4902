"""KL estimated from sampled tokens, as RLHF code does (J. Schulman, "Approximating KL Divergence", 2020).

With r = log q - log p at a token sampled from the target: k1 = -r and k3 = exp(r) - 1 - r have the expectation KL,
k2 = r^2 / 2 does not. Each is compared with its own formula's exact value.

Of logits a row's first class is the sampled one (cases.sampled), so that every device has the same sample. Of a file
of tokens input and target have the shape (tokens, 1) and hold the two log-probabilities: as a penalty the target is the
policy and the input the reference; as importance sampling the target is the policy that sampled, and the input the new
one. Their formulas are those of TRL (GRPOTrainer), of verl (core_algos.kl_penalty_forward) and of OpenRLHF
(compute_approx_kl).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from audit.base.kinds import TOKENS
from audit.paths import path

Formula = Callable[[Tensor], Tensor]
EPSILON = 0.2  # of PPO's clip

_OF_LOGITS: dict[str, tuple[str, Formula]] = {
    "k1": ("-r at a sampled token, r = log q - log p: unbiased, of either sign", lambda r: -r),
    "k2": ("r^2 / 2 at a sampled token: biased, never negative", lambda r: r.square() / 2),
    "k3": ("exp(r) - 1 - r at a sampled token: unbiased, never negative but for rounding", lambda r: r.exp() - 1 - r),
}
_OF_TOKENS: dict[str, tuple[str, Formula]] = {
    "token_k1": ("-r: unbiased, of either sign", lambda r: -r),
    "token_k2": ("r^2 / 2: biased, never negative", lambda r: r.square() / 2),
    "token_k3": ("exp(r) - r - 1, TRL's: unbiased, without a clamp", lambda r: r.exp() - r - 1),
    "token_k3_verl": (
        "verl's k3: r clamped to 20 either way, the result to 10",
        lambda r: _OF_TOKENS["token_k3"][1](r.clamp(-20, 20)).clamp(-10, 10),
    ),
    "token_k3_openrlhf": (
        "OpenRLHF's k3: in float32, the result clamped to 10",
        lambda r: (r.exp() - 1 - r).clamp(-10, 10),
    ),
    "token_ratio": ("exp(r), the importance ratio", torch.exp),
    "token_ratio_clipped": (
        "exp(r) clipped to 1 - 0.2 and 1 + 0.2, as PPO does",
        lambda r: r.exp().clamp(1 - EPSILON, 1 + EPSILON),
    ),
}


def _of_logits(formula: Formula, reduction: str, input: Tensor, target: Tensor) -> Tensor:
    log_q, log_p = (torch.log_softmax(side, -1).select(-1, 0) for side in (input, target))
    values = formula(log_q - log_p)
    return values if reduction == "none" else values.mean()


def _of_tokens(formula: Formula, dtype: torch.dtype | None, input: Tensor, target: Tensor) -> Tensor:
    """In the tensors' own dtype, or a wider one."""
    return formula((input.to(dtype or input.dtype) - target.to(dtype or input.dtype)).squeeze(-1))


for _name, (_summary, _formula) in _OF_LOGITS.items():
    for _reduction in ("none", "batchmean"):
        path(_name, summary=_summary, kind="estimator", reduction=_reduction, quantity=_name, cases=("sampled_*",))(
            partial(_of_logits, _formula, _reduction)
        )
for _name, (_summary, _formula) in _OF_TOKENS.items():
    _dtype = torch.float32 if _name == "token_k3_openrlhf" else None
    path(_name, summary=_summary, kind="identity", quantity=_name, input_kind=TOKENS, target_kind=TOKENS)(
        partial(_of_tokens, _formula, _dtype)
    )
