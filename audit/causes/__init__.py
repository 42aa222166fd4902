"""Known defects, by name (`CAUSES`): what torch's kernels do, in their own arithmetic (docs/torch.md has the scripts),
and what kernels of one's own do, in binary64 but for the one operation that is at fault.

A cause takes `Rows` and returns the terms of its sum, rows x classes, or several sets of them that are summed apart.
In binary64 they say what the defect means; where it is a rounding they are tensors of the path's own formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor, logsumexp
from torch.nn import functional as F

from audit.paths.rounding import PLAIN, Rounding

Terms = Tensor | tuple[Tensor, ...]
_SUMS = ("cross_entropy_minus_entropy", "soft_cross_entropy", "generalised")
_FORMS = ("log_softmax", "kl_div_loss", "autocast", "log_target", *_SUMS)
_STORED = ("softmax_log", "scipy_rel_entr", "scipy_kl_div", "scipy_entropy", "categorical")
_CASTS = ("first_dim", "softmax_log", "softmax_dtype", "softmax_dtype_cast", "upcast", "thread_era", "compiled")
_BLOCKS = (8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 31_744, 65_536)
_SMALL = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12, 1e-15, 1e-16, 1e-20)
_DEGREES = (0.5, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0, 16.0, 20.0, *(1 / t for t in (3, 4, 5, 8, 10, 16, 20)))
_HALVES = (torch.float16, torch.bfloat16)


class Rows:
    """Input and target, rows x classes in their dtype, the roundings of the path that was given them, and in binary64
    their logits x and y (the logarithms of what was given as probabilities), log q, log p, q, p and the divergence's
    terms. `kinds`: what input and target are.
    """

    def __init__(
        self, input: Tensor, target: Tensor, kinds: tuple[str, str] = ("logits", "logits"), rounding: Rounding = PLAIN
    ) -> None:
        self.input, self.target, self.kinds, self.rounding = input, target, kinds, rounding
        formats = rounding.formats(str(input.dtype).removeprefix("torch."))
        self.storage, _, self.result = (getattr(torch, format.name) for format in formats)
        pairs = list(zip((input, target), kinds, strict=True))
        self.x, self.y = (t.double().log() if kind == "probs" else t.double() for t, kind in pairs)
        logs = zip((self.x, self.y), kinds, strict=True)
        self.log_q, self.log_p = (t.log_softmax(-1) if kind == "logits" else t for t, kind in logs)
        self.q, self.p = self.log_q.exp(), self.log_p.exp()
        self.terms = kl_terms(self.log_p, self.log_q)

    def stored(self, t: Tensor) -> Tensor:
        """In the format that the path's tensors have."""
        return t.to(self.storage)

    def shifted(self, t: Tensor) -> Tensor:
        """Logits less their maximum, in the format that kernels compute in: float32 for halves."""
        wide = torch.promote_types(self.storage, torch.float32)
        return t.to(wide) - t.to(wide).amax(-1, keepdim=True)

    def probabilities(self) -> Tensor:
        """The target's, stored."""
        return self.target if self.kinds[1] == "probs" else self.stored(self.shifted(self.target).softmax(-1))

    def divergence(self, log_q: Tensor, p: Tensor, log_p: Tensor) -> Terms:
        """The terms that the path makes of stored (log-)probabilities, in its formats."""
        log_q, p, log_p = (t.to(self.result) for t in (log_q, p, log_p))
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


def flushed_probability(of: str, rows: Rows) -> Terms:
    """softmax rounds a small probability to 0, whose logarithm is -inf: infinity, or NaN for 0 * (-inf)

    rel_entr and Categorical mask where the target's is 0; the latter's logits had a log-sum-exp subtracted before.
    """
    input, target = rows.input, rows.target
    if of == "categorical":
        input, target = (t - logsumexp(t, -1, keepdim=True) for t in (input, target))
    q = rows.stored(rows.shifted(input).softmax(-1))
    p = rows.stored(rows.shifted(target).softmax(-1)) if rows.kinds[1] == "logits" else rows.probabilities()
    terms = torch.xlogy(p, p) - p * q.log()
    return terms if of == "kl_div" else terms.masked_fill(p == 0, 0.0)


def zero_times_infinity(rows: Rows) -> Terms:
    """A class that has no probability on either side gives 0 * (-inf), which is NaN; the limit is 0"""
    log_q = rows.stored(rows.shifted(rows.input).log_softmax(-1))
    return rows.terms.masked_fill((rows.probabilities() == 0) & (log_q == -torch.inf), torch.nan)


def half_rounded_sum(rows: Rows) -> Terms:
    """log_softmax rounds its sum of exponentials, and that sum's logarithm, to the logits' half format

    So does torch's CPU kernel over the last dimension. Above 65,504 the sum overflows in float16.
    """

    def log_softmax(t: Tensor) -> Tensor:
        a = rows.shifted(t)
        total = rows.stored(a.exp().sum(-1, keepdim=True)).to(a.dtype)
        return rows.stored(a - rows.stored(total.log()).to(a.dtype))

    return rows.divergence(log_softmax(rows.input), rows.probabilities(), log_softmax(rows.target))


