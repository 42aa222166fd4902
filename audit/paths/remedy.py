"""KL from two tensors of logits, accurate however close they are: never negative, exactly 0 for equal inputs.

With p = softmax(target), q = softmax(input), e = input - target, c = sum p e and d = e - c,

    sum p exp(d) = 1 + r + s,    r = sum p d (a rounding error),    s = sum p phi(d) >= 0,    phi(d) = exp(d) - 1 - d,
    KL = log(sum p exp(d)) - r = log1p(s + r) - r,

because log(p / q) = log(sum p exp(d)) - d. No term of s cancels another, and log1p keeps them. Differences carry their
rounding error along (Knuth's TwoSum), or are taken in double, so that a common offset of the logits costs nothing.
Where |d| is small, phi(d) is its Taylor series; elsewhere exp(d) p is q's own exponential, since p may underflow where
q does not. Where s > 1 nothing cancels, and KL = log sum exp(input) - log sum exp(target) - sum p e.

On a CPU a look at a value costs nothing, and three forms follow each other: the series alone, where no |d| is large;
the plain one, which stands where KL is well away from 0; the whole (`_near`, `_plain`, `_whole`).

The gradients follow without cancellation: dKL/dinput = q - p = p expm1(d - log1p(s + r)) and
dKL/dtarget = p (log(p / q) - KL) = p (r - d). They are made beside the value, while the numbers are at hand.
"""

from __future__ import annotations

import math
from itertools import count
from typing import Any

import torch
from torch import Tensor, log_softmax, nn

from audit.base.usage import UsageError, check_word
from audit.paths import REDUCTIONS, path

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The formats whose differences, sums and exponentials are ample in the format computed in.
_FITTING = {torch.float64: _DTYPES[:3], torch.float32: _DTYPES[:2]}
# Below which |d| the series stands beside the other form, and its terms: where double has bits to spare, and where not.
_SHORT, _LONG = (2.0**-6, 5), (0.5, 15)
# Bits that a series alone has, and up to which |d| it is used, both where the format computed in has bits to spare, and
# where not; and how many classes show whether there is any hope of that.
_BITS, _REACH, _GLANCE = {True: 32, False: 53}, {True: 0.125, False: 4.0}, 32
# How much of what it is summed from the divergence must be, for the plain form to be as accurate, likewise (49 bits of
# 53 are left, in 13,000 rows of 12 families).
_CLEAR = {True: 1e-5, False: 0.07}
_BLOCK = 2**17  # numbers a thread that stay in its cache

# KL of rows, and its gradients by the logits over the temperature, in the format computed in; an empty tensor for a
# gradient that is not wanted.
Rows = tuple[Tensor, ...]


def kl_div_from_logits(
    input: Tensor,
    target: Tensor,
    *,
    reduction: str = "batchmean",
    mask: Tensor | None = None,
    temperature: float = 1.0,
    dim: int = -1,
) -> Tensor:
    """KL(softmax(target / temperature) || softmax(input / temperature)) along `dim`, in nats; differentiable in both.

    `input` and `target` are tensors of logits of one shape and device and of floating dtypes, the result's being the
    two promoted; -inf rules a class out, matched by the other side or not (+inf where the target has mass there). The
    rows are what is left of the shape without `dim`. `mask`, boolean and of the rows' shape, keeps those where it is
    true: another row has the value 0 and no gradient, whatever it holds.

    `reduction` is "none" (a value a row), "rowmean" (the mean of the rows kept, 0 if none is), and as torch has them
    "sum", "mean" (the sum over the number of elements) and "batchmean" (over the size of the first dimension, which
    holds the classes where that is `dim`).
    Distillation's factor temperature^2 (Hinton et al., 2015) is left to the caller. All is computed in double, in
    float32 where the device has no double. It works under autocast, torch.compile, torch.func.grad and vmap.

    Raises UsageError, a ValueError, for what is no tensor and for other shapes, dtypes, masks and words.
    """
    _check(input, target, reduction=reduction, mask=mask, temperature=temperature, dim=dim)
    x, y = input.movedim(dim, -1), target.movedim(dim, -1)
    if mask is not None:
        x, y = (side.masked_fill(~mask.unsqueeze(-1), 0) for side in (x, y))
    wanted = [torch.is_grad_enabled() and side.requires_grad for side in (x, y)]
    rows: Tensor = _KL.apply(x, y, 1 / temperature, *wanted)[0]  # type: ignore[no-untyped-call]
    if reduction == "rowmean":
        rows = rows.sum() / (math.prod(rows.shape) if mask is None else mask.sum().clamp(min=1))
    elif reduction != "none":
        rows = rows.sum() / {"sum": 1, "mean": input.numel(), "batchmean": len(input)}[reduction]
    return rows.to(torch.promote_types(input.dtype, target.dtype))


