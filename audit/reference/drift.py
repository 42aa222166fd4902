"""Where a drift comes from, in exact arithmetic: the differences between one stage of a computation and the next."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from audit.reference.oracle import context
from audit.reference.softmax import BITS, softmax

PARTS = ("softmax", "shift", "log_softmax", "log", "product", "summation", "output")


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
