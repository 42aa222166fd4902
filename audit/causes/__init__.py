"""Known defects, by name (`CAUSES`; causes.csv says what each is): what torch's kernels do, in their own arithmetic
(docs/torch.md has the scripts), and what kernels of one's own do, in binary64 but for the one operation at fault.

A cause takes `Rows` and returns the terms of its sum, rows x classes, or several sets of them that are summed apart.
In binary64 they say what the defect means; where it is a rounding they are tensors of the path's own formats.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
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
    return torch.where(p == 0, 0.0, p * (log_p - log_q))


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
    """rel_entr and Categorical mask where the target's is 0; from the latter's logits a log-sum-exp was subtracted."""
    input, target = rows.input, rows.target
    if of == "categorical":
        input, target = (t - logsumexp(t, -1, keepdim=True) for t in (input, target))
    q = rows.stored(rows.shifted(input).softmax(-1))
    p = rows.stored(rows.shifted(target).softmax(-1)) if rows.kinds[1] == "logits" else rows.probabilities()
    terms = torch.xlogy(p, p) - p * q.log()
    terms = terms if of == "kl_div" else terms.masked_fill(p == 0, 0.0)
    # A class that both sides rule out has none to flush; in a row that has lost none, this defect changes nothing.
    terms = terms.masked_fill((rows.log_p == -torch.inf) & (rows.log_q == -torch.inf), 0.0)
    flushed = ((q == 0) & (rows.log_q > -torch.inf)) | ((p == 0) & (rows.log_p > -torch.inf))
    return torch.where(flushed.any(-1, keepdim=True), terms, rows.terms)


def zero_times_infinity(rows: Rows) -> Terms:
    infinite = rows.stored(rows.shifted(rows.input).log_softmax(-1)) == -torch.inf
    if rows.rounding.target == "log_softmax":  # as with log_target=True
        infinite |= rows.stored(rows.shifted(rows.target).log_softmax(-1)) == -torch.inf
    return rows.terms.masked_fill((rows.probabilities() == 0) & infinite, torch.nan)


def half_rounded_sum(rows: Rows) -> Terms:
    """As torch's CPU kernel does over the last dimension. Above 65,504 the sum overflows in float16."""
    if rows.storage not in _HALVES:
        return rows.terms

    def log_softmax(t: Tensor) -> Tensor:
        a = rows.shifted(t)
        total = rows.stored(a.exp().sum(-1, keepdim=True)).to(a.dtype)
        return rows.stored(a - rows.stored(total.log()).to(a.dtype))

    return rows.divergence(log_softmax(rows.input), rows.probabilities(), log_softmax(rows.target))


def stagnating_sum(lanes: int, rows: Rows) -> Terms:
    """torch's CPU kernels have the lanes of a vector register over the last dimension, and one over any other."""

    def total(a: Tensor) -> Tensor:
        e = F.pad(a.exp(), (0, -a.shape[-1] % lanes)).reshape(len(a), -1, lanes)
        return torch.from_numpy(np.add.accumulate(e.numpy(), axis=1)[:, -1]).sum(-1, keepdim=True)

    a, b = rows.shifted(rows.input), rows.shifted(rows.target)
    p = rows.stored(b.exp() / total(b)) if rows.kinds[1] == "logits" else rows.probabilities()
    log_q = (a.exp() / total(a)).log() if rows.rounding.input == "softmax" else a - total(a).log()
    return rows.divergence(rows.stored(log_q), p, rows.stored(b - total(b).log()))


def unshifted_log_sum_exp(rows: Rows) -> Terms:
    """torch.distributions masks where the target has no probability."""
    input, target = (t.log() if k == "probs" else t for t, k in zip((rows.input, rows.target), rows.kinds, strict=True))
    log_p, log_q = (t - logsumexp(t, -1, keepdim=True) for t in (target, input))
    p = log_p.softmax(-1)
    return (p * (log_p - log_q)).masked_fill(p == 0, 0.0)


