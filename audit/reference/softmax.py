"""Exact softmax and log-softmax, element by element, as pairs of binary64 numbers whose sum is good to 100 bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from audit.reference.oracle import _context
from audit.reference.values import Rows

Pair = tuple[Rows, Rows]
_BITS = 200


def exact_softmax(logits: Rows) -> tuple[Pair, Pair]:
    """(p, log p) of rows x classes of logits, each as (high, low)."""
    ctx = _context()
    p: list[list[Any]] = []
    log_p: list[list[Any]] = []
    with ctx.workprec(_BITS):
        for row in logits.tolist():
            top = ctx.mpf(max(row))
            shifted = [ctx.mpf(v) - top for v in row]
            weights = [ctx.exp(a) for a in shifted]
            total = ctx.fsum(weights)
            largest = row.index(max(row))
            # log(1 + rest) keeps the digits of a logarithm near 0.
            log_total = ctx.log1p(ctx.fsum(w for i, w in enumerate(weights) if i != largest))
            p.append([w / total for w in weights])
            log_p.append([a - log_total for a in shifted])
        return _pair(p), _pair(log_p)


def _pair(rows: list[list[Any]]) -> Pair:
    high = np.array([[float(v) for v in row] for row in rows])
    low = np.array([[float(v - float(v)) if abs(v) < 1e300 else 0.0 for v in row] for row in rows])
    return high, low
