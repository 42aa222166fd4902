"""Defects and limits of torch's own kernels, in their own arithmetic; docs/torch.md has the scripts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from audit.causes import Rows, Terms, cause

_PLAIN = ("log_softmax", "kl_div_loss", "row_alone", "one_thread", "strided", "autocast")
_FORMS = (*_PLAIN, "log_target", "cross_entropy_minus_entropy", "soft_cross_entropy", "generalised")
_STORED = ("softmax_log", "scipy_rel_entr", "scipy_kl_div", "scipy_entropy", "categorical")
_CASTS = ("first_dim", "softmax_log", "softmax_dtype", "softmax_dtype_cast", "upcast", "thread_era", "compiled")


@cause(paths=_STORED, emulated=True, of=("kl_div", "rel_entr", "categorical"))
def flushed_probability(rows: Rows, of: str) -> Terms:
    """softmax rounds a small probability to 0, whose logarithm is -inf: infinity, or NaN for 0 * (-inf)

    rel_entr and Categorical mask where the target's is 0; the latter's logits had a log-sum-exp subtracted before.
    """
    input, target = rows.input, rows.target
    if of == "categorical":
        input, target = (t - torch.logsumexp(t, -1, keepdim=True) for t in (input, target))
    q = rows.stored(rows.shifted(input).softmax(-1))
    p = rows.stored(rows.shifted(target).softmax(-1)) if rows.kinds[1] == "logits" else rows.probabilities()
    terms = torch.xlogy(p, p) - p * q.log()
    return terms if of == "kl_div" else terms.masked_fill(p == 0, 0.0)


@cause(paths=(*_FORMS, *_CASTS), emulated=True)
def zero_times_infinity(rows: Rows) -> Terms:
    """A class that has no probability on either side gives 0 * (-inf), which is NaN; the limit is 0"""
    log_q = rows.stored(rows.shifted(rows.input).log_softmax(-1))
    return rows.terms.masked_fill((rows.probabilities() == 0) & (log_q == -torch.inf), torch.nan)


@cause(paths=_FORMS, emulated=True)
def half_rounded_sum(rows: Rows) -> Terms:
    """log_softmax rounds its sum of exponentials, and that sum's logarithm, to the logits' half format

    So does torch's CPU kernel over the last dimension. Above 65,504 the sum overflows in float16.
    """

    def log_softmax(t: Tensor) -> Tensor:
        a = rows.shifted(t)
        total = rows.stored(a.exp().sum(-1, keepdim=True)).to(a.dtype)
        return rows.stored(a - rows.stored(total.log()).to(a.dtype))

    return rows.divergence(log_softmax(rows.input), rows.probabilities(), log_softmax(rows.target))


@cause(paths=(*_FORMS, "first_dim", "softmax_log"), emulated=True, lanes=(1, 4, 8, 16))
def stagnating_sum(rows: Rows, lanes: int) -> Terms:
    """Exponentials are added one by one in a few lanes, where those that come after a leading 1 are lost

    torch's CPU kernels have the lanes of a vector register over the last dimension, and one over any other.
    """

    def total(a: Tensor) -> Tensor:
        e = pad(a.exp(), (0, -a.shape[-1] % lanes)).reshape(len(a), -1, lanes)
        return torch.from_numpy(np.add.accumulate(e.numpy(), axis=1)[:, -1]).sum(-1, keepdim=True)

    a, b = rows.shifted(rows.input), rows.shifted(rows.target)
    p = rows.stored(b.exp() / total(b)) if rows.kinds[1] == "logits" else rows.probabilities()
    log_q = (a.exp() / total(a)).log() if rows.rounding.input == "softmax" else a - total(a).log()
    return rows.divergence(rows.stored(log_q), p, rows.stored(b - total(b).log()))


@cause(paths=("categorical",), emulated=True)
def unshifted_log_sum_exp(rows: Rows) -> Terms:
    """Log-probabilities are logits less a log-sum-exp that is rounded with the logits' offset in it"""
    log_p, log_q = (t - torch.logsumexp(t, -1, keepdim=True) for t in (rows.target, rows.input))
    return log_p.softmax(-1) * (log_p - log_q)
