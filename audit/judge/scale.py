"""How large the sum of a KL divergence is before it cancels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


def magnitude(input: Rows, target: Rows, target_kind: str, input_kind: str = "logits") -> NDArray[np.float64]:
    """1 + sum p (|log p| + |log q|) a row: what rounding errors of a sound computation are proportional to.

    Each side holds rows x classes of its kind: logits, log_probs or probs. In binary64, which is ample for a scale;
    infinite where q = 0 under p > 0.
    """
    # Logits near the largest double overflow to the infinity that the scale then is.
    with np.errstate(divide="ignore", over="ignore"):
        log_q, log_p = logarithms(input, input_kind), logarithms(target, target_kind)
    p = target if target_kind == "probs" else np.exp(log_p)
    with np.errstate(invalid="ignore", over="ignore"):
        terms = np.where(p > 0, p * (np.abs(log_p) + np.abs(log_q)), 0.0)
        return np.asarray(1 + terms.sum(axis=1))


def logarithms(values: Rows, kind: str) -> Rows:
    """The logarithms of the probabilities that values of a kind stand for."""
    if kind == "log_probs":
        return values
    if kind == "probs":
        return np.asarray(np.log(values))
    logits = values
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
