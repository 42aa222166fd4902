"""Sound kernels: any order of summation, online or chunked, compensated, in double. None may be flagged."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(t: Tensor) -> Tensor:
    """Halves compute in float32, as torch's kernels do; the others in their own format."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def log_softmax(t: Tensor) -> Tensor:
    shifted = wide(t) - wide(t).amax(-1, keepdim=True)
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


def plain(input: Tensor, target: Tensor) -> Tensor:
    log_p, log_q = log_softmax(target), log_softmax(input)
    return masked(log_p, log_q).sum(-1).to(input.dtype)


def masked(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p (log p - log q), 0 where p = 0, and NaN where p is."""
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_q))


def permuted(input: Tensor, target: Tensor) -> Tensor:
    order = torch.randperm(input.shape[1], generator=torch.Generator().manual_seed(1)).to(input.device)
    return plain(input[:, order], target[:, order])


def reversed_classes(input: Tensor, target: Tensor) -> Tensor:
    return plain(input.flip(-1), target.flip(-1))


def _sequential(terms: Tensor) -> Tensor:
    return terms.cumsum(-1)[:, -1]


def sequential(input: Tensor, target: Tensor) -> Tensor:
    log_p, log_q = (t - _sequential(t.exp())[:, None].log() for t in map(_shifted, (target, input)))
    return _sequential(masked(log_p, log_q)).to(input.dtype)


def _shifted(t: Tensor) -> Tensor:
    return wide(t) - wide(t).amax(-1, keepdim=True)


def _chunks(t: Tensor, size: int = 1_000) -> list[Tensor]:
    return list(wide(t).split(size, -1))


def _online(t: Tensor) -> tuple[Tensor, Tensor]:
    """The running maximum, and the sum of exponentials rescaled to it at every chunk."""
    top = torch.full_like(wide(t)[:, :1], -torch.inf)
    total = torch.zeros_like(top)
    for chunk in _chunks(t, max(1, t.shape[1] // 50)):
        # A block may be ruled out as a whole.
        new = torch.maximum(top, chunk.amax(-1, keepdim=True)).clamp(min=torch.finfo(top.dtype).min)
        total = total * (top - new).exp() + (chunk - new).exp().sum(-1, keepdim=True)
        top = new
    return top, total


def online(input: Tensor, target: Tensor) -> Tensor:
    """Flash-attention style: one pass with a running maximum."""
    log_p, log_q = ((wide(t) - top) - total.log() for t in (target, input) for top, total in [_online(t)])
    return masked(log_p, log_q).sum(-1).to(input.dtype)


def blocked(input: Tensor, target: Tensor) -> Tensor:
    log_p, log_q = log_softmax(target), log_softmax(input)
    blocks = [masked(a, b).sum(-1) for a, b in zip(_chunks(log_p, 128), _chunks(log_q, 128), strict=True)]
    return torch.stack(blocks).sum(0).to(input.dtype)


def compensated(input: Tensor, target: Tensor) -> Tensor:
    """Kahan's sum of the blocks."""
    terms = masked(log_softmax(target), log_softmax(input))
    total, carry = torch.zeros_like(terms[:, 0]), torch.zeros_like(terms[:, 0])
    for block in terms.split(64, -1):
        part = block.sum(-1) - carry
        new = total + part
        carry = (new - total) - part
        total = new
    return total.to(input.dtype)


def in_double(input: Tensor, target: Tensor) -> Tensor:
    return plain(input.double(), target.double()).to(input.dtype)


def base_two(input: Tensor, target: Tensor) -> Tensor:
    """exp2 and log2, as GPU kernels prefer."""
    log2_e, log_2 = 1.4426950408889634, 0.6931471805599453

    def log2_softmax(t: Tensor) -> Tensor:
        scaled = _shifted(t) * log2_e
        return scaled - scaled.exp2().sum(-1, keepdim=True).log2()

    log_p, log_q = log2_softmax(target), log2_softmax(input)
    p = log_p.exp2()
    return (torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1) * log_2).to(input.dtype)


def ratio_of_sums(input: Tensor, target: Tensor) -> Tensor:
    """sum w (a - b) / W - log W + log V: probabilities are never formed."""
    a, b = _shifted(target), _shifted(input)
    w = a.exp()
    total = w.sum(-1)
    terms = torch.where(w == 0, 0.0, w * (a - b))
    return (terms.sum(-1) / total - total.log() + b.exp().sum(-1).log()).to(input.dtype)


def reciprocal(input: Tensor, target: Tensor) -> Tensor:
    """Probabilities by a multiplication with 1 / sum."""
    a = _shifted(target).exp()
    p = a * (1 / a.sum(-1, keepdim=True))
    # The logarithm is taken of 1 where p = 0, since a NaN that `where` leaves out would stand in the gradient.
    terms = p * (torch.where(p == 0, 1.0, p).log() - log_softmax(input))
    return torch.where(p == 0, 0.0, terms).sum(-1).to(input.dtype)


def entropies_apart(input: Tensor, target: Tensor) -> Tensor:
    log_p, log_q = log_softmax(target), log_softmax(input)
    p = log_p.exp()
    entropy = torch.where(p == 0, 0.0, p * log_p).sum(-1)
    return (entropy - torch.where(p == 0, 0.0, p * log_q).sum(-1)).to(input.dtype)


def flush(t: Tensor) -> Tensor:
    """Subnormal numbers are 0, as in a CUDA kernel that was compiled with -ftz=true."""
    return t - torch.where(t.abs() < torch.finfo(t.dtype).tiny, t, 0.0).detach()


def flushed(input: Tensor, target: Tensor) -> Tensor:
    def log_softmax(t: Tensor) -> Tensor:
        shifted = flush(flush(wide(t)) - flush(wide(t)).amax(-1, keepdim=True))
        return flush(shifted - flush(flush(shifted.exp()).sum(-1, keepdim=True).log()))

    log_p, log_q = log_softmax(target), log_softmax(input)
    p = flush(log_p.exp())
    terms = torch.where(p == 0, 0.0, flush(p * flush(log_p - log_q)))
    return flush(flush(terms.sum(-1)).to(input.dtype))


def clamped_at_zero(input: Tensor, target: Tensor) -> Tensor:
    """Never below 0, which a divergence is not either: never less accurate."""
    return plain(input, target).clamp(min=0)


def magnitude(input: Tensor, target: Tensor) -> Tensor:
    """The same by dropping the sign: ||v| - KL| <= |v - KL|."""
    return plain(input, target).abs()


SOUND = [
    plain, permuted, reversed_classes, sequential, online, blocked, compensated, in_double, base_two, ratio_of_sums,
    reciprocal, entropies_apart, flushed, clamped_at_zero, magnitude,
]  # fmt: skip
