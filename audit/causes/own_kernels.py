"""Defects that kernels of one's own have, in binary64 but for the one operation that is at fault."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log

import torch
from torch import Tensor, logsumexp

from audit.causes import Cause, Rows, kl_terms, register

BLOCKS = (8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 31_744, 65_536)
SMALL = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12, 1e-15, 1e-16, 1e-20)
DEGREES = (0.5, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0, 16.0, 20.0, *(1 / t for t in (3, 4, 5, 8, 10, 16, 20)))
HALVES = (torch.float16, torch.bfloat16)
ONCE = (None,)


def whole_blocks(t: Tensor, block: int) -> Tensor:
    """The classes in whole blocks, at least one class."""
    return t[:, : max(1, t.shape[-1] // block * block)]


def tempered(r: Rows, degree: float, power: int) -> Tensor:
    return degree**power * kl_terms((r.y / degree).log_softmax(-1), (r.x / degree).log_softmax(-1))


def shortened(values: Tensor, bits: int) -> Tensor:
    """Rounded to so many significant bits."""
    mantissa, exponent = torch.frexp(values)
    return torch.where(values.isfinite(), torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent), values)


def chopped(values: Tensor, kept: int) -> Tensor:
    """The leading bits of a single-precision number, the others dropped."""
    return (values.float().view(torch.int32) & -(1 << (32 - kept))).view(torch.float32).double()


def shifted(t: Tensor) -> Tensor:
    return t - t.amax(-1, keepdim=True)


def normalised(t: Tensor, dtype: torch.dtype = torch.float64, eps: float = 0.0) -> Tensor:
    """log-softmax with its sum of exponentials in some format, and something added to it."""
    return shifted(t) - (shifted(t).exp().sum(-1, keepdim=True) + eps).to(dtype).double().log()


def with_log(r: Rows, function: Callable[[Tensor], Tensor], both: bool) -> Tensor:
    """p (log p - log q) with another logarithm, of both or of q alone."""
    log_p = function(r.p) if both else r.log_p
    return torch.where(r.p > 0, r.p * (log_p - function(r.q)), 0.0)


def unshifted(r: Rows) -> Tensor:
    wide = r.shifted(r.input).dtype
    log_p, log_q = (t.to(wide) - t.to(wide).exp().sum(-1, keepdim=True).log() for t in (r.y, r.x))
    return kl_terms(log_p.double(), log_q.double())


# Name, what it is, the values that its parameter may have, and the terms.
for _name, _summary, _values, _terms in (
    (
        "swapped_sides",
        "input and target swapped: the reverse divergence",
        ONCE,
        lambda _, r: kl_terms(r.log_q, r.log_p),
    ),
    (
        "symmetrised",
        "both directions added, or their mean",
        (1.0, 0.5),
        lambda v, r: v * (r.terms + kl_terms(r.log_q, r.log_p)),
    ),
    ("mean_over_classes", "the mean over the classes for their sum", ONCE, lambda _, r: r.terms / r.x.shape[-1]),
    ("in_bits", "logarithms to base 2: bits for nats", ONCE, lambda _, r: r.terms / log(2)),
    ("wrong_temperature", "a temperature forgotten, or applied twice", DEGREES, lambda v, r: tempered(r, v, 0)),
    ("wrong_temperature_squared", "the same, with its square as a factor", DEGREES, lambda v, r: tempered(r, v, 2)),
    ("tail_left_out", "classes after the last whole block left out", BLOCKS, lambda v, r: whole_blocks(r.terms, v)),
    (
        "tail_left_out_of_normaliser",
        "classes after the last whole block left out of the input's normaliser",
        BLOCKS,
        lambda v, r: kl_terms(r.log_p, r.x - logsumexp(whole_blocks(r.x, v), -1, keepdim=True)),
    ),
    ("last_class_left_out", "the last class left out", ONCE, lambda _, r: r.terms[:, :-1]),
    ("first_class_left_out", "the first class left out, as by an ignore_index of 0", ONCE, lambda _, r: r.terms[:, 1:]),
    ("last_class_twice", "the last class counted twice", ONCE, lambda _, r: torch.cat([r.terms, r.terms[:, -1:]], -1)),
    ("another_row", "the result of the row before, or after", (1, -1), lambda v, r: r.terms.roll(v, 0)),
    ("first_row", "every row has the first one's result", ONCE, lambda _, r: r.terms[:1].expand_as(r.terms)),
    ("eps_in_log", "log(p + eps) on both sides", SMALL, lambda v, r: with_log(r, lambda t: (t + v).log(), True)),
    ("eps_in_log_of_input", "log(q + eps)", SMALL, lambda v, r: with_log(r, lambda t: (t + v).log(), False)),
    (
        "clamp_in_log",
        "log(max(p, eps)) on both sides",
        SMALL,
        lambda v, r: with_log(r, lambda t: t.clamp(min=v).log(), True),
    ),
    (
        "clamp_in_log_of_input",
        "log(max(q, eps))",
        SMALL,
        lambda v, r: with_log(r, lambda t: t.clamp(min=v).log(), False),
    ),
    (
        "eps_in_normaliser",
        "eps added to the input's sum of exponentials",
        SMALL,
        lambda v, r: kl_terms(r.log_p, normalised(r.x, eps=v)),
    ),
    (
        "threshold",
        "terms of small target probabilities left out",
        SMALL,
        lambda v, r: torch.where(r.p > v, r.terms, 0.0),
    ),
    (
        "clamped_shifts",
        "no logit let far below the largest",
        (-20.0, -30.0, -50.0, -100.0),
        lambda v, r: kl_terms(*(shifted(t).clamp(min=v).log_softmax(-1) for t in (r.y, r.x))),
    ),
    ("short_products", "products of 11 or 8 bits, as of TF32 or bfloat16", (11, 8), lambda v, r: shortened(r.terms, v)),
    (
        "short_factors",
        "factors of 11 or 8 bits, as TF32 or bfloat16 has",
        (11, 8),
        lambda v, r: shortened(r.p, v) * shortened((r.log_p - r.log_q).nan_to_num(0.0), v),
    ),
    (
        "half_normaliser",
        "the input's sum of exponentials in a half format",
        HALVES,
        lambda v, r: kl_terms(r.log_p, normalised(r.x, v)),
    ),
    (
        "half_normalisers",
        "both sums of exponentials in a half format",
        HALVES,
        lambda v, r: kl_terms(normalised(r.y, v), normalised(r.x, v)),
    ),
    (
        "half_logits",
        "logits rounded to a half format",
        HALVES,
        lambda v, r: kl_terms(*(t.to(v).double().log_softmax(-1) for t in (r.y, r.x))),
    ),
    (
        "truncated_logits",
        "logits cut, not rounded, to bfloat16 or TF32",
        (16, 19),
        lambda v, r: kl_terms(*(chopped(t, v).log_softmax(-1) for t in (r.y, r.x))),
    ),
    (
        "truncated_result",
        "the result cut, not rounded, to bfloat16 or TF32",
        (16, 19),
        lambda v, r: chopped(r.terms.sum(-1, keepdim=True), v),
    ),
    (
        "nan_at_zero_probability",
        "p log p is NaN where p underflows to 0",
        ONCE,
        lambda _, r: r.terms.masked_fill(r.shifted(r.target).softmax(-1) == 0, torch.nan),
    ),
    (
        "unshifted_exponentials",
        "no maximum subtracted: exponentials overflow or underflow",
        ONCE,
        lambda _, r: unshifted(r),
    ),
    (
        "unnormalised_target",
        "the logarithm of the target's sum left out",
        ONCE,
        lambda _, r: kl_terms(shifted(r.y), r.log_q),
    ),
    (
        "entropy_left_out",
        "the cross-entropy: the entropy is not subtracted",
        ONCE,
        lambda _, r: torch.where(r.p > 0, -r.p * r.log_q, 0.0),
    ),
    ("negative_terms_dropped", "negative terms taken for 0", ONCE, lambda _, r: r.terms.clamp(min=0)),
    ("absolute_terms", "each term without its sign", ONCE, lambda _, r: r.terms.abs()),
    ("always_zero", "0, whatever is given", ONCE, lambda _, r: torch.zeros_like(r.terms)),
):
    # Of a number and its neighbours in a short format, a cut and a rounded one agree half the time.
    _chance = 0.5 if _name == "truncated_result" else 0.0
    register(Cause(_name, _summary, tuple(partial(_terms, value) for value in _values), chance=_chance))
