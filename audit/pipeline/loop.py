"""The audit, end to end: cases to devices, references meanwhile, errors for the whole table at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path as FilePath
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from audit.base.workers import Later, Submit, Workers
from audit.cases import Problem, build
from audit.explain.reproducer import Shrinker
from audit.judge.findings import COMMITTED, NEW, find, read_acknowledgements
from audit.judge.gradients import Truth
from audit.judge.limits import Limits, begin_limits
from audit.judge.references import Engine
from audit.looks.attribution import measure_attribution
from audit.looks.elements import measure_elements
from audit.looks.errors import Begun, Block, error_table
from audit.looks.gradients import begin_gradients, measure_gradients
from audit.looks.invariance import measure_invariance
from audit.looks.thread import measure_thread
from audit.machine import devices as devices_module
from audit.machine.devices import describe, examine, lost
from audit.machine.environment import describe_environment
from audit.machine.measure import COMPILING, TOO_SLOW, TORCH, Result, measure
from audit.paths import Path
from audit.pipeline.plan import COMPARISON, MAIN, Plan, plan
from audit.publish.devices import failures
from audit.publish.figures import Plot, draw
from audit.publish.schema import SCHEMA_VERSION, typed
from audit.publish.tables import summarise
from audit.reference.cache import Cache, default_file
from audit.reference.gold import read_gold

if TYPE_CHECKING:
    from audit.pipeline.plan import Names, Own

Problems = Mapping[tuple[str, str], Problem]
CLOSER = ("random_scale1", "random_scale10", "near_1e-04", "peaked_gap20", "offset_1e+04", "gap_88")
WIDE = "zipf_n128256"  # of more than 32,768 classes: torch shares those among threads
NARROW = 1_000  # classes that can be had exactly one by one
# Of a user's file, in memory at a time: 2 MB in each of the some fifty binary64 arrays of the judgement.
ELEMENTS_AT_ONCE = 2**18
COMMITTED_GOLD = FilePath(__file__).parents[2] / "references"


@dataclass(frozen=True)
class Audit:
    """A finished run: the tables by name, the plots as they were begun, and what environment.json holds.

    `seconds` says how many it took in all, torch alone, and compiling. `stale` names the acknowledgements that met no
    finding, `damaged` the gold records that were not used, `failures` the devices that were lost or computed nothing.
    """

    tables: dict[str, pd.DataFrame]
    plots: Later[dict[str, Plot]]
    environment: dict[str, object]
    seconds: dict[str, float]
    stale: list[str]
    damaged: list[str]
    failures: list[str]

    @property
    def new_findings(self) -> pd.DataFrame:
        findings = self.tables["findings"]
        return findings[findings["status"] == NEW]


def execute(
    plan: Plan,
    workers: Workers | None = None,
    advance: Callable[[str], None] = lambda _: None,
    acknowledgements: Sequence[FilePath] = (),
    references: FilePath = COMMITTED_GOLD,
) -> Audit:
    """Runs a plan, by itself or among `workers`; `advance` is told of each problem as it begins.

    `acknowledgements` are files beside the committed one. `references` is the folder of the gold table; what it does
    not hold, or holds damaged, is computed. Raises UsageError for acknowledgements that cannot be read.
    """
    acknowledged = read_acknowledgements(COMMITTED, *acknowledgements)
    start, spent = perf_counter(), (TORCH.seconds, COMPILING.seconds)
    devices_module.REMARKS.clear()
    gold, workers = read_gold(references), workers or Workers(1)
    submit = workers.submit
    engine = Engine(submit, gold.values, Cache(default_file()) if plan.file is not None else None)
    tables: dict[str, pd.DataFrame] = {}
    problems: dict[tuple[str, str], Problem] = {}
    truths: list[tuple[Problem, Truth]] = []
    if plan.file is not None:
        errors = _streamed(plan, engine, submit, advance)
    else:
        begun = _begin(plan, engine, submit)
        problems = {(b.problem.case.name, b.problem.dtype): b.problem for b in begun}
        blocks = _run_all(plan, begun, advance, {})
        if plan.whole or plan.own:
            truths = begin_gradients(_some(plan, problems, CLOSER), submit)
        if plan.whole:
            elements, attribution = _closer_looks(plan, problems, submit)
            limits = {(b.problem.case.name, b.problem.dtype): b.limits for b in begun}
            tables["thread"] = typed(_table(measure_thread(d.name) for d in plan.devices), "thread")
            tables["invariance"] = typed(_invariance(plan, problems, limits), "invariance")
        advance("errors")
        errors = typed(error_table(blocks), "errors")
        if plan.whole:
            tables["elements"] = typed(_table(part() for part in elements), "elements")
            tables["attribution"] = _attribution(_table(part() for part in attribution), errors)
    plots = draw({"errors": errors} | tables, submit)
    if plan.whole or plan.own:
        tables["gradients"] = _gradients(plan, truths, errors)
    advance("findings")
    findings, stale = find(errors, acknowledged, tables.get("gradients"), plan.own)
    tables["findings"] = typed(_with_reproducers(findings, plan, problems), "findings")
    seconds = {"torch": TORCH.seconds - spent[0], "compiling": COMPILING.seconds - spent[1]}
    seconds["total"] = perf_counter() - start
    environment = describe_environment(
        plan.devices,
        devices_module.found(),
        schema_version=SCHEMA_VERSION,
        profile=plan.profile,
        cases=len(plan.cases),
        paths=sorted({p.name for p in plan.paths}),
        dtypes=plan.dtypes,
        workers=workers.count,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        remarks=sorted(devices_module.REMARKS),
    )
    # A file's numbers are none of those the acknowledgements are about.
    tables = {"errors": errors, "summary": summarise(errors)} | tables
    stale = stale if plan.file is None else []
    return Audit(tables, plots, environment, seconds, stale, gold.damaged, failures(errors))


def _table(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


def _begin(plan: Plan, engine: Engine, submit: Submit) -> list[Begun]:
    """Every problem, with references and limits begun before any path runs.

    Wide ones come last: while torch computes those on every core, nothing else need be.
    """
    begun = []
    for case, dtype, paths in plan.problems():
        problem = build(case, dtype)
        references = {q: engine.request(problem, q) for q in dict.fromkeys(("kl", *(p.quantity for p in paths)))}
        before = None if case.native else engine.request(build(case, "float64"))
        begun.append(Begun(problem, paths, begin_limits(problem, paths, submit), references, before))
    return begun


def _run_all(
    plan: Plan, begun: Sequence[Begun], advance: Callable[[str], None], stopped: dict[tuple[str, str], str]
) -> list[Block]:
    """Every path's results on every problem. `stopped`: paths that took too long."""
    blocks: list[Block] = []
    for this in begun:
        advance(f"{this.problem.case.name} {this.problem.dtype}")
        for device in (d.name for d in plan.devices):
            for path, result in _run_paths(this.problem, device, [p for p in this.paths if p.runs_on(device)], stopped):
                blocks.append(Block(this, device, path, result))
    return blocks