def _whole_blocks(t: Tensor, block: int) -> Tensor:
    """The classes in whole blocks, at least one class."""
    return t[:, : max(1, t.shape[-1] // block * block)]


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


# The formula, the values that its parameter may have, and the paths.
_OF_TORCH: dict[str, tuple[Callable[..., Terms], tuple[Any, ...], tuple[str, ...]]] = {
    "flushed_probability": (flushed_probability, ("kl_div", "rel_entr", "categorical"), _STORED),
    "zero_times_infinity": (zero_times_infinity, (), (*_FORMS, *_CASTS)),
    "half_rounded_sum": (half_rounded_sum, (), _FORMS),
    "stagnating_sum": (stagnating_sum, (1, 4, 8, 16), (*_FORMS, "first_dim", "softmax_log")),
    "unshifted_log_sum_exp": (unshifted_log_sum_exp, (), ("categorical",)),
}
_OF_ROWS: dict[str, Callable[[Rows], Terms]] = {
    "taken_as_logits": lambda r: kl_terms(*(t.double().log_softmax(-1) for t in (r.target, r.input))),
    "swapped_sides": lambda r: kl_terms(r.log_q, r.log_p),
    "mean_over_classes": lambda r: r.terms / r.x.shape[-1],
    "in_bits": lambda r: r.terms / log(2),
    "last_class_left_out": lambda r: r.terms[:, :-1],
    "first_class_left_out": lambda r: r.terms[:, 1:],
    "last_class_twice": lambda r: torch.cat([r.terms, r.terms[:, -1:]], -1),
    "first_row": lambda r: r.terms[:1].expand_as(r.terms),
    "nan_at_zero_probability": lambda r: r.terms.masked_fill(r.shifted(r.target).softmax(-1) == 0, torch.nan),
    "unshifted_exponentials": _unshifted,
    "unnormalised_target": lambda r: kl_terms(_shifted(r.y), r.log_q),
    "entropy_left_out": lambda r: torch.where(r.p > 0, -r.p * r.log_q, 0.0),
    "negative_terms_dropped": lambda r: r.terms.clamp(min=0),
    "absolute_terms": lambda r: r.terms.abs(),
    "always_zero": lambda r: torch.zeros_like(r.terms),
}
_OF_VALUES: dict[str, tuple[tuple[Any, ...], Callable[[Any, Rows], Terms]]] = {
    "symmetrised": ((1.0, 0.5), lambda v, r: v * (r.terms + kl_terms(r.log_q, r.log_p))),
    "wrong_temperature": (_DEGREES, lambda v, r: _of_logits(lambda t: t / v, r)),
    "wrong_temperature_squared": (_DEGREES, lambda v, r: v**2 * _of_logits(lambda t: t / v, r)),
    "tail_left_out": (_BLOCKS, lambda v, r: _whole_blocks(r.terms, v)),
    "tail_left_out_of_normaliser": (
        _BLOCKS,
        lambda v, r: kl_terms(r.log_p, r.x - logsumexp(_whole_blocks(r.x, v), -1, keepdim=True)),
    ),
    "another_row": ((1, -1), lambda v, r: r.terms.roll(v, 0)),
    "eps_in_log": (_SMALL, lambda v, r: _of_logarithms(r, (r.p + v).log(), (r.q + v).log())),
    "eps_in_log_of_input": (_SMALL, lambda v, r: _of_logarithms(r, r.log_p, (r.q + v).log())),
    "clamp_in_log": (_SMALL, lambda v, r: _of_logarithms(r, r.p.clamp(min=v).log(), r.q.clamp(min=v).log())),
    "clamp_in_log_of_input": (_SMALL, lambda v, r: _of_logarithms(r, r.log_p, r.q.clamp(min=v).log())),
    "eps_in_normaliser": (_SMALL, lambda v, r: kl_terms(r.log_p, _normalised(r.x, eps=v))),
    "threshold": (_SMALL, lambda v, r: torch.where(r.p > v, r.terms, 0.0)),
    "clamped_shifts": ((-20.0, -30.0, -50.0, -100.0), lambda v, r: _of_logits(lambda t: _shifted(t).clamp(min=v), r)),
    "short_products": ((11, 8), lambda v, r: _shortened(r.terms, v)),
    "short_factors": (
        (11, 8),
        lambda v, r: _shortened(r.p, v) * _shortened(torch.where(r.p > 0, r.log_p - r.log_q, 0.0), v),
    ),
    "half_normaliser": (_HALVES, lambda v, r: kl_terms(r.log_p, _normalised(r.x, v))),
    "half_normalisers": (_HALVES, lambda v, r: kl_terms(_normalised(r.y, v), _normalised(r.x, v))),
    "half_logits": (_HALVES, lambda v, r: _of_logits(lambda t: t.to(v).double(), r)),
    "truncated_logits": ((16, 19), lambda v, r: _of_logits(lambda t: _chopped(t, v), r)),
    "truncated_result": ((16, 19), lambda v, r: _chopped(r.terms.sum(-1, keepdim=True), v)),
}


def _cause(name: str, summary: str) -> Cause:
    if name in _OF_TORCH:
        return Cause(name, summary, *_OF_TORCH[name], emulated=True)
    if name in _OF_ROWS:
        return Cause(name, summary, _OF_ROWS[name])
    values, terms = _OF_VALUES[name]
    # Of a number and its neighbours in a short format, a cut and a rounded one agree half the time.
    return Cause(name, summary, terms, values, chance=0.5 if name == "truncated_result" else 0.0)


_LINES = (files("audit.causes") / "causes.csv").read_text(encoding="utf-8").splitlines()
CAUSES = [_cause(**row) for row in csv.DictReader(_LINES)]
