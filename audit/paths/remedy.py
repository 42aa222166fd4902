"""KL from two tensors of logits, accurate however close they are: never negative, exactly 0 for equal inputs.

With p = softmax(target), q = softmax(input), e = input - target, c = sum p e and d = e - c,

    sum p exp(d) = 1 + r + s,    r = sum p d (a rounding error),    s = sum p (exp(d) - 1 - d) >= 0,
    KL = log(sum p exp(d)) - r = log1p(s + r) - r,

because log(p / q) = log(sum p exp(d)) - d. No term of s cancels another, and log1p keeps them. Differences carry their
rounding error along (Knuth's TwoSum), or are taken in double, so that a common offset of the logits costs nothing.
Where |d| is small, exp(d) - 1 - d is its Taylor series; elsewhere exp(d) p is q's own exponential, since p may
underflow where q does not. Where s > 1 nothing cancels, and KL = log sum exp(input) - log sum exp(target) - sum p e:
that plain form comes first on a CPU, and where it says that KL is well away from 0 the rest is not done.

The gradients follow without cancellation: dKL/dinput = q - p = p expm1(d - log1p(s + r)) and
dKL/dtarget = p (log(p / q) - KL) = p (r - d).
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial
from typing import Any

import torch
from torch import Tensor, log_softmax, nn

from audit.base.usage import UsageError
from audit.paths import REDUCTIONS, path

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The formats whose differences, sums and exponentials are ample in the format computed in.
_FITTING = {torch.float64: _DTYPES[:3], torch.float32: _DTYPES[:2]}
# Below which |d| the series stands, and its terms: where double has bits to spare, and where not.
_SHORT, _LONG = (2.0**-6, 5), (0.5, 15)
# How much of what it is summed from the divergence must be, for the plain form to be as accurate: where the format
# computed in has bits to spare, and where not (49 bits of 53 are left, in 13,000 rows of 12 families).
_CLEAR = {True: 1e-5, False: 0.07}
_PLAIN = (Tensor, nn.Parameter)
_BLOCK = 2**15


def kl_div_from_logits(input: Tensor, target: Tensor, *, reduction: str = "batchmean") -> Tensor:
    """KL(softmax(target) || softmax(input)) along the last dimension, in nats; differentiable in both.

    `input` and `target` are logits of one floating dtype, shape (..., classes) and device; -inf rules a class out,
    matched by the other side or not (+inf where the target has mass there). `reduction` is "batchmean" (the sum over
    the first dimension's size), "sum", "mean" (over the number of elements, as torch has it), or "none" (a value a
    row, of shape (...)). The result has the inputs' dtype and is computed in double, in float32 where the device has
    no double.

    Raises UsageError, a ValueError, for other shapes, dtypes and reductions.
    """
    if input.shape != target.shape or input.dim() == 0 or not input.shape[-1]:
        raise UsageError(
            f"expected two tensors of one shape (..., classes), got {tuple(input.shape)} and {tuple(target.shape)}"
        )
    if input.dtype != target.dtype or input.dtype not in _DTYPES:
        raise UsageError(f"expected one dtype of {', '.join(map(str, _DTYPES))}, got {input.dtype} and {target.dtype}")
    if reduction not in REDUCTIONS:
        raise UsageError(f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    rows = _rows(input, target)
    if reduction != "none":
        divisor = {"sum": 1, "mean": input.numel(), "batchmean": len(input) if input.dim() > 1 else 1}[reduction]
        rows = rows.sum() / divisor
    return rows.to(input.dtype)


def _rows(input: Tensor, target: Tensor) -> Tensor:
    """KL of each row; on a CPU in blocks that stay in its cache."""
    apply: Callable[[Tensor, Tensor], Tensor] = _KL.apply
    if input.device.type != "cpu" or input.numel() <= _BLOCK or input.dim() == 1:
        return apply(input, target)
    size = max(1, _BLOCK // input.shape[-1])
    pairs = zip(*(torch.split(t.flatten(0, -2), size) for t in (input, target)), strict=True)
    return torch.cat([apply(x, y) for x, y in pairs]).reshape(input.shape[:-1])


def _series(d: Tensor, terms: int) -> Tensor:
    """exp(d) - 1 - d by its Taylor series."""
    total = d * (1 / factorial(terms + 1))
    for k in range(terms, 2, -1):
        total.add_(1 / factorial(k)).mul_(d)
    return total.add_(0.5).mul_(d).mul_(d)


def _has_float64(kind: str) -> bool:
    """Whether a kind of device computes in float64: Apple's does not, nor do some of Intel's."""
    try:
        return kind in ("cpu", "cuda") or bool(torch.ones(1, dtype=torch.float64, device=kind) == 1)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError):
        return False


class _KL(torch.autograd.Function):
    """Works in place on its own copies: fresh memory costs more than arithmetic."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor) -> Tensor:
        compute = torch.float64 if _has_float64(input.device.type) else torch.float32
        exact = input.dtype in _FITTING[compute]
        ctx.compute, ctx.far = compute, False
        # A look at the value costs nothing on a CPU; elsewhere it waits for the device, and a tracer has none to show.
        if input.device.type == "cpu" and type(input) in _PLAIN and not torch.compiler.is_compiling():
            value, size, *rest = _plain(input.to(compute), target.to(compute), any(ctx.needs_input_grad))
            if ((value > _CLEAR[exact] * size) & (value < torch.inf)).all():
                ctx.save_for_backward(input, target, *rest)
                ctx.far = exact
                return value.squeeze(-1)
        threshold, terms = _SHORT if exact and compute == torch.float64 else _LONG
        x, y = input.to(compute, copy=True), target.to(compute, copy=True)
        top, origin = y.max(-1, keepdim=True)
        first = x.gather(-1, origin)
        e = x - y
        corrections = None if exact else (_error(x, y, e), _error(y, top, y - top), _error(x, first, x - first))
        # Where the target rules a class out, p d = 0 whatever d; a large d has its exponential taken from the input.
        d = e.nan_to_num_(0.0, posinf=torch.finfo(compute).max, neginf=-torch.inf)
        infinite = d.amin(-1, keepdim=True) == -torch.inf
        w, b = y.sub_(top).exp_(), x.sub_(first)
        d.sub_(d.gather(-1, origin))
        if corrections:
            e_low, y_low, x_low = corrections
            d.add_(e_low.sub_(e_low.gather(-1, origin)))
            w.addcmul_(w, y_low)
        mass = w.sum(-1, keepdim=True)
        p = w.div_(mass)
        centre = torch.linalg.vecdot(p, d).unsqueeze(-1)
        d.sub_(centre)
        r = torch.linalg.vecdot(p, d).unsqueeze(-1)
        high = b.amax(-1, keepdim=True)
        exponentials = b.sub_(high).exp_()
        if corrections:
            exponentials.addcmul_(exponentials, x_low)
        total = exponentials.sum(-1, keepdim=True)
        near = _series(d, terms).mul_(p)
        far = (exponentials * ((high - centre).exp() / mass)).sub_(p).addcmul_(p, d, value=-1)
        s = torch.where(d.abs() < threshold, near, far).sum(-1, keepdim=True)
        log_ratio = torch.log1p(s + r)
        value = torch.where(s <= 1, log_ratio - r, total.log() + high - mass.log() - centre - r)
        # 0 total: a NaN that was masked above is not lost.
        value = (value.clamp(min=0) + 0 * total).masked_fill(infinite, torch.inf)
        ctx.save_for_backward(input, target, p, d, r, log_ratio, exponentials.div_(total), infinite)
        return value.squeeze(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, target, p, d, r, log_ratio, q, infinite = ctx.saved_tensors
        scale = grad.unsqueeze(-1)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The gradient is to be differentiated again: it is written so that autograd can.
            log_q, log_p = (log_softmax(t.to(ctx.compute), -1) for t in (input, target))
            p, L = log_p.exp(), log_p - log_q
            centred = L - (p * L).sum(-1, keepdim=True)
            return ((log_q.exp() - p) * scale).to(input.dtype), (p * centred * scale).to(input.dtype)
        by_input: Tensor | None = None
        by_target: Tensor | None = None
        if ctx.needs_input_grad[0] and ctx.far:
            by_input = ((q - p) * scale).to(input.dtype)
        elif ctx.needs_input_grad[0]:
            exponent = d - log_ratio
            by_input = (torch.where(exponent.abs() < 0.5, p * torch.expm1(exponent), q - p) * scale).to(input.dtype)
        if ctx.needs_input_grad[1]:
            by_target = (p * (r - d) * scale).masked_fill(infinite, torch.nan).to(input.dtype)
        return by_input, by_target


def _plain(x: Tensor, y: Tensor, differentiated: bool) -> tuple[Tensor, ...]:
    """KL where nothing cancels, the size of what it is summed from, and what backward needs if `differentiated`: p, d,
    r, log(1 + s + r), q, and where KL is infinite.
    """
    top, origin = y.max(-1, keepdim=True)
    w, v = y - top, x - x.gather(-1, origin)
    e = v - w
    mass = w.exp_().sum(-1, keepdim=True)
    centre = torch.linalg.vecdot(w, e).unsqueeze(-1) / mass
    high = v.amax(-1, keepdim=True)
    total = v.sub_(high).exp_().sum(-1, keepdim=True)
    value = (total / mass).log() + high - centre
    if differentiated:
        w, e, v = w.div_(mass), e.sub_(centre), v.div_(total)
    size = (1 + high.abs() + centre.abs()).clamp(min=4)
    return value, size, w, e, torch.zeros_like(value), value, v, torch.zeros_like(value, dtype=torch.bool)


def _error(x: Tensor, y: Tensor, difference: Tensor) -> Tensor:
    """x - y - difference, exactly (Knuth, TAOCP 2, section 4.2.2, theorem C); 0 where a number is infinite."""
    back = x - difference
    return torch.nan_to_num((x - (difference + back)) + (back - y), nan=0.0, posinf=0.0, neginf=0.0)


@path("kl_div_from_logits", summary="audit.kl_div_from_logits(input, target): the remedy")
def per_row(input: Tensor, target: Tensor) -> Tensor:
    return kl_div_from_logits(input, target, reduction="none")
