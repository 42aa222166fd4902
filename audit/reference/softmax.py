"""Exact softmax and log-softmax, element by element, the gradients, and where a drift comes from."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from audit.reference.oracle import context
from audit.reference.values import Rows

Pair = tuple[Rows, Rows]
BITS = 200
PARTS = ("softmax", "shift", "log_softmax", "log", "product", "summation", "output")


def exact_softmax(logits: Rows) -> tuple[Pair, Pair]:
    """(p, log p) of rows x classes of logits, each as (high, low), two binary64 numbers.

    Their sum is good to 100 bits where neither is subnormal or beyond 1e300.
    """
    ctx = context()
    with ctx.workprec(BITS):
        rows = [softmax(row) for row in logits.tolist()]
        return _pair([p for p, _ in rows]), _pair([log_p for _, log_p in rows])


def exact_gradients(input: Rows, target: Rows, target_kind: str = "logits") -> tuple[Rows, Rows]:
    """The gradients of KL(softmax(target) || softmax(input)) by either's logits, rounded from 200 bits.

    They are q - p and p (log p - log q - KL), the second 0 in the limit of p = 0. An error of 2^-190 in what cancels is
    all there is, and for subnormal numbers a second rounding. Of a target given as "probs", of any mass, the first is
    q sum p - p, and the second, infinite at p = 0, is not a number here.
    """
    ctx = context()
    by_input, by_target = [], []
    with ctx.workprec(BITS):
        for x, y in zip(input.tolist(), target.tolist(), strict=True):
            q, log_q = softmax(x)
            if target_kind == "probs":
                mass = ctx.fsum(y)
                by_input.append([float(b * mass - a) for a, b in zip(y, q, strict=True)])
                by_target.append([float("nan")] * len(y))
                continue
            p, log_p = softmax(y)
            L = [a - b if w else ctx.zero for w, a, b in zip(p, log_p, log_q, strict=True)]
            kl = ctx.fdot(p, L)
            by_input.append([float(b - a) for a, b in zip(p, q, strict=True)])
            by_target.append([float(a * (l - kl)) if a else 0.0 for a, l in zip(p, L, strict=True)])
    return np.array(by_input), np.array(by_target)


def softmax(row: list[Any]) -> tuple[list[Any], list[Any]]:
    """p and log p of one row of logits, floats or mpf, at the context's present precision."""
    ctx = context()
    largest = row.index(max(row))
    top = ctx.mpf(row[largest])
    shifted = [ctx.mpf(v) - top for v in row]
    weights = [ctx.exp(a) for a in shifted]
    total = ctx.fsum(weights)
    # log(1 + rest) keeps the digits of a logarithm near 0.
    log_total = ctx.log1p(ctx.fsum(w for i, w in enumerate(weights) if i != largest))
    return [w / total for w in weights], [a - log_total for a in shifted]


def _pair(rows: list[list[Any]]) -> Pair:
    high = np.array([[float(v) for v in row] for row in rows])
    low = np.array([[float(v - float(v)) if abs(v) < 1e300 else 0.0 for v in row] for row in rows])
    return high, low


def split_drift(stages: list[list[float]], total: float, result: float) -> dict[str, float]:
    """The drift of one row, its PARTS, and `mass_difference`, in nats, each good to 2^-180 of the terms it sums.

    `stages` are the logits of input and target, and p^, l^, log^ p^ and the terms that were made of them; `total` is
    their sum, `result` that in the result's format. With exact log-probabilities l and f(p, l) = sum p (log p - l) the
    parts are differences of

        KL = f(p, l) -> f(p^, l) -> f(p^, l + c) -> f(p^, l^) -> sum p^ (log^ p^ - l^) -> sum terms^ -> sum^ -> result,

    c being the shift that a row's log-probabilities have in common (their median error): so they add up to the drift.
    """
    x, y, p, l, log_p, terms = stages
    ctx = context()
    with ctx.workprec(BITS):
        exact_p, exact_log_p = softmax(y)
        exact_l = exact_log_p if x == y else softmax(x)[1]
        there = [i for i, v in enumerate(p) if v > 0]
        stored = {i: ctx.mpf(p[i]) for i in there}
        logarithms = {i: ctx.log(v) for i, v in stored.items()}
        stored_l = [ctx.mpf(v) for v in l]
        errors = sorted(a - b for a, b in zip(stored_l, exact_l, strict=True))
        shift = errors[len(errors) // 2]

        def f(logs: Any) -> Any:
            return ctx.fsum(stored[i] * (logarithms[i] - logs[i]) for i in there)

        values = [
            ctx.fsum(a * (b - c) for a, b, c in zip(exact_p, exact_log_p, exact_l, strict=True)),
            f(exact_l),
            f([v + shift for v in exact_l]),
            f(stored_l),
            ctx.fsum(stored[i] * (ctx.mpf(log_p[i]) - stored_l[i]) for i in there),
            ctx.fsum(ctx.mpf(v) for v in terms),
            ctx.mpf(total),
            ctx.mpf(result),
        ]
        parts = {name: float(b - a) for name, (a, b) in zip(PARTS, pairwise(values), strict=True)}
        mass = ctx.fsum(stored.values()) - ctx.fsum(map(ctx.exp, stored_l))
        return {"drift": float(values[-1] - values[0]), **parts, "mass_difference": float(mass)}
