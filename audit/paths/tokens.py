"""What reinforcement learning makes of a sampled token's two log-probabilities.

Input and target have the shape (tokens, 1); the token was sampled from the target, as KL(target || input) has it, and
r = input - target. As a penalty the target is the policy and the input the reference; as importance sampling the target
is the policy that sampled, and the input the new one. The formulas are those of TRL (GRPOTrainer), of verl
(core_algos.kl_penalty_forward) and of OpenRLHF (compute_approx_kl). Each means to give its own formula's exact value.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from audit.base.kinds import TOKENS
from audit.paths import path

EPSILON = 0.2  # of PPO's clip


def estimator(of: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Registers a function of r in the tensors' own dtype, a value a token."""

    def tokens(input: Tensor, target: Tensor) -> Tensor:
        return of((input - target).squeeze(-1))

    kinds = {"input_kind": TOKENS, "target_kind": TOKENS}
    path(of.__name__, summary=of.__doc__ or "", kind="identity", quantity=of.__name__, **kinds)(tokens)
    return of


@estimator
def token_k1(r: Tensor) -> Tensor:
    """-r: unbiased, of either sign"""
    return -r


@estimator
def token_k2(r: Tensor) -> Tensor:
    """r^2 / 2: biased, never negative"""
    return r.square() / 2


@estimator
def token_k3(r: Tensor) -> Tensor:
    """exp(r) - r - 1, TRL's: unbiased, without a clamp"""
    return r.exp() - r - 1


@estimator
def token_k3_verl(r: Tensor) -> Tensor:
    """verl's k3: r clamped to 20 either way, the result to 10"""
    r = r.clamp(-20, 20)
    return (r.exp() - r - 1).clamp(-10, 10)


@path(
    "token_k3_openrlhf",
    summary="OpenRLHF's k3: in float32, the result clamped to 10",
    kind="identity",
    quantity="token_k3_openrlhf",
    input_kind=TOKENS,
    target_kind=TOKENS,
)
def token_k3_openrlhf(input: Tensor, target: Tensor) -> Tensor:
    r = (input.float() - target.float()).squeeze(-1)
    return (r.exp() - 1 - r).clamp(-10, 10)


@estimator
def token_ratio(r: Tensor) -> Tensor:
    """exp(r), the importance ratio"""
    return r.exp()


@estimator
def token_ratio_clipped(r: Tensor) -> Tensor:
    """exp(r) clipped to 1 - 0.2 and 1 + 0.2, as PPO does"""
    return r.exp().clamp(1 - EPSILON, 1 + EPSILON)
