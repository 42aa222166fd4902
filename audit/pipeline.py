"""The audit, end to end: cases to devices, references meanwhile, errors for the whole table at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from audit import devices as devices_module
from audit.cases import PROFILES, Case, Problem, build
from audit.cases import registered as registered_cases
from audit.devices import Device
from audit.environment import describe_environment
from audit.errors import UsageError
from audit.formats import FORMATS
from audit.judge.errors import error_columns
from audit.judge.references import Engine, References, divisor, published, reduced
from audit.judge.scale import magnitude
from audit.measure import Result, describe, measure
from audit.paths import Path, own_path
from audit.paths import registered as registered_paths
from audit.publish.schema import SCHEMAS
from audit.publish.tables import summarise
from audit.selection import choose
from audit.thread import measure_thread

if TYPE_CHECKING:
    from torch import Tensor

    Own = Callable[[Tensor, Tensor], Tensor]
    Names = Iterable[str] | str | None

COMPARISON = "log_softmax"


@dataclass(frozen=True)
class Plan:
    """What one run covers."""

    profile: str
    cases: list[Case]
    paths: list[Path]
    dtypes: list[str]
    devices: list[Device]
    whole: bool

    def problems(self) -> Iterator[tuple[Case, str, list[Path]]]:
        """Each case in each dtype, with the paths that take it."""
        for case in self.cases:
            for dtype in self.dtypes:
                paths = [p for p in self.paths if p.target_kind == case.target_kind and dtype in p.dtypes]
                if paths and dtype in case.dtypes:
                    yield case, dtype, paths


@dataclass(frozen=True)
class Audit:
    """A finished run: the tables by name, and what environment.json holds."""

    tables: dict[str, pd.DataFrame]
    environment: dict[str, object]


@dataclass(frozen=True)
class _Block:
    """What one path gave for one problem on one device."""

    problem: Problem
    device: str
    path: Path
    result: Result


def plan(
    profile: str = "standard",
    cases: Names = None,
    paths: Iterable[str | Own] | str | Own | None = None,
    dtypes: Names = None,
    devices: Names = None,
) -> Plan:
    """Resolves names and globs. Raises UsageError, naming what there is, for one that matches nothing."""
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}: there are {', '.join(PROFILES)}")
    # A case that is asked for by name is run whatever its profile.
    known = registered_cases(profile if cases is None else "full")
    names = choose(cases, [c.name for c in known], "case")
    given = [paths] if isinstance(paths, str) or callable(paths) else paths
    own = [own_path(p) for p in given or () if callable(p)]
    wanted: list[str] | None = None if given is None else [p for p in given if isinstance(p, str)]
    if own:
        wanted = [*(wanted or []), COMPARISON]
    standard = registered_paths()
    chosen = choose(wanted, list(dict.fromkeys(p.name for p in standard)), "path")
    return Plan(
        profile,
        [c for c in known if c.name in names],
        [*own, *(p for p in standard if p.name in chosen and p not in own)],
        choose(dtypes, list(FORMATS), "dtype"),
        devices_module.select(None if devices is None else [devices] if isinstance(devices, str) else list(devices)),
        whole=cases is None and paths is None and dtypes is None,
    )


def execute(plan: Plan, workers: int = 1, advance: Callable[[str], None] = lambda _: None) -> Audit:
    """Runs a plan; `advance` is told of each problem as it begins."""
    seconds: dict[str, float] = {}
    start = perf_counter()
    with Engine(workers) as engine:
        blocks: list[_Block] = []
        waiting: dict[int, Callable[[], References]] = {}
        before: dict[str, Callable[[], References]] = {}
        for case, dtype, paths in plan.problems():
            advance(f"{case.name} {dtype}")
            problem = build(case, dtype)
            if not case.native and case.name not in before:
                before[case.name] = engine.request(build(case, "float64"))
            waiting[id(problem)] = engine.request(problem)
            for device in plan.devices:
                blocks += _run_paths(problem, device.name, paths)
        seconds["paths"] = perf_counter() - start
        thread = [measure_thread(device.name) for device in plan.devices] if plan.whole else []
        seconds["thread"] = perf_counter() - start - seconds["paths"]
        advance("references")
        references = {key: wait() for key, wait in waiting.items()}
        originals = {name: wait() for name, wait in before.items()}
        seconds["references"] = perf_counter() - start - seconds["thread"] - seconds["paths"]
    advance("errors")
    errors = _errors(blocks, references, originals)
    tables = {"errors": errors, "summary": summarise(errors)}
    if thread:
        tables["thread"] = _typed(pd.concat(thread, ignore_index=True), "thread")
    seconds["total"] = perf_counter() - start
    environment = describe_environment(
        plan.devices,
        devices_module.found(),
        profile=plan.profile,
        cases=len(plan.cases),
        paths=sorted({p.name for p in plan.paths}),
        dtypes=plan.dtypes,
        workers=workers,
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )
    return Audit(tables, environment)


def run(
    *,
    profile: str = "standard",
    cases: Names = None,
    paths: Iterable[str | Own] | str | Own | None = None,
    dtypes: Names = None,
    devices: Names = None,
    out: str | FilePath | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Runs the audit and returns the rows of errors.csv; writes a report folder only where `out` is given.

    Each filter is a name or glob, or several; `paths` also takes callables fn(input_logits, target_logits) -> per-row
    KL, named after the function and shown beside the log_softmax path. `workers` is the number of processes that
    compute references; None computes them in this process, so that a plain script needs no main guard.

    Raises UsageError, a ValueError, for a name that is not there or an `out` that is not a report.
    """
    audit = execute(plan(profile, cases, paths, dtypes, devices), workers or 1)
    if out is not None:
        from audit.publish.report import write_report

        write_report(audit.tables, audit.environment, FilePath(out))
    return audit.tables["errors"]