def _check(input: Any, target: Any, *, reduction: Any, mask: Any, temperature: Any, dim: Any) -> None:
    for name, side in (("input", input), ("target", target)):
        if not isinstance(side, Tensor):
            raise UsageError(f"{name}: expected a tensor, got {type(side).__name__}; torch.as_tensor makes one")
        if side.dtype not in _DTYPES:
            raise UsageError(f"{name}: expected one of {', '.join(map(str, _DTYPES))}, got {side.dtype}")
    if input.shape != target.shape or not input.dim():
        shapes = f"{tuple(input.shape)} and {tuple(target.shape)}"
        raise UsageError(f"expected two tensors of one shape, with a dimension of classes, got {shapes}")
    if type(dim) is not int or not -input.dim() <= dim < input.dim():
        raise UsageError(f"dim {dim!r} is none of a tensor of shape {tuple(input.shape)}")
    if not input.shape[dim]:
        raise UsageError(f"expected at least one class along dim {dim}, got shape {tuple(input.shape)}")
    check_word(reduction, (*REDUCTIONS, "rowmean"), "reduction")
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise UsageError(f"temperature: expected a number above 0, got {temperature!r}")
    rows = list(input.shape)
    del rows[dim]
    if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool or list(mask.shape) != rows):
        given = f"{mask.dtype} of {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise UsageError(f"mask: expected a boolean tensor of the rows' shape {tuple(rows)}, got {given}")


