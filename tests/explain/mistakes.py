"""Every mistake that `diagnose` tells, made of two tensors of logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, log_softmax, softmax
from torch.nn import functional as F

SHAPES = [(16, 10), (4, 3, 50), (8, 100)]


def top(t: Tensor, k: int, nothing: float) -> Tensor:
    """All but the k largest classes of a row are `nothing`."""
    return t.masked_fill(t < t.topk(k, -1).values[..., -1:], nothing)


def nucleus(t: Tensor, nothing: float) -> Tensor:
    """All but the large probabilities are `nothing`, which leaves a row that is sure of its class whole."""
    return t.masked_fill(t < t.amax(-1, keepdim=True) / 2, nothing)


def with_sure_rows(t: Tensor) -> Tensor:
    rows = t.reshape(-1, t.shape[-1]).clone()
    rows[-1] = 2e3 * (torch.arange(t.shape[-1]) == 1)
    return rows.reshape(t.shape)


def without(t: Tensor, *classes: int) -> Tensor:
    return t.index_fill(-1, torch.tensor(classes), -torch.inf)


def with_empty_rows(t: Tensor) -> Tensor:
    return t.index_fill(0, torch.arange(1, len(t), max(1, len(t) - 2)), 0)


def with_raw_rows(t: Tensor) -> Tensor:
    return torch.cat([log_softmax(t, -1)[1:], 5 + t[:1]])


def one_hot(t: Tensor) -> Tensor:
    return F.one_hot(t.argmax(-1), t.shape[-1]).to(t.dtype)


# verdict -> what logits x and y are given as: input, target and the options of the call
MISTAKES: dict[str, list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor, dict[str, Any]]]]] = {
    "sound": [
        lambda x, y: (log_softmax(x, -1), softmax(y, -1), {}),
        lambda x, y: (log_softmax(x, -1), log_softmax(y, -1), {"log_target": True}),
        lambda x, y: (log_softmax(x.movedim(-1, 0), 0), softmax(y.movedim(-1, 0), 0), {"dim": 0}),
    ],
    "identical": [
        lambda x, y: (log_softmax(y, -1), softmax(y, -1), {}),
        lambda x, y: (log_softmax(y, -1), log_softmax(y, -1), {"log_target": True}),
    ],
    "mixed_dtypes": [
        lambda x, y: (log_softmax(x.double(), -1), softmax(y.to(narrower(y.dtype)), -1), {}),
        lambda x, y: (log_softmax(x.double(), -1), log_softmax(y.to(narrower(y.dtype)), -1), {"log_target": True}),
    ],
    "eps_in_log": [
        lambda x, y: ((softmax(x, -1) + eps_that_shows(x)).log(), softmax(y, -1), {}),
        lambda x, y: (log_softmax(x, -1), (softmax(y, -1) + eps_that_shows(x)).log(), {"log_target": True}),
        lambda x, y: (softmax(20 * x, -1).clamp(min=1e-4).log(), softmax(y, -1), {}),
    ],
    "padding": [
        lambda x, y: (log_softmax(x, -1), with_empty_rows(softmax(y, -1)), {}),
        lambda x, y: (log_softmax(x, -1), softmax(y, -1), {"mask": torch.arange(len(x)) > 0}),
        lambda x, y: (
            log_softmax(x, -1),
            with_empty_rows(softmax(y, -1)).log(),
            {"log_target": True},
        ),
        lambda x, y: (with_empty_rows(log_softmax(x, -1)), with_empty_rows(softmax(y, -1)), {}),
        lambda x, y: (log_softmax(x, -1), softmax(y, -1) * 0, {}),
        lambda x, y: (log_softmax(x, -1), log_softmax(y, -1) - torch.inf, {"log_target": True}),
    ],
    "truncated": [
        lambda x, y: (log_softmax(x, -1), top(softmax(y, -1), 3, 0.0), {}),
        lambda x, y: (log_softmax(x, -1), top(log_softmax(y, -1), 3, -torch.inf), {"log_target": True}),
        lambda x, y: (top(log_softmax(x, -1), 3, -torch.inf), softmax(y, -1), {}),
        lambda x, y: (log_softmax(x, -1), nucleus(softmax(with_sure_rows(y), -1), 0.0), {}),
        lambda x, y: (nucleus(softmax(with_sure_rows(x), -1), 0.0).log(), softmax(y, -1), {}),
        lambda x, y: (log_softmax(top(x, 3, -torch.inf), -1), softmax(y, -1), {}),
        lambda x, y: (log_softmax(x, -1)[..., :4], softmax(y, -1)[..., :4], {}),
    ],
    "temperature": [
        lambda x, y: (log_softmax(x, -1) / 2, softmax(y, -1) / 2, {}),
        lambda x, y: (log_softmax(x, -1) / 4, softmax(y / 4, -1), {}),
        lambda x, y: (log_softmax(y / 2, -1), softmax(y, -1), {}),
        lambda x, y: (log_softmax(y, -1), log_softmax(y / 4, -1), {"log_target": True}),
    ],
    "class_indices": [
        lambda x, y: (log_softmax(x, -1), y.argmax(-1), {}),
        lambda x, y: (log_softmax(x, -1), F.one_hot(y.argmax(-1), y.shape[-1]), {}),
    ],
    "raw_logits": [lambda x, y: (x, y, {}), lambda x, y: (x, y, {"log_target": True})],
    "probs_as_input": [lambda x, y: (softmax(x, -1), softmax(y, -1), {})],
    "logits_as_input": [lambda x, y: (x, softmax(y, -1), {})],
    "logits_as_target": [lambda x, y: (log_softmax(x, -1), y, {})],
    "log_probs_without_log_target": [lambda x, y: (log_softmax(x, -1), log_softmax(y, -1), {})],
    "probs_with_log_target": [lambda x, y: (log_softmax(x, -1), softmax(y, -1), {"log_target": True})],
    "arguments_swapped": [lambda x, y: (softmax(y, -1), log_softmax(x, -1), {})],
    "wrong_dim": [
        lambda x, y: (log_softmax(x, 0), softmax(y, 0), {}),
        lambda x, y: (log_softmax(x, 0), log_softmax(y, 0), {"log_target": True}),
    ],
    "different_dims": [lambda x, y: (log_softmax(x, 0), softmax(y, -1), {})],
    "unnormalised_target": [
        lambda x, y: (log_softmax(x, -1), 0.5 * softmax(y, -1), {}),
        lambda x, y: (log_softmax(x, -1), 0.9 * one_hot(y), {}),
    ],
    "unnormalised_input": [
        lambda x, y: ((0.5 * softmax(x, -1)).log(), softmax(y, -1), {}),
        lambda x, y: (torch.sigmoid(x).log(), torch.sigmoid(y), {}),
        lambda x, y: (with_raw_rows(x), softmax(y, -1), {}),
    ],
    "double_softmax": [lambda x, y: (log_softmax(softmax(2 * x, -1), -1), softmax(y, -1), {})],
    "nan_in_data": [lambda x, y: (log_softmax(x / 0 * 0, -1), softmax(y, -1), {})],
    "infinite": [
        lambda x, y: (log_softmax(without(x, 1), -1), softmax(y, -1), {}),
        lambda x, y: (softmax(-math.log(torch.finfo(x.dtype).smallest_normal) * x, -1).log(), softmax(y, -1), {}),
    ],
    "impossible_class": [
        lambda x, y: (
            log_softmax(x, -1),
            log_softmax(without(y, 0, 1), -1),
            {"log_target": True},
        ),
        lambda x, y: (log_softmax(without(x, 1), -1), softmax(without(y, 1), -1), {}),
    ],
}


def narrower(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float64 else dtype


def eps_that_shows(x: Tensor) -> float:
    """A power of ten that the format keeps beside x's probabilities, and which their sum shows."""
    return {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(x.dtype, 1e-6)


def logits(dtype: str, seed: int, shape: tuple[int, ...] = (16, 10)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator).to(getattr(torch, dtype))
