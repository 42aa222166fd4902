"""errors.csv: what every path gave beside the exact values, the errors computed for the whole table at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Context, Decimal
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from audit.base.kinds import divisor
from audit.base.supervision import on_case
from audit.base.text import describe
from audit.base.workers import Later
from audit.cases import Problem, Rows
from audit.causes.matching import Given, Results, name_causes
from audit.judge.errors import error_columns, within_bound
from audit.judge.findings import symptoms
from audit.judge.references import References, published, reduced
from audit.looks import Look, Run, Trial
from audit.machine.devices import examine, lost
from audit.machine.measure import TOO_SLOW, Result, measure
from audit.paths import Path
from audit.paths.rounding import Rounding

_EXACT = Context(prec=2_000)


def begin(run: Run) -> Later[pd.DataFrame]:
    """Every path's results on every problem, judged when all are there."""
    trials = run.trials

    def rows() -> pd.DataFrame:
        results: list[tuple[Trial, Result]] = []
        for trial in trials:
            run.advance(f"{trial.problem.case.name} {trial.problem.dtype}")
            results += [(trial, one) for one in run_paths(run, trial.problem, trial.paths)]
        return error_table(results)

    return rows


LOOK = Look("errors", ("whole", "part", "kernel"), begin)


def run_paths(run: Run, problem: Problem, paths: Sequence[Path]) -> Iterator[Result]:
    """Every path on the problem's tensors, carried to each device once."""
    on_case(problem.case.name)
    for device in run.devices:
        unable = lost(device)
        if not unable:
            try:
                x, y = (t.to(device).repeat(problem.case.repeats, 1) for t in (problem.input, problem.target))
            except Exception as error:
                examine(device)
                unable = lost(device) or describe(error)
        for path in (path for path in paths if path.runs_on(device)):
            stopped = run.stopped.get((path.name, device))
            if unable or stopped:
                result = Result.none(path, device, len(problem.input), unable or f"not run: {stopped}")
            else:
                result = measure(path, x, y)
                if result.too_slow:
                    where = f"{problem.case.name} {problem.dtype}"
                    run.stopped[path.name, device] = f"{result.note or TOO_SLOW} on {where}"
                if problem.case.repeats > 1:
                    result = replace(result, computed=result.computed[problem.judged])
            yield result


def error_table(results: Sequence[tuple[Trial, Result]]) -> pd.DataFrame:
    """The rows of errors.csv, their errors computed for the whole table at once."""
    # Logits near the largest number of a format overflow in scales, as they should.
    with np.errstate(over="ignore"):
        parts = [_columns(trial, result) for trial, result in results]
    table = pd.DataFrame({name: list(chain.from_iterable(part[name] for part in parts)) for name in parts[0]})
    table = pd.concat([table.drop(columns="result_class"), error_columns(table)], axis=1)
    table["within_bound"] = within_bound(table)
    table["lossy"] = table["within_bound"] & ~within_bound(table.assign(bound=table["attainable"]))
    table["cause"] = _causes(table, results)
    table["input_error"] = [
        _difference(exact, before) for exact, before in zip(table["exact_kl"], table["before"], strict=True)
    ]
    return table


def _causes(table: pd.DataFrame, results: Sequence[tuple[Trial, Result]]) -> NDArray[np.object_]:
    """The known defect whose formula gives a wrong or lossy result, of those that mean to be KL."""
    wrong = (symptoms(table) != "").to_numpy(bool) & (table["kind"] == "kl").to_numpy(bool)
    exact = table["reference"].map(float).to_numpy(np.float64)
    names = np.full(len(table), "", dtype=object)
    given: dict[tuple[int, Rounding], Given] = {}
    judged: list[tuple[slice, Results]] = []
    start = 0
    for trial, result in results:
        problem, path = trial.problem, result.path
        place = slice(start, start := start + len(result.computed))
        # A slim problem's results are certain.
        if path.kind == "kl" and not result.note and not problem.input.is_meta:
            fresh = Given(problem.input, problem.target, problem.case.kinds[::-1], path.rounding)
            same = given.setdefault((id(problem), path.rounding), fresh)
            where = path.name, result.device, path.reduction
            judged.append((place, Results(*where, same, result.computed, exact[place], wrong[place], result.dtype)))
    for (place, _), found in zip(judged, name_causes([r for _, r in judged]), strict=True):
        names[place] = found
    return names


def _columns(trial: Trial, result: Result) -> Mapping[str, Sequence[object] | Rows]:
    """What a path's results on one problem are compared with, row by row."""
    problem, path, limits = trial.problem, result.path, trial.limits()
    reference, exact, reduction = trial.references[path.quantity], trial.references["kl"], path.reduction
    rows, classes = problem.input.shape
    sources, each = reference().sources, reduction == "none"
    bound, attainable = limits.bounds[path.promise]
    shared = {
        "case": problem.case.name,
        "path": path.name,
        "reduction": reduction,
        "dtype": problem.dtype,
        "device": result.device,
        "kind": path.kind,
        "rows": rows,
        "classes": classes,
        "target_kind": problem.case.target_kind,
        "result_dtype": result.dtype,
        "result_class": "not_computed" if result.note else "",
        "note": result.note,
    }
    count = len(result.computed)
    return {name: [value] * count for name, value in shared.items()} | {
        "row": range(rows) if each else [pd.NA],
        "input_digest": problem.row_digests if each else [problem.case_digest],
        "reference": _text(reference, reduction, classes),
        "exact_kl": _text(exact, reduction, classes),
        "before": _text(trial.before, reduction, classes) if trial.before else [""] * count,
        "reference_source": sources if each else [next(s for s in ("computed", "gold", "exact") if s in sources)],
        "computed": result.computed,
        "scale": limits.scale if each else [limits.scale.sum() / divisor(reduction, rows, classes)],
        "bound": bound,
        "attainable": attainable,
        "rest": limits.rest if each else [np.nan],
    }


def _difference(exact: str, before: str) -> float:
    """exact - before, rounded once; not a number where either is infinite or there is nothing before."""
    a, b = Decimal(exact), Decimal(before or "nan")
    return float(_EXACT.subtract(a, b)) if a.is_finite() and b.is_finite() else float("nan")


def _text(values: Later[References], reduction: str, classes: int) -> list[str]:
    """References as they are published: one a row, or one in all."""
    rows = values().values
    return [published(row) for row in rows] if reduction == "none" else [reduced(rows, reduction, classes)]