def _gradients(plan: Plan, begun: Sequence[tuple[Problem, Truth]], errors: pd.DataFrame) -> pd.DataFrame:
    """Of every path, or of the user's own, that computed all it was given, on a few cases."""
    failed = errors.loc[errors["result_class"] == "not_computed", ["path", "dtype", "device"]].drop_duplicates()
    lacking = set(failed.itertuples(index=False, name=None))
    parts = []
    for device, dtype in product((d.name for d in plan.devices), plan.dtypes):
        paths = [p for p in plan.paths if not p.compiles and p.runs_on(device) and (not plan.own or p.name in plan.own)]
        able = [p for p in paths if (p.name, dtype, device) not in lacking]
        parts.append(measure_gradients([(p, truth) for p, truth in begun if p.dtype == dtype], able, device))
    return typed(_table(parts), "gradients")


def _closer_looks(plan: Plan, problems: Problems, submit: Submit) -> tuple[list[Later[pd.DataFrame]], ...]:
    """Begins elements.csv, of all but wide cases, and attribution.csv, of a few, which cost more a row."""
    closer, thread = (_some(plan, problems, names) for names in (CLOSER, ("identical_n1000",)))
    narrow = [p for p in problems.values() if p.input.shape[1] <= NARROW and p.case.input_kind == "logits"]
    elements, attribution = [], []
    for device in (d.name for d in plan.devices):
        elements.append(measure_elements(narrow, device, submit))
        attribution.append(measure_attribution(closer, device, submit=submit))
        attribution.append(measure_attribution(thread, device, 8, submit))
    return elements, attribution


