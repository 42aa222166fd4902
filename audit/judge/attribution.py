"""Where a drift comes from: that of softmax, log_softmax, log, product and sum in turn, split in exact arithmetic.

With stored p^ and l^, exact log-probabilities l, and f(p, l) = sum p (log p - l), the parts are differences of

    KL = f(p, l) -> f(p^, l) -> f(p^, l + c) -> f(p^, l^) -> sum p^ (log^ p^ - l^) -> sum terms^ -> sum^ -> result,

c being the shift that a row's log-probabilities have in common (their median error): so they add up to the drift.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch

from audit.cases import Problem
from audit.reference.oracle import _context
from audit.reference.softmax import softmax

ROWS = 2
PARTS = ("softmax", "shift", "log_softmax", "log", "product", "summation", "output")
_BITS = 200


def measure_attribution(problems: Sequence[Problem], device: str, rows: int = ROWS) -> pd.DataFrame:
    """The rows of attribution.csv: a row of a case x dtype on one device, for the staged log_softmax path.

    Taken are the first `rows` rows of each problem.
    """
    return pd.DataFrame([row for problem in problems for row in _rows(problem, device, rows)])


def _rows(problem: Problem, device: str, rows: int) -> Iterator[dict[str, object]]:
    x, y = (t[:rows].to(device) for t in (problem.input, problem.target))
    p, l = torch.softmax(y, -1), torch.log_softmax(x, -1)
    log_p = torch.log(p)
    terms = torch.where(p > 0, p * (log_p - l), 0)
    # The sum before it is rounded to the format of a half; the others have no such step.
    wide = terms.float() if terms.dtype in (torch.float16, torch.bfloat16) else terms
    totals = wide.sum(-1)
    results = totals.to(x.dtype)
    for row in range(len(x)):
        stages = [t[row].double().cpu().tolist() for t in (x, y, p, l, log_p, terms)]
        ends = float(totals[row]), float(results[row])
        yield {
            "case": problem.case.name,
            "row": row,
            "path": "log_softmax",
            "dtype": problem.dtype,
            "device": device,
            **_split(stages, *ends),
        }


def _split(stages: list[list[float]], total: float, result: float) -> dict[str, float]:
    """The parts, from the logits of input and target, p^, l^, log^ p^ and the terms, each of one row."""
    x, y, p, l, log_p, terms = stages
    ctx = _context()
    with ctx.workprec(_BITS):
        exact_p, exact_log_p = softmax(y)
        exact_l = exact_log_p if x == y else softmax(x)[1]
        there = [i for i, v in enumerate(p) if v > 0]
        stored = {i: ctx.mpf(p[i]) for i in there}
        logarithms = {i: ctx.log(v) for i, v in stored.items()}
        errors = sorted(ctx.mpf(l[i]) - exact_l[i] for i in range(len(x)))
        shift = errors[len(errors) // 2]

        def f(logs: Any) -> Any:
            return ctx.fsum(stored[i] * (logarithms[i] - logs[i]) for i in there)

        values = [
            ctx.fsum(a * (b - c) for a, b, c in zip(exact_p, exact_log_p, exact_l, strict=True)),
            f(exact_l),
            f([v + shift for v in exact_l]),
            f([ctx.mpf(v) for v in l]),
            ctx.fsum(stored[i] * (ctx.mpf(log_p[i]) - ctx.mpf(l[i])) for i in there),
            ctx.fsum(ctx.mpf(v) for v in terms),
            ctx.mpf(total),
            ctx.mpf(result),
        ]
        parts = {
            name: float(after - before) for name, before, after in zip(PARTS, values[:-1], values[1:], strict=True)
        }
        mass = ctx.fsum(stored.values()) - ctx.fsum(ctx.exp(ctx.mpf(v)) for v in l)
        return {"drift": float(values[-1] - values[0]), **parts, "mass_difference": float(mass)}
