"""Defects beyond values: in gradients, in how a kernel is executed, at shapes and in dtypes; and sound fused kernels.

Each is a whole kernel with a backward of its own, as its author would hand it in, made by `kernel` from what is wrong
with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import audit
from audit.paths.rounding import Rounding
from tests.battery.sound import log_softmax, masked, plain, wide

Kernel = Callable[[Tensor, Tensor], Tensor]
BROKEN: dict[str, list[Kernel]] = {"gradients": [], "execution": [], "shapes": [], "dtypes": []}
# Sound kernels with what they promise.
FUSED_KERNELS: list[tuple[Kernel, Rounding]] = []


class Fused(torch.autograd.Function):
    """Float32 inside, one pass; `slopes` makes the gradients of both sides, which the upstream weight multiplies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, slopes: Callable[..., tuple[Tensor | None, ...]]) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.slopes, ctx.calls = slopes, 0
        return plain(x, y)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        ctx.calls += 1
        x, y = ctx.saved_tensors
        by_input, by_target = ctx.slopes(ctx, x, y, wide(upstream)[:, None])
        return (*(None if t is None else t.to(x.dtype) for t in (by_input, by_target)), None)


def slopes(ctx: Any, x: Tensor, y: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """q - p, and p (log p - log q - KL)."""
    log_p, log_q = log_softmax(y), log_softmax(x)
    p = log_p.exp()
    terms = masked(log_p, log_q)
    return upstream * (log_q.exp() - p), upstream * (terms - p * terms.sum(-1, keepdim=True))


def wrong_slopes(change: Callable[..., tuple[Tensor | None, Tensor | None]]) -> None:
    """Registers a kernel whose values are right; change(ctx, x, upstream, by_input, by_target) spoils its gradients."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        def spoiled(ctx: Any, x: Tensor, y: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
            return change(ctx, x, upstream, *slopes(ctx, x, y, upstream))

        return Fused.apply(x, y, spoiled)

    kernel.__name__ = change.__name__
    BROKEN["gradients"].append(kernel)


def broken(kind: str) -> Callable[[Kernel], Kernel]:
    def register(kernel: Kernel) -> Kernel:
        BROKEN[kind].append(kernel)
        return kernel

    return register


def sound(rounding: Rounding) -> Callable[[Kernel], Kernel]:
    def register(kernel: Kernel) -> Kernel:
        FUSED_KERNELS.append((kernel, rounding))
        return kernel

    return register


# Gradients.


@wrong_slopes
def doubled_where_the_teacher_is_detached(ctx, x, upstream, by_input, by_target):
    return by_input * (1 if ctx.needs_input_grad[1] else 2), by_target


@wrong_slopes
def upstream_taken_for_contiguous(ctx, x, upstream, by_input, by_target):
    weights = upstream[:, 0]
    read = torch.cat([weights[:1], torch.zeros_like(weights[1:])]) if weights.stride() == (0,) else weights
    return by_input / upstream * read[:, None], by_target


@wrong_slopes
def spoiled_by_a_second_backward(ctx, x, upstream, by_input, by_target):
    return by_input * ctx.calls, by_target


@wrong_slopes
def upstream_clamped(ctx, x, upstream, by_input, by_target):
    return by_input / upstream * upstream.clamp(max=100), by_target


@wrong_slopes
def upstream_ignored(ctx, x, upstream, by_input, by_target):
    return by_input / upstream, by_target / upstream


@wrong_slopes
def middle_rows_left_out(ctx, x, upstream, by_input, by_target):
    by_input[1:-1] = 0
    return by_input, by_target


@wrong_slopes
def zero_past_class_1024(ctx, x, upstream, by_input, by_target):
    return torch.where(torch.arange(x.shape[1]) < 1024, by_input, 0.0), by_target


@wrong_slopes
def last_odd_class_without_a_gradient(ctx, x, upstream, by_input, by_target):
    by_input[:, x.shape[1] // 4 * 4 :] = 0
    return by_input, by_target


@wrong_slopes
def softmax_alone(ctx, x, upstream, by_input, by_target):
    return upstream * log_softmax(x).exp(), by_target


@wrong_slopes
def opposite_sign(ctx, x, upstream, by_input, by_target):
    return -by_input, by_target


@wrong_slopes
def of_a_mean(ctx, x, upstream, by_input, by_target):
    return by_input / len(x), by_target / len(x)


@wrong_slopes
def teachers_without_the_loss(ctx, x, upstream, by_input, by_target):
    """p L, without the - p KL that makes it sum to 0."""
    return by_input, by_target + by_target.abs().sum(-1, keepdim=True) * 0.01


@wrong_slopes
def half_precision_backward(ctx, x, upstream, by_input, by_target):
    return by_input.bfloat16(), by_target.bfloat16()


@wrong_slopes
def nan_at_small_probabilities(ctx, x, upstream, by_input, by_target):
    return torch.where(log_softmax(x) < -15, torch.nan, by_input), by_target


# Execution.


@broken("execution")
def contiguous_taken_for_granted(x: Tensor, y: Tensor) -> Tensor:
    return plain(*(torch.as_strided(t, t.shape, (t.shape[1], 1)) for t in (x, y)))


@broken("execution")
def offset_left_out(x: Tensor, y: Tensor) -> Tensor:
    return plain(*(torch.as_strided(t, t.shape, t.stride(), 0) for t in (x, y)))


@broken("execution")
def last_row_of_an_odd_batch(x: Tensor, y: Tensor) -> Tensor:
    value = plain(x, y)
    return torch.cat([value[:-1], value[-1:] * 2]) if len(x) % 2 and len(x) > 1 else value


@broken("execution")
def batches_of_128(x: Tensor, y: Tensor) -> Tensor:
    value = plain(x, y)
    return value if len(x) < 128 else torch.cat([value[:-1], value[-1:] / 2])


_SHAPES: list[int] = []


@broken("execution")
def buffer_of_the_call_before(x: Tensor, y: Tensor) -> Tensor:
    """Its scratch space still has the classes of a narrower call."""
    _SHAPES.append(x.shape[1])
    kept = x.shape[1] // 2 if _SHAPES[-2:-1] == [x.shape[1] // 2] else x.shape[1]
    return masked(log_softmax(y), log_softmax(x))[:, :kept].sum(-1).to(x.dtype)


@broken("execution")
def otherwise_where_gradients_are_wanted(x: Tensor, y: Tensor) -> Tensor:
    value = plain(x, y)
    return value * 1.5 if torch.is_grad_enabled() and x.requires_grad else value


@broken("execution")
def writes_into_its_input(x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        x.sub_(x.amax(-1, keepdim=True))
    return plain(x, y)


@broken("execution")
def changes_the_default_dtype(x: Tensor, y: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    return plain(x, y)


@broken("execution")
def reads_past_the_row(x: Tensor, y: Tensor) -> Tensor:
    """Classes in blocks of 4; a row's last block takes in the next row's first numbers."""
    value = plain(x, y)
    if x.shape[1] % 4 and len(x) > 1:
        follows = torch.cat([wide(x)[1:, :1], wide(x)[:1, :1] * 0 - torch.inf])
        lse = torch.logsumexp(wide(x), -1, keepdim=True)
        value = (value + (torch.logaddexp(lse, follows) - lse)[:, 0]).to(x.dtype)
    return value


_CALLS = torch.Generator().manual_seed(5)


def _now_and_then(chance: float, x: Tensor, y: Tensor) -> Tensor:
    value = plain(x, y)
    return torch.where(torch.rand(len(x), generator=_CALLS) < chance, value * 0.5, value)


@broken("execution")
def a_row_in_100_is_wrong(x: Tensor, y: Tensor) -> Tensor:
    return _now_and_then(1e-2, x, y)


# Shapes.


def _at(x: Tensor, y: Tensor, wrong: bool) -> Tensor:
    """Where it is wrong, the last class is not there."""
    terms = masked(log_softmax(y), log_softmax(x))
    return terms[:, : x.shape[1] - wrong].sum(-1).to(x.dtype)


@broken("shapes")
def one_more_than_a_power_of_two(x: Tensor, y: Tensor) -> Tensor:
    n = x.shape[1] - 1
    return _at(x, y, n >= 64 and n & (n - 1) == 0)


@broken("shapes")
def one_less_than_a_power_of_two(x: Tensor, y: Tensor) -> Tensor:
    n = x.shape[1] + 1
    return _at(x, y, n >= 64 and n & (n - 1) == 0)


@broken("shapes")
def a_power_of_two_from_128_on(x: Tensor, y: Tensor) -> Tensor:
    n = x.shape[1]
    return _at(x, y, n >= 128 and n & (n - 1) == 0)


@broken("shapes")
def from_33_to_63_classes(x: Tensor, y: Tensor) -> Tensor:
    return _at(x, y, 33 <= x.shape[1] <= 63)


@broken("shapes")
def from_101_to_999_classes(x: Tensor, y: Tensor) -> Tensor:
    return _at(x, y, 101 <= x.shape[1] <= 999)


@broken("shapes")
def one_class_is_not_zero(x: Tensor, y: Tensor) -> Tensor:
    return plain(x, y) + (x.shape[1] == 1)


@broken("shapes")
def square_is_transposed(x: Tensor, y: Tensor) -> Tensor:
    return plain(x.t(), y.t()) if len(x) == x.shape[1] > 1 else plain(x, y)


@broken("shapes")
def more_than_65535_rows(x: Tensor, y: Tensor) -> Tensor:
    """A grid's second dimension ends there."""
    value = plain(x, y)
    return torch.cat([value[:65_535], 0 * value[65_535:]])


# Dtypes.


@broken("dtypes")
def float32_for_float64(x: Tensor, y: Tensor) -> Tensor:
    return plain(x.float(), y.float())


@broken("dtypes")
def bfloat16_by_way_of_float16(x: Tensor, y: Tensor) -> Tensor:
    return plain(x.half(), y.half()).to(x.dtype) if x.dtype == torch.bfloat16 else plain(x, y)


@broken("dtypes")
def float16_kept_throughout(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype != torch.float16:
        return plain(x, y)
    log_p, log_q = ((t - t.amax(-1, keepdim=True)) for t in (y, x))
    log_p, log_q = (t - t.exp().cumsum(-1)[:, -1:].log() for t in (log_p, log_q))
    return masked(log_p, log_q).cumsum(-1)[:, -1]


@broken("dtypes")
def saturates_at_100(x: Tensor, y: Tensor) -> Tensor:
    return plain(x, y).clamp(max=100)


# Sound.


@sound(audit.FUSED)
def triton_like(x: Tensor, y: Tensor) -> Tensor:
    """One program a row, float32 inside, a backward of its own."""
    return Fused.apply(x, y, slopes)


@sound(audit.FUSED)
def student_alone(x: Tensor, y: Tensor) -> Tensor:
    """No gradient of the teacher's."""
    return Fused.apply(x, y, lambda *given: (slopes(*given)[0], None))


@sound(audit.FUSED)
def autograds(x: Tensor, y: Tensor) -> Tensor:
    return plain(x, y)


@sound(Rounding(storage="compute", compute="float64", result="logits"))
def double_inside(x: Tensor, y: Tensor) -> Tensor:
    return plain(x.double(), y.double()).to(x.dtype)


@sound(audit.FUSED)
def clamped_at_zero(x: Tensor, y: Tensor) -> Tensor:
    return plain(x, y).clamp(min=0)


@sound(audit.FUSED)
def fast_exp2(x: Tensor, y: Tensor) -> Tensor:
    """exp2 of a product with log2(e), good to 2 ulp, as ex2.approx is."""
    log2_e, log_2 = 1.4426950408889634, 0.6931471805599453

    def off(t: Tensor) -> Tensor:
        value = (t * log2_e).exp2()
        return value * (1 + 2 * torch.finfo(t.dtype).eps * torch.sin(1e4 * t.clamp(min=-1e3)).detach())

    def parts(t: Tensor) -> tuple[Tensor, Tensor]:
        shifted = wide(t) - wide(t).amax(-1, keepdim=True)
        weights = off(shifted)
        total = weights.sum(-1, keepdim=True)
        return weights / total, shifted - total.log2() * log_2

    (p, log_p), (_, log_q) = parts(y), parts(x)
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1).to(x.dtype)


@sound(audit.FUSED)
def chunked_online(x: Tensor, y: Tensor) -> Tensor:
    """Blocks of 256 classes, both normalisers online, the sum of terms rescaled with them."""
    a, b = wide(y), wide(x)
    low = torch.full_like(a[:, :1], -torch.inf)
    top_a, top_b, sum_a, sum_b, dot = low, low, low.exp(), low.exp(), low.exp()

    def rescale(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(old > -torch.inf, (old - new).exp(), 0.0)

    for left, right in zip(a.split(256, -1), b.split(256, -1), strict=True):
        new_a, new_b = (torch.maximum(t, c.amax(-1, keepdim=True)) for t, c in ((top_a, left), (top_b, right)))
        w = torch.where(left > -torch.inf, (left - new_a).exp(), 0.0)
        back = rescale(top_a, new_a)
        # sum w ((a - top_a) - (b - top_b)), moved to the new tops.
        moved = torch.where(sum_a > 0, sum_a * ((top_a - new_a) - (top_b - new_b)), 0.0)
        dot = back * (dot + moved) + torch.where(w > 0, w * ((left - new_a) - (right - new_b)), 0.0).sum(-1, True)
        sum_a = back * sum_a + w.sum(-1, True)
        rest = torch.where(right > -torch.inf, (right - new_b).exp(), 0.0)
        sum_b = rescale(top_b, new_b) * sum_b + rest.sum(-1, True)
        top_a, top_b = new_a, new_b
    return (dot / sum_a - sum_a.log() + sum_b.log())[:, 0].to(x.dtype)