def _run_paths(problem: Problem, device: str, paths: Sequence[Path]) -> Iterator[_Block]:
    """Every path on the problem's tensors, carried to the device once."""
    try:
        carried = problem.input.to(device), problem.target.to(device)
    except (TypeError, RuntimeError) as error:
        for path in paths:
            rows = len(problem.input) if path.reduction == "none" else 1
            yield _Block(problem, device, path, Result(np.full(rows, np.nan), note=describe(error)))
        return
    for path in paths:
        # The CPU's own tensors must survive a path that writes into its inputs.
        input, target = carried if device != "cpu" else (problem.input.clone(), problem.target.clone())
        result = measure(path, input, target)
        if "in place" in result.note:
            carried = problem.input.to(device), problem.target.to(device)
        yield _Block(problem, device, path, result)


def _errors(
    blocks: Sequence[_Block], references: dict[int, References], originals: dict[str, References]
) -> pd.DataFrame:
    """The rows of errors.csv, their errors computed for the whole table at once."""
    scales: dict[int, Any] = {}
    for block in blocks:
        if id(block.problem) not in scales:
            scales[id(block.problem)] = magnitude(*block.problem.numbers, block.problem.case.target_kind)
    parts = [
        _rows(b, references[id(b.problem)], originals.get(b.problem.case.name), scales[id(b.problem)]) for b in blocks
    ]
    table = pd.concat(parts, ignore_index=True)
    table = pd.concat([table.drop(columns="result_class"), error_columns(table)], axis=1)
    table["input_error"] = [
        float("nan") if before is None or "inf" in (exact, before) else _difference(exact, before)
        for exact, before in zip(table["exact_kl"], table["_before"], strict=True)
    ]
    return _typed(table, "errors")


def _difference(a: str, b: str) -> float:
    from decimal import Context, Decimal

    return float(Context(prec=2000).subtract(Decimal(a), Decimal(b)))


def _rows(block: _Block, references: References, before: References | None, scale: Any) -> pd.DataFrame:
    problem, path, result = block.problem, block.path, block.result
    rows, classes = problem.input.shape
    if path.reduction == "none":
        exact = [published(value) for value in references.kl]
        originals = [published(value) for value in before.kl] if before else [None] * rows
        sources, digests = references.sources, problem.row_digests
    else:
        exact = [reduced(references.kl, path.reduction, classes)]
        originals = [reduced(before.kl, path.reduction, classes) if before else None]
        sources = ["exact" if set(references.sources) == {"exact"} else "computed"]
        digests = [problem.case_digest]
        scale = np.array([scale.sum() / divisor(path.reduction, rows, classes)])
    identity = path.kind == "identity"
    return pd.DataFrame(
        {
            "case": problem.case.name,
            "row": pd.array(range(rows) if path.reduction == "none" else [None], dtype="Int64"),
            "path": path.name,
            "reduction": path.reduction,
            "dtype": problem.dtype,
            "device": block.device,
            "kind": path.kind,
            "rows": rows,
            "classes": classes,
            "target_kind": problem.case.target_kind,
            "input_digest": digests,
            "reference": "0" if identity else exact,
            "exact_kl": exact,
            "reference_source": "exact" if identity else sources,
            "computed": result.computed,
            "result_dtype": result.dtype,
            "result_class": "not_computed" if result.note else "",
            "note": result.note,
            "scale": scale,
            "_before": originals,
        }
    )


def _typed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The schema's columns in its order and dtypes; one that nothing filled is empty."""
    return pd.DataFrame(
        {c.name: table[c.name].astype(c.dtype) if c.name in table else pd.Series(pd.NA, table.index, dtype=c.dtype)
         for c in SCHEMAS[name]}
    )
