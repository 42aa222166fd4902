"""errors.csv: what every path gave beside the exact values, the errors computed for the whole table at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from audit.base.formats import FORMATS
from audit.base.supervision import on_case
from audit.base.text import describe
from audit.base.workers import Later
from audit.cases import Rows
from audit.causes.matching import Given, Results, name_causes
from audit.judge.bounds import keeps
from audit.judge.errors import error_columns
from audit.judge.findings import symptoms
from audit.judge.references import References, divisor, published, reduced
from audit.looks import Look, Run, Trial
from audit.machine.devices import examine, lost
from audit.machine.measure import TOO_SLOW, Result, measure
from audit.paths import Path
from audit.paths.rounding import Rounding

_EXACT = Context(prec=2_000)


@dataclass(frozen=True)
class Measured:
    """What one path gave for one problem on one device."""

    trial: Trial
    device: str
    path: Path
    result: Result


def begin(run: Run) -> Later[pd.DataFrame]:
    """Every path's results on every problem, judged when all are there."""
    trials = run.trials

    def rows() -> pd.DataFrame:
        stopped: dict[tuple[str, str], str] = {}
        results: list[Measured] = []
        for trial in trials:
            run.advance(f"{trial.problem.case.name} {trial.problem.dtype}")
            results += run_paths(trial, run.devices, stopped)
        return error_table(results)

    return rows


LOOK = Look("errors", ("whole", "part", "kernel"), begin)


def run_paths(trial: Trial, devices: Iterable[str], stopped: dict[tuple[str, str], str]) -> Iterator[Measured]:
    """Every path on the problem's tensors, carried to each device once.

    One that took too long is `stopped`, and not run again.
    """
    problem = trial.problem
    on_case(problem.case.name)
    for device in devices:
        carried = False
        for path in (path for path in trial.paths if path.runs_on(device)):
            where = stopped.get((path.name, device))
            reason = lost(device) or (f"not run: {where}" if where else "")
            if not (carried or reason):
                try:
                    # A copy even on the CPU: the problem's own tensors must survive a path that writes into its inputs.
                    x, y = (t.to(device).repeat(problem.case.repeats, 1) for t in (problem.input, problem.target))
                    originals = x.clone(), y.clone()
                    carried = True
                except Exception as error:
                    examine(device)
                    reason = lost(device) or describe(error)
            if reason:
                yield Measured(trial, device, path, _without(trial, path, reason))
                continue
            result = measure(path, x, y, originals)
            carried = not result.note
            if result.too_slow:
                stopped[path.name, device] = f"{result.note or TOO_SLOW} on {problem.case.name} {problem.dtype}"
            if problem.case.repeats > 1:
                result = replace(result, computed=result.computed[problem.judged])
            yield Measured(trial, device, path, result)


def _without(trial: Trial, path: Path, note: str) -> Result:
    """No numbers, and why."""
    return Result(np.full(len(trial.problem.input) if path.reduction == "none" else 1, np.nan), note=note)


def error_table(results: Sequence[Measured]) -> pd.DataFrame:
    """The rows of errors.csv, their errors computed for the whole table at once."""
    # Logits near the largest number of a format overflow in scales, as they should.
    with np.errstate(over="ignore"):
        parts = [_row_columns(result) for result in results]
    shared = pd.DataFrame([_shared_columns(result) for result in results])
    table = shared.take(np.repeat(np.arange(len(results)), [len(part["row"]) for part in parts])).reset_index(drop=True)
    for name in parts[0]:
        table[name] = list(chain.from_iterable(part[name] for part in parts))
    table = pd.concat([table.drop(columns="result_class"), error_columns(table)], axis=1)
    table["within_bound"] = within_bound(table)
    table["lossy"] = table["within_bound"] & ~within_bound(table.assign(bound=table["attainable"]))
    table["cause"] = _causes(table, results)
    table["input_error"] = [
        _difference(exact, before) for exact, before in zip(table["exact_kl"], table["before"], strict=True)
    ]
    return table


def _causes(table: pd.DataFrame, results: Sequence[Measured]) -> NDArray[np.object_]:
    """The known defect whose formula gives a wrong or lossy result, of those that mean to be KL."""
    wrong = (symptoms(table) != "").to_numpy(bool) & (table["kind"] == "kl").to_numpy(bool)
    exact = table["reference"].map(float).to_numpy(np.float64)
    names = np.full(len(table), "", dtype=object)
    given: dict[tuple[int, Rounding], Given] = {}
    judged: list[tuple[NDArray[np.int64], Results]] = []
    start = 0
    for measured in results:
        path, result = measured.path, measured.result
        everywhere = np.arange(start, start := start + len(result.computed))
        if path.kind == "kl" and not result.note:
            kept, problem = measured.trial.numbers or (slice(None), measured.trial.problem)
            places, computed = everywhere[kept], result.computed[kept]
            fresh = Given(problem.input, problem.target, problem.case.kinds[::-1], path.rounding)
            same = given.setdefault((id(problem), path.rounding), fresh)
            where = path.name, measured.device, path.reduction
            judged.append((places, Results(*where, same, computed, exact[places], wrong[places], result.dtype)))
    for (places, _), found in zip(judged, name_causes([r for _, r in judged]), strict=True):
        names[places] = found
    return names


def _shared_columns(measured: Measured) -> dict[str, object]:
    """What the rows of one path's results on one problem have in common."""
    problem, path, result = measured.trial.problem, measured.path, measured.result
    rows, classes = problem.input.shape
    return {
        "case": problem.case.name,
        "path": path.name,
        "reduction": path.reduction,
        "dtype": problem.dtype,
        "device": measured.device,
        "kind": path.kind,
        "rows": rows,
        "classes": classes,
        "target_kind": problem.case.target_kind,
        "result_dtype": result.dtype,
        "result_class": "not_computed" if result.note else "",
        "note": result.note,
    }


def _row_columns(measured: Measured) -> dict[str, Sequence[object] | Rows]:
    """What differs from row to row."""
    trial, path = measured.trial, measured.path
    problem, reduction, limits = trial.problem, path.reduction, trial.limits()
    reference, exact, before = trial.references[path.quantity], trial.references["kl"], trial.before
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
        "computed": measured.result.computed,
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


def _text(values: Later[References], reduction: str, classes: int) -> list[str]:
    """References as they are published: one a row, or one in all."""
    rows = values().values
    return [published(row) for row in rows] if reduction == "none" else [reduced(rows, reduction, classes)]
