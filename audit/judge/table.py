"""errors.csv: what every path gave beside the exact values, the errors computed for the whole table at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from itertools import chain, groupby

import numpy as np
import pandas as pd

from audit.cases import Problem, Rows
from audit.judge.bounds import Exact, bound, rest, within_bound
from audit.judge.errors import error_columns
from audit.judge.references import Later, References, divisor, published, reduced
from audit.judge.scale import magnitude
from audit.measure import Result
from audit.paths import Path
from audit.paths.rounding import Rounding

Wait = Later[References]
_EXACT = Context(prec=2_000)


@dataclass(frozen=True)
class Block:
    """What one path gave for one problem on one device, and how to get the exact values it is compared with.

    `reference` is of what the path means to compute, `exact` KL itself, `before` KL before rounding to the dtype.
    """

    problem: Problem
    device: str
    path: Path
    result: Result
    reference: Wait
    exact: Wait
    before: Wait | None


def error_table(blocks: Sequence[Block]) -> pd.DataFrame:
    """The rows of errors.csv, their errors computed for the whole table at once."""
    # Logits near the largest number of a format overflow in scales and bounds, as they should.
    with np.errstate(over="ignore"):
        groups = groupby(blocks, key=lambda b: id(b.problem))
        parts = [part for _, group in groups for part in _row_columns(list(group))]
    shared = pd.DataFrame([_block_columns(block) for block in blocks])
    table = shared.take(np.repeat(np.arange(len(blocks)), [len(part["row"]) for part in parts])).reset_index(drop=True)
    for name in parts[0]:
        table[name] = list(chain.from_iterable(part[name] for part in parts))
    table = pd.concat([table.drop(columns="result_class"), error_columns(table)], axis=1)
    table["within_bound"] = within_bound(table)
    table["input_error"] = [
        _difference(exact, before) for exact, before in zip(table["exact_kl"], table["before"], strict=True)
    ]
    return table


def _block_columns(block: Block) -> dict[str, object]:
    """What the rows of a block have in common."""
    case, path = block.problem.case, block.path
    rows, classes = block.problem.input.shape
    return {
        "case": case.name,
        "path": path.name,
        "reduction": path.reduction,
        "dtype": block.problem.dtype,
        "device": block.device,
        "kind": path.kind,
        "rows": rows,
        "classes": classes,
        "target_kind": case.target_kind,
        "result_dtype": block.result.dtype,
        "result_class": "not_computed" if block.result.note else "",
        "note": block.result.note,
    }


def _row_columns(blocks: Sequence[Block]) -> Iterator[dict[str, Sequence[object] | Rows]]:
    """What differs from row to row, of one problem's blocks; what is the same for all blocks is computed once."""
    problem = blocks[0].problem
    rows, classes = problem.input.shape
    scale = magnitude(*problem.numbers, *problem.case.kinds)
    exact = Exact.of(*problem.numbers, *problem.case.kinds)
    remaining = rest(exact, problem.dtype)
    bounds: dict[tuple[str, Rounding, str], Rows] = {}
    for block in blocks:
        path, reduction = block.path, block.path.reduction
        key = (path.kind, path.rounding, reduction)
        if key not in bounds:
            bounds[key] = bound(path, exact, problem.dtype)
        sources = block.reference().sources
        each = reduction == "none"
        yield {
            "row": range(rows) if each else [pd.NA],
            "input_digest": problem.row_digests if each else [problem.case_digest],
            "reference": _text(block.reference, reduction, classes),
            "exact_kl": _text(block.exact, reduction, classes),
            "before": _text(block.before, reduction, classes) if block.before else [""] * (rows if each else 1),
            "reference_source": sources if each else [next(s for s in ("computed", "gold", "exact") if s in sources)],
            "computed": block.result.computed,
            "scale": scale if each else [scale.sum() / divisor(reduction, rows, classes)],
            "bound": bounds[key],
            "rest": remaining if each else [np.nan],
        }


def _difference(exact: str, before: str) -> float:
    """exact - before, rounded once; not a number where either is infinite or there is nothing before."""
    a, b = Decimal(exact), Decimal(before or "nan")
    return float(_EXACT.subtract(a, b)) if a.is_finite() and b.is_finite() else float("nan")


def _text(values: Wait, reduction: str, classes: int) -> list[str]:
    """References as they are published: one a row, or one in all."""
    rows = values().values
    return [published(row) for row in rows] if reduction == "none" else [reduced(rows, reduction, classes)]