def _attribution(drifts: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """Each row with what rounding the inputs alone has done, from the errors of the same row."""
    key = ["case", "row", "path", "dtype", "device"]
    known = errors[errors["target_kind"] == "logits"][[*key, "input_error"]]
    return typed(drifts.astype({"row": "Int64"}).merge(known, on=key, how="left"), "attribution")


def _invariance(plan: Plan, problems: Problems, limits: Mapping[tuple[str, str], Later[Limits]]) -> pd.DataFrame:
    kl = [p for p in plan.paths if p.kind == "kl" and p.reduction == "none" and p.target_kind == "logits"]
    # Every check of a compiled path would be another compilation: its eager form is compared with it instead.
    paths = [p for p in kl if not p.compiles]
    compiled = {"quick": (), "standard": (COMPARISON,), "full": MAIN}[plan.profile]
    chosen = _some(plan, problems, (*CLOSER, WIDE))
    return _table(measure_invariance(chosen, paths, device.name, compiled, limits) for device in plan.devices)


def _some(plan: Plan, problems: Problems, names: Iterable[str]) -> list[Problem]:
    return [problems[name, dtype] for name in names for dtype in plan.dtypes if (name, dtype) in problems]


def _streamed(plan: Plan, engine: Engine, submit: Submit, advance: Callable[[str], None]) -> pd.DataFrame:
    """The rows of errors.csv of a user's file, of which two blocks are in memory: one is judged, the next begun."""
    assert plan.file is not None
    file, (rows, classes) = plan.file, plan.file.input.shape
    step = max(1, ELEMENTS_AT_ONCE // classes)
    blocks = (
        _begin(replace(plan, cases=[file.case(slice(start, start + step))]), engine, submit)
        for start in range(0, rows, step)
    )
    parts: list[pd.DataFrame] = []
    stopped: dict[tuple[str, str], str] = {}
    following = next(blocks)
    for start in range(0, rows, step):
        begun, following = following, next(blocks, [])
        part = typed(error_table(_run_all(plan, begun, advance, stopped)), "errors")
        parts.append(part.assign(row=part["row"] + start, rows=rows))
    return typed(_table(parts), "errors")


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
    KL, named after the function and shown beside the log_softmax path. `workers` is the number of processes,
    this one among them; None begins no other, so that a plain script needs no main guard.

    Raises UsageError, a ValueError, for a name that is not there or an `out` that is not a report.
    """
    with Workers(workers or 1) as processes:
        audit = execute(plan(profile, cases, paths, dtypes, devices), processes)
        if out is not None:
            from audit.publish.report import write_report

            given = {"profile": profile, "cases": cases, "paths": paths, "dtypes": dtypes, "devices": devices}
            words = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
            call = re.sub(r"<function (\S+) at \w+>", r"\1", words)
            audit.environment["command"] = f"audit.run({call}, out={str(out)!r})"
            write_report(audit.tables, audit.environment, FilePath(out), audit.plots)
    return audit.tables["errors"]


def _run_paths(
    problem: Problem, device: str, paths: Sequence[Path], stopped: dict[tuple[str, str], str]
) -> Iterator[tuple[Path, Result]]:
    """Every path on the problem's tensors, carried to the device once. One that was `stopped` is not run again."""
    carried = False
    for path in paths:
        where = stopped.get((path.name, device))
        reason = lost(device) or (f"not run: {where}" if where else "")
        if not (carried or reason):
            try:
                originals = problem.input.to(device), problem.target.to(device)
                # A copy even on the CPU: the problem's own tensors must survive a path that writes into its inputs.
                x, y = (t.clone() for t in originals)
                carried = True
            except Exception as error:
                reason = describe(error)
                examine(device)
        if reason:
            rows = len(problem.input) if path.reduction == "none" else 1
            yield path, Result(np.full(rows, np.nan), note=reason)
            continue
        result = measure(path, x, y, originals)
        carried = not result.note
        if result.too_slow:
            stopped[path.name, device] = f"{result.note or TOO_SLOW} on {problem.case.name} {problem.dtype}"
        yield path, result


def _with_reproducers(findings: pd.DataFrame, plan: Plan, problems: Problems) -> pd.DataFrame:
    """The findings with the smallest input that shows each."""
    paths = {(p.name, p.reduction, p.target_kind): p for p in plan.paths}
    shrinker = Shrinker()
    found: list[dict[str, object]] = []
    for finding in findings.to_dict("records"):
        name, dtype, row = str(finding["case"]), str(finding["dtype"]), finding["row"]
        rows = slice(None) if row is pd.NA else slice(int(row), int(row) + 1)
        if plan.file is not None:
            problem = build(plan.file.case(rows), dtype)
            input, target = problem.input, problem.target
        else:
            problem = problems[name, dtype]
            input, target = problem.input[rows], problem.target[rows]
        path = paths[str(finding["path"]), str(finding["reduction"]), problem.case.target_kind]
        # The script that reproduces a finding normalises logits; what is too slow is too slow to be tried again.
        if "log_probs" in problem.case.kinds or path.input_kind != "logits" or TOO_SLOW in str(finding["note"]):
            found.append({})
            continue
        # A reduced result does not say which row it is of.
        tries = (
            shrinker.reproduce(path, input[[r]], target[[r]], str(finding["device"]), str(finding["symptom"]))
            for r in range(len(input))
        )
        found.append(next((vars(r) for r in tries if r is not None), {}))
    return findings.join(pd.DataFrame(found, index=findings.index))
