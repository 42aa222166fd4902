"""errors.csv: what every path gave beside the exact values, the errors computed for the whole table at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from itertools import chain

import numpy as np
import pandas as pd

from audit.base.formats import FORMATS
from audit.base.workers import Later
from audit.cases import Problem, Rows
from audit.judge.bounds import keeps
from audit.judge.errors import error_columns
from audit.judge.limits import Limits
from audit.judge.references import References, divisor, published, reduced
from audit.machine.measure import Result
from audit.paths import Path

Wait = Later[References]
_EXACT = Context(prec=2_000)


@dataclass(frozen=True)
class Begun:
    """A problem, the paths that take it, and how to get what their results are compared with.

    `references` are the exact values of each quantity that a path means to compute, and of "kl"; `before` is KL before
    rounding to the dtype.
    """

    problem: Problem
    paths: list[Path]
    limits: Later[Limits]
    references: Mapping[str, Wait]
    before: Wait | None


@dataclass(frozen=True)
class Block:
    """What one path gave for one problem on one device."""

    begun: Begun
    device: str
    path: Path
    result: Result


def error_table(blocks: Sequence[Block]) -> pd.DataFrame:
    """The rows of errors.csv, their errors computed for the whole table at once."""
    # Logits near the largest number of a format overflow in scales, as they should.
    with np.errstate(over="ignore"):
        parts = [_row_columns(block) for block in blocks]
    shared = pd.DataFrame([_block_columns(block) for block in blocks])
    table = shared.take(np.repeat(np.arange(len(blocks)), [len(part["row"]) for part in parts])).reset_index(drop=True)
    for name in parts[0]:
        table[name] = list(chain.from_iterable(part[name] for part in parts))
    table = pd.concat([table.drop(columns="result_class"), error_columns(table)], axis=1)
    table["within_bound"] = within_bound(table)
    table["lossy"] = table["within_bound"] & ~within_bound(table.assign(bound=table["attainable"]))
    table["input_error"] = [
        _difference(exact, before) for exact, before in zip(table["exact_kl"], table["before"], strict=True)
    ]
    return table


def _block_columns(block: Block) -> dict[str, object]:
    """What the rows of a block have in common."""
    problem, path = block.begun.problem, block.path
    rows, classes = problem.input.shape
    return {
        "case": problem.case.name,
        "path": path.name,
        "reduction": path.reduction,
        "dtype": problem.dtype,
        "device": block.device,
        "kind": path.kind,
        "rows": rows,
        "classes": classes,
        "target_kind": problem.case.target_kind,
        "result_dtype": block.result.dtype,
        "result_class": "not_computed" if block.result.note else "",
        "note": block.result.note,
    }


def _row_columns(block: Block) -> dict[str, Sequence[object] | Rows]:
    """What differs from row to row."""
    begun, path = block.begun, block.path
    problem, reduction, limits = begun.problem, path.reduction, begun.limits()
    reference, exact, before = begun.references[path.quantity], begun.references["kl"], begun.before
    rows, classes = problem.input.shape
    sources = reference().sources
    each = reduction == "none"
    bound, attainable = limits.bounds[path.promise]
    return {
        "row": range(rows) if each else [pd.NA],
        "input_digest": problem.row_digests if each else [problem.case_digest],
        "reference": _text(reference, reduction, classes),
        "exact_kl": _text(exact, reduction, classes),
        "before": _text(before, reduction, classes) if before else [""] * (rows if each else 1),
        "reference_source": sources if each else [next(s for s in ("computed", "gold", "exact") if s in sources)],
        "computed": block.result.computed,
        "scale": limits.scale if each else [limits.scale.sum() / divisor(reduction, rows, classes)],
        "bound": bound,
        "attainable": attainable,
        "rest": limits.rest if each else [np.nan],
    }


def within_bound(table: pd.DataFrame) -> pd.Series:
    """Whether each result keeps its bound; NA where it has none or nothing was computed.

    Taken are `computed`, `reference`, `abs_error`, `bound`, `result_dtype`, `result_class`, and `rest`, see `keeps`.
    """
    computed, bound = table["computed"].to_numpy(np.float64), table["bound"].to_numpy(np.float64)
    # Decimal text beyond binary64's range is an infinity here, as it is in every result_dtype.
    reference = table["reference"].map(float).to_numpy(np.float64)
    thresholds = table["result_dtype"].map({f.name: f.overflow_threshold for f in FORMATS.values()})
    infinite = table["reference"].isin(["inf", "-inf"]).to_numpy(bool)
    error, rest, threshold = (np.asarray(c, np.float64) for c in (table["abs_error"], table["rest"], thresholds))
    kept = keeps(computed, reference, error, bound, rest, threshold, infinite)
    judged = ~np.isnan(bound) & (table["result_class"] != "not_computed").to_numpy(bool)
    return pd.Series(kept, table.index, dtype="boolean").where(judged)


def _difference(exact: str, before: str) -> float:
    """exact - before, rounded once; not a number where either is infinite or there is nothing before."""
    a, b = Decimal(exact), Decimal(before or "nan")
    return float(_EXACT.subtract(a, b)) if a.is_finite() and b.is_finite() else float("nan")


def _text(values: Wait, reduction: str, classes: int) -> list[str]:
    """References as they are published: one a row, or one in all."""
    rows = values().values
    return [published(row) for row in rows] if reduction == "none" else [reduced(rows, reduction, classes)]