def stagnating_sum(lanes: int, rows: Rows) -> Terms:
    """Exponentials are added one by one in a few lanes, where those that come after a leading 1 are lost

    torch's CPU kernels have the lanes of a vector register over the last dimension, and one over any other.
    """

    def total(a: Tensor) -> Tensor:
        e = F.pad(a.exp(), (0, -a.shape[-1] % lanes)).reshape(len(a), -1, lanes)
        return torch.from_numpy(np.add.accumulate(e.numpy(), axis=1)[:, -1]).sum(-1, keepdim=True)

    a, b = rows.shifted(rows.input), rows.shifted(rows.target)
    p = rows.stored(b.exp() / total(b)) if rows.kinds[1] == "logits" else rows.probabilities()
    log_q = (a.exp() / total(a)).log() if rows.rounding.input == "softmax" else a - total(a).log()
    return rows.divergence(rows.stored(log_q), p, rows.stored(b - total(b).log()))


def unshifted_log_sum_exp(rows: Rows) -> Terms:
    """Log-probabilities are logits less a log-sum-exp that is rounded with the logits' offset in it"""
    log_p, log_q = (t - logsumexp(t, -1, keepdim=True) for t in (rows.target, rows.input))
    return log_p.softmax(-1) * (log_p - log_q)


def _whole_blocks(t: Tensor, block: int) -> Tensor:
    """The classes in whole blocks, at least one class."""
    return t[:, : max(1, t.shape[-1] // block * block)]


def _tempered(r: Rows, degree: float) -> Tensor:
    return kl_terms((r.y / degree).log_softmax(-1), (r.x / degree).log_softmax(-1))


def _shortened(values: Tensor, bits: int) -> Tensor:
    """Rounded to so many significant bits."""
    mantissa, exponent = torch.frexp(values)
    return torch.where(values.isfinite(), torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent), values)


def _chopped(values: Tensor, kept: int) -> Tensor:
    """The leading bits of a single-precision number, the others dropped."""
    return (values.float().view(torch.int32) & -(1 << (32 - kept))).view(torch.float32).double()


def _shifted(t: Tensor) -> Tensor:
    return t - t.amax(-1, keepdim=True)


def _normalised(t: Tensor, dtype: torch.dtype = torch.float64, eps: float = 0.0) -> Tensor:
    """log-softmax with its sum of exponentials in some format, and something added to it."""
    return _shifted(t) - (_shifted(t).exp().sum(-1, keepdim=True) + eps).to(dtype).double().log()


def _of_logits(change: Callable[[Tensor], Tensor], r: Rows) -> Tensor:
    """Of logits that were changed on both sides."""
    return kl_terms(change(r.y).log_softmax(-1), change(r.x).log_softmax(-1))


def _of_logarithms(r: Rows, log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.where(r.p > 0, r.p * (log_p - log_q), 0.0)


def _unshifted(r: Rows) -> Tensor:
    wide = r.shifted(r.input).dtype
    log_p, log_q = (t.to(wide) - t.to(wide).exp().sum(-1, keepdim=True).log() for t in (r.y, r.x))
    return kl_terms(log_p.double(), log_q.double())


def _of_torch(function: Callable[..., Terms], paths: tuple[str, ...], values: tuple[object, ...] = ()) -> Cause:
    return Cause(function.__name__, (function.__doc__ or "").partition("\n")[0], function, values, paths, emulated=True)


# Name, what it is, the terms, and the values that their parameter may have.
CAUSES = [
    _of_torch(flushed_probability, _STORED, ("kl_div", "rel_entr", "categorical")),
    _of_torch(zero_times_infinity, (*_FORMS, *_CASTS)),
    _of_torch(half_rounded_sum, _FORMS),
    _of_torch(stagnating_sum, (*_FORMS, "first_dim", "softmax_log"), (1, 4, 8, 16)),
    _of_torch(unshifted_log_sum_exp, ("categorical",)),
    Cause("swapped_sides", "input and target swapped: the reverse divergence", lambda r: kl_terms(r.log_q, r.log_p)),
    Cause(
        "symmetrised",
        "both directions added, or their mean",
        lambda v, r: v * (r.terms + kl_terms(r.log_q, r.log_p)),
        (1.0, 0.5),
    ),
    Cause("mean_over_classes", "the mean over the classes for their sum", lambda r: r.terms / r.x.shape[-1]),
    Cause("in_bits", "logarithms to base 2: bits for nats", lambda r: r.terms / log(2)),
    Cause("wrong_temperature", "a temperature forgotten, or applied twice", lambda v, r: _tempered(r, v), _DEGREES),
    Cause(
        "wrong_temperature_squared",
        "the same, with its square as a factor",
        lambda v, r: v**2 * _tempered(r, v),
        _DEGREES,
    ),
    Cause(
        "tail_left_out", "classes after the last whole block left out", lambda v, r: _whole_blocks(r.terms, v), _BLOCKS
    ),
    Cause(
        "tail_left_out_of_normaliser",
        "classes after the last whole block left out of the input's normaliser",
        lambda v, r: kl_terms(r.log_p, r.x - logsumexp(_whole_blocks(r.x, v), -1, keepdim=True)),
        _BLOCKS,
    ),
    Cause("last_class_left_out", "the last class left out", lambda r: r.terms[:, :-1]),
    Cause("first_class_left_out", "the first class left out, as by an ignore_index of 0", lambda r: r.terms[:, 1:]),
    Cause("last_class_twice", "the last class counted twice", lambda r: torch.cat([r.terms, r.terms[:, -1:]], -1)),
    Cause("another_row", "the result of the row before, or after", lambda v, r: r.terms.roll(v, 0), (1, -1)),
    Cause("first_row", "every row has the first one's result", lambda r: r.terms[:1].expand_as(r.terms)),
    Cause(
        "eps_in_log",
        "log(p + eps) on both sides",
        lambda v, r: _of_logarithms(r, (r.p + v).log(), (r.q + v).log()),
        _SMALL,
    ),
    Cause("eps_in_log_of_input", "log(q + eps)", lambda v, r: _of_logarithms(r, r.log_p, (r.q + v).log()), _SMALL),
    Cause(
        "clamp_in_log",
        "log(max(p, eps)) on both sides",
        lambda v, r: _of_logarithms(r, r.p.clamp(min=v).log(), r.q.clamp(min=v).log()),
        _SMALL,
    ),
    Cause(
        "clamp_in_log_of_input",
        "log(max(q, eps))",
        lambda v, r: _of_logarithms(r, r.log_p, r.q.clamp(min=v).log()),
        _SMALL,
    ),
    Cause(
        "eps_in_normaliser",
        "eps added to the input's sum of exponentials",
        lambda v, r: kl_terms(r.log_p, _normalised(r.x, eps=v)),
        _SMALL,
    ),
    Cause(
        "threshold",
        "terms of small target probabilities left out",
        lambda v, r: torch.where(r.p > v, r.terms, 0.0),
        _SMALL,
    ),
    Cause(
        "clamped_shifts",
        "no logit let far below the largest",
        lambda v, r: _of_logits(lambda t: _shifted(t).clamp(min=v), r),
        (-20.0, -30.0, -50.0, -100.0),
    ),
    Cause(
        "short_products",
        "products of 11 or 8 bits, as of TF32 or bfloat16",
        lambda v, r: _shortened(r.terms, v),
        (11, 8),
    ),
    Cause(
        "short_factors",
        "factors of 11 or 8 bits, as TF32 or bfloat16 has",
        lambda v, r: _shortened(r.p, v) * _shortened((r.log_p - r.log_q).nan_to_num(0.0), v),
        (11, 8),
    ),
    Cause(
        "half_normaliser",
        "the input's sum of exponentials in a half format",
        lambda v, r: kl_terms(r.log_p, _normalised(r.x, v)),
        _HALVES,
    ),
    Cause(
        "half_normalisers",
        "both sums of exponentials in a half format",
        lambda v, r: kl_terms(_normalised(r.y, v), _normalised(r.x, v)),
        _HALVES,
    ),
    Cause(
        "half_logits",
        "logits rounded to a half format",
        lambda v, r: _of_logits(lambda t: t.to(v).double(), r),
        _HALVES,
    ),
    Cause(
        "truncated_logits",
        "logits cut, not rounded, to bfloat16 or TF32",
        lambda v, r: _of_logits(lambda t: _chopped(t, v), r),
        (16, 19),
    ),
    Cause(
        "truncated_result",
        "the result cut, not rounded, to bfloat16 or TF32",
        lambda v, r: _chopped(r.terms.sum(-1, keepdim=True), v),
        (16, 19),
        chance=0.5,  # of a number and its neighbours in a short format, a cut and a rounded one agree half the time
    ),
    Cause(
        "nan_at_zero_probability",
        "p log p is NaN where p underflows to 0",
        lambda r: r.terms.masked_fill(r.shifted(r.target).softmax(-1) == 0, torch.nan),
    ),
    Cause("unshifted_exponentials", "no maximum subtracted: exponentials overflow or underflow", _unshifted),
    Cause(
        "unnormalised_target", "the logarithm of the target's sum left out", lambda r: kl_terms(_shifted(r.y), r.log_q)
    ),
    Cause(
        "entropy_left_out",
        "the cross-entropy: the entropy is not subtracted",
        lambda r: torch.where(r.p > 0, -r.p * r.log_q, 0.0),
    ),
    Cause("negative_terms_dropped", "negative terms taken for 0", lambda r: r.terms.clamp(min=0)),
    Cause("absolute_terms", "each term without its sign", lambda r: r.terms.abs()),
    Cause("always_zero", "0, whatever is given", lambda r: torch.zeros_like(r.terms)),
]