def _has_float64(kind: str) -> bool:
    """Whether a kind of device computes in float64: Apple's does not, nor do some of Intel's."""
    try:
        return kind in ("cpu", "cuda") or bool(torch.ones(1, dtype=torch.float64, device=kind) == 1)
    except (TypeError, RuntimeError):
        return False


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, target: Tensor, scale: float, by_input: bool, by_target: bool) -> Rows:
        wanted = by_input, by_target
        compute = torch.float64 if _has_float64(input.device.type) else torch.float32
        exact = {input.dtype, target.dtype} <= {*_FITTING[compute]}
        # Elsewhere a look waits for the device, and a tracer, or no row at all, has nothing to show.
        there = input.device.type == "cpu" and type(input) in (Tensor, nn.Parameter) and input.numel()
        if not there or torch.compiler.is_compiling():
            return _whole(input.to(compute), target.to(compute), scale, exact, wanted)
        size = max(1, _BLOCK // input.shape[-1]) * torch.get_num_threads()
        sides = [t.reshape(-1, t.shape[-1]) for t in (input, target)]
        pairs = zip(*(torch.split(side, size) for side in sides), strict=True) if len(sides[0]) > size else [sides]
        # Made before the blocks: long rows take a third less where memory is not asked for anew.
        value = input.new_empty(len(sides[0]), dtype=torch.float64)
        gradients = [input.new_empty(sides[0].shape if w else 0, dtype=torch.float64) for w in wanted]
        for place, (x, y) in enumerate(pairs):
            block = (
                _near(x, y, scale, exact, wanted)
                or _plain(x, y, scale, exact, wanted)
                or _whole(x.double(), y.double(), scale, exact, wanted)
            )
            for whole, part in zip((value, *gradients), block, strict=True):
                whole[place * size : place * size + len(part)] = part
        shaped = [g.reshape(input.shape) if w else g for g, w in zip(gradients, wanted, strict=True)]
        return value.reshape(input.shape[:-1]), *shaped

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, target, ctx.scale, *_ = inputs
        ctx.save_for_backward(input, target, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        *sides, by_input, by_target = ctx.saved_tensors
        if grad is None:
            return (None,) * 5
        gradients = [by_input, by_target]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The gradient may be differentiated again: autograd is given a form of it, which keeps the value made.
            log_q, log_p = (log_softmax(side.to(by_input.dtype) * ctx.scale, -1) for side in sides)
            p, ratio = log_p.exp(), (log_p - log_q).nan_to_num(0.0, posinf=math.inf, neginf=0.0)
            forms = log_q.exp() - p, p * (ratio - (p * ratio).sum(-1, keepdim=True))
            gradients = [
                form + (value - form).detach() if value.numel() else form
                for form, value in zip(forms, gradients, strict=True)
            ]
        scaled = grad.unsqueeze(-1) * ctx.scale
        needed = zip(gradients, sides, ctx.needs_input_grad, strict=False)
        return *((scaled * g).to(side.dtype) if need else None for g, side, need in needed), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Rows, tuple[int | None, ...]]:
        """What is mapped over becomes rows."""
        sides = [
            side.expand(info.batch_size, *side.shape) if dim is None else side.movedim(dim, 0)
            for side, dim in zip(inputs[:2], in_dims, strict=False)
        ]
        outputs = _KL.apply(*sides, *inputs[2:])  # type: ignore[no-untyped-call]
        return outputs, tuple(0 if output.numel() else None for output in outputs)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _given(value: Tensor, by_input: Any, by_target: Any, wanted: tuple[bool, ...]) -> Rows:
    makers = zip((by_input, by_target), wanted, strict=True)
    return value.squeeze(-1), *(make() if want else value.new_empty(0) for make, want in makers)


def _near(x: Tensor, y: Tensor, scale: float, exact: bool, wanted: tuple[bool, ...]) -> Rows | None:
    """By the series alone, every rounding error carried along; None where the differences spread far or overflow."""
    reach = _REACH[exact] / scale
    glance = [a - b for a, b in zip(x[0, :_GLANCE].tolist(), y[0, :_GLANCE].tolist(), strict=True)]
    if max(glance) - min(glance) > reach:
        return None
    x, y = x.double(), y.double()
    e = x - y
    if not (spread := _spread(e)) <= reach:
        return None
    if exact:  # torch's own softmax, in double, is fine enough
        p = torch.softmax(_scaled(y, scale), -1)
    else:
        top = y.amax(-1, keepdim=True)
        w = y - top
        e_low, y_low = _error(x, y, e), _error(y, top, w)
        p = _scaled(w, scale).exp_()
        p.addcmul_(p, _scaled(y_low, scale)).div_(p.sum(-1, keepdim=True))
    centre = _dot(p, e) / p.sum(-1, keepdim=True)
    if not centre.isfinite().all():  # an offset near the largest number: the sum of as many overflows
        return None
    d = e.sub_(centre)
    if not exact:
        d.add_(e_low).sub_(_dot(p, d))
    phi = _phi(_scaled(d, scale), spread * scale, _BITS[exact])
    # Of the value r^2 / 2 would be lost, 2^-106 of the square of e: nothing where there are bits to spare.
    r = torch.zeros_like(centre) if exact else _dot(p, d)
    shift = _dot(p, phi) + r
    return _given(
        (torch.log1p(shift) - r).clamp_(min=0),
        lambda: phi.add_(d).sub_(shift).mul_(p).div_(1 + shift),
        lambda: d.sub_(r).mul_(p).neg_(),
        wanted,
    )


def _spread(e: Tensor) -> float:
    return float((e.amax(-1) - e.amin(-1)).max())


def _scaled(t: Tensor, scale: float) -> Tensor:
    """In place."""
    return t if scale == 1 else t.mul_(scale)


def _plain(x: Tensor, y: Tensor, scale: float, exact: bool, wanted: tuple[bool, ...]) -> Rows | None:
    """As the value is defined, where it is clear of rounding.

    E_p|d| is at most about sqrt(2 KL) + KL: what the value is summed from is at most about 4 + |centre|.
    """
    w, v = (side - side.amax(-1, keepdim=True).double() for side in (y, x))
    e = _masked(v - w)
    for t in (w, v, e):
        _scaled(t, scale)
    w.exp_(), v.exp_()
    mass, total = w.sum(-1, keepdim=True), v.sum(-1, keepdim=True)
    centre = _dot(w, e) / mass
    value = (total / mass).log() - centre
    if not ((value > _CLEAR[exact] * (4 + centre.abs())) & (value < torch.inf)).all():
        return None
    if any(wanted):
        w.div_(mass), v.div_(total), e.sub_(centre)
    by_input = (lambda: v.sub_(w)) if exact else (lambda: _q_minus_p(w, v, e - value))
    return _given(value, by_input, lambda: e.mul_(w).neg_(), wanted)


def _phi(d: Tensor, largest: float, bits: int) -> Tensor:
    """exp(d) - 1 - d for |d| <= largest, to about so many bits: a series in d halved until it is at most 1/2, and
    phi(2 t) = (phi(t) + t)^2 + 2 phi(t), of which nothing cancels.
    """
    halvings = max(0, math.frexp(largest)[1] + 1)
    t = d * 2.0**-halvings if halvings else d
    bound = largest * 2.0**-halvings
    phi = _series(t, next(k for k in count(2) if bound**k <= 2.0 ** -(bits + 1) * math.factorial(k + 2)))
    for halving in range(halvings, 0, -1):
        step = torch.add(phi, d, alpha=2.0**-halving)
        phi.mul_(2).addcmul_(step, step)
    return phi


def _series(d: Tensor, terms: int) -> Tensor:
    """exp(d) - 1 - d by so many terms of its Taylor series."""
    total = d * (1 / math.factorial(terms + 1))
    total.add_(1 / math.factorial(terms))
    for k in range(terms - 1, 1, -1):
        torch.addcmul(d.new_full((), 1 / math.factorial(k)), total, d, out=total)
    return total.mul_(d).mul_(d)


def _whole(x: Tensor, y: Tensor, scale: float, exact: bool, wanted: tuple[bool, ...]) -> Rows:
    """Whatever the rows hold, without a look at them."""
    threshold, terms = _SHORT if exact and x.dtype == torch.float64 else _LONG
    top, origin = y.max(-1, keepdim=True)
    first = x.gather(-1, origin)
    e, w, b = x - y, y - top, x - first
    corrections = None if exact else [_error(x, y, e), _error(y, top, w) * scale, _error(x, first, b) * scale]
    d = _masked(e)
    infinite = d.amin(-1, keepdim=True) == -torch.inf
    d.sub_(d.gather(-1, origin))
    w, b = w.mul_(scale).exp_(), b.mul_(scale)
    if corrections:
        e_low, y_low, x_low = corrections
        d.add_(e_low.sub_(e_low.gather(-1, origin)))
        w.addcmul_(w, y_low)
    d.mul_(scale)
    if scale > 1:  # which takes what is largest beyond it, where p d = 0 whatever finite d, too
        d.nan_to_num_(torch.nan, posinf=torch.finfo(d.dtype).max, neginf=-torch.inf)
    mass = w.sum(-1, keepdim=True)
    p = w.div_(mass)
    centre = _dot(p, d)
    d.sub_(centre)
    r = _dot(p, d)
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
    return _given(
        value,
        lambda: _q_minus_p(p, exponentials / total, d - log_ratio),
        lambda: (p * (r - d)).masked_fill(infinite, torch.nan),
        wanted,
    )


def _q_minus_p(p: Tensor, q: Tensor, log_ratio: Tensor) -> Tensor:
    """Without cancellation, given log(q / p) too."""
    return torch.where(log_ratio.abs() < 0.5, p * torch.expm1(log_ratio), q - p)


def _masked(differences: Tensor) -> Tensor:
    """In place: 0 where both sides are infinite; where the target is -inf, p d = 0 whatever finite d."""
    return differences.nan_to_num_(0.0, posinf=torch.finfo(differences.dtype).max, neginf=-torch.inf)


def _error(x: Tensor, y: Tensor, difference: Tensor) -> Tensor:
    """x - y - difference, exactly (Knuth, TAOCP 2, section 4.2.2, theorem C); 0 where a number is infinite."""
    back = x - difference
    rest = (difference + back).neg_().add_(x)
    return rest.add_(back.sub_(y)).nan_to_num_(0.0, posinf=0.0, neginf=0.0)


@path("kl_div_from_logits", summary="audit.kl_div_from_logits(input, target): the remedy")
def per_row(input: Tensor, target: Tensor) -> Tensor:
    return kl_div_from_logits(input, target, reduction="none")
