"""The audit, end to end: cases to devices, references meanwhile, errors for the whole table at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from itertools import chain, groupby, product
from pathlib import Path as FilePath
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from audit import devices as devices_module
from audit.cases import PROFILES, Case, Problem, Rows, build
from audit.cases import registered as registered_cases
from audit.cases.files import Pair
from audit.devices import Device
from audit.environment import describe_environment
from audit.errors import UsageError
from audit.formats import FORMATS
from audit.judge.attribution import measure_attribution
from audit.judge.bounds import Exact, bound, rest, within_bound
from audit.judge.elements import measure_elements
from audit.judge.errors import error_columns
from audit.judge.findings import COMMITTED, NEW, find, read_acknowledgements
from audit.judge.gradients import measure_gradients
from audit.judge.invariance import measure_invariance
from audit.judge.references import Engine, References, divisor, published, reduced
from audit.judge.scale import magnitude
from audit.measure import COMPILING, TOO_SLOW, TORCH, Result, describe, measure
from audit.paths import Path, own_path
from audit.paths import registered as registered_paths
from audit.paths.rounding import Rounding
from audit.publish.schema import SCHEMA_VERSION, typed
from audit.publish.tables import summarise
from audit.reference.cache import Cache, default_file
from audit.reference.gold import read_gold
from audit.reproducer import Shrinker
from audit.selection import choose
from audit.thread import measure_thread

if TYPE_CHECKING:
    from torch import Tensor

    Own = Callable[[Tensor, Tensor], Tensor]
    Names = Iterable[str] | str | None

Wait = Callable[[], References]
Problems = Mapping[tuple[str, str], Problem]
COMPARISON, GIVEN = "log_softmax", "kl_div"  # beside a path of the user's own, for logits and for other kinds
CLOSER = ("random_scale1", "random_scale10", "near_1e-04", "peaked_gap20", "offset_1e+04", "gap_88")
WIDE = "zipf_n128256"  # of more than 32,768 classes: torch shares those among threads
NARROW = 1_000  # classes that can be had exactly one by one
MAIN = ("softmax_log", "log_softmax", "log_target", "kl_div_from_logits")
# Of a user's file, in memory at a time: 4 MB in each of the some fifty binary64 arrays of the judgement.
ELEMENTS_AT_ONCE = 2**19
COMMITTED_GOLD = FilePath(__file__).parents[1] / "references"
_EXACT = Context(prec=2_000)


@dataclass(frozen=True)
class Plan:
    """What one run covers. Where there are paths of the user's `own`, they alone are judged."""

    profile: str
    cases: list[Case]
    paths: list[Path]
    dtypes: list[str]
    devices: list[Device]
    whole: bool = False
    own: frozenset[str] = frozenset()
    file: Pair | None = None

    def problems(self) -> Iterator[tuple[Case, str, list[Path]]]:
        """Each case in each dtype, with the paths that take it."""
        for case in self.cases:
            for dtype in self.dtypes:
                paths = [p for p in self.paths if p.takes(case.name, dtype, *case.kinds)]
                if paths and dtype in case.dtypes:
                    yield case, dtype, paths


@dataclass(frozen=True)
class Audit:
    """A finished run: the tables by name, and what environment.json holds.

    `seconds` says where its time went. `stale` names the acknowledgements that met no finding, `damaged` the gold
    records that were not used.
    """

    tables: dict[str, pd.DataFrame]
    environment: dict[str, object]
    seconds: dict[str, float]
    stale: list[str]
    damaged: list[str]

    @property
    def new_findings(self) -> pd.DataFrame:
        findings = self.tables["findings"]
        return findings[findings["status"] == NEW]


@dataclass(frozen=True)
class _Block:
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
    chosen = _plan(profile, [c for c in known if c.name in names], paths, dtypes, devices)
    return replace(chosen, whole=cases is None and paths is None and dtypes is None)


def plan_file(
    file: FilePath,
    input_kind: str = "logits",
    target_kind: str = "logits",
    paths: Iterable[str | Own] | None = None,
    dtypes: Names = None,
    devices: Names = None,
) -> Plan:
    """A plan for a file's `input` and `target`: by default the main paths, per row, in the file's dtype.

    Kinds other than logits are taken as they are, never normalised. A callable that declares no kinds is given what
    the file holds. Raises UsageError for a file that cannot be read as two tensors of shape (rows, classes), for
    kinds that no path asked for takes, and as `plan` does.
    """
    pair = Pair.open(file, input_kind, target_kind)
    return _plan("file", [pair.case(slice(0, 1))], paths or (*MAIN, GIVEN), dtypes or pair.input.dtype, devices, pair)


def _plan(
    profile: str,
    cases: list[Case],
    paths: Iterable[str | Own] | str | Own | None,
    dtypes: Names,
    devices: Names,
    file: Pair | None = None,
) -> Plan:
    given = None if paths is None else [paths] if isinstance(paths, str) or callable(paths) else list(paths)
    known = registered_paths()
    own = [own_path(p) for p in given or () if callable(p)]
    if file is not None:
        own = [p if p in known else replace(p, input_kind=file.input_kind, target_kind=file.target_kind) for p in own]
    wanted: list[str] | None = None if given is None else [p for p in given if isinstance(p, str)]
    if own:
        wanted = [*(wanted or []), COMPARISON if file is None or file.input_kind == "logits" else GIVEN]
    standard = [p for p in known if not p.absent]
    for missing in (p for p in known if p.absent and p.name in (wanted or ())):
        raise UsageError(f"path {missing.name!r} cannot run here: {missing.absent}")
    names = choose(wanted, list(dict.fromkeys(p.name for p in standard)), "path")
    formats = choose(dtypes, list(FORMATS), "dtype")
    asked = [*own, *(p for p in standard if p.name in names and p not in own)]
    taking = [
        p
        for p in asked
        if any(p.takes(case.name, dtype, *case.kinds) for case in cases for dtype in formats if dtype in case.dtypes)
        and (file is None or p.reduction == "none")
    ]
    if not taking:
        what = "case" if file is None else f"{file.input_kind} against {file.target_kind}, a value a row,"
        raise UsageError(
            f"none of {', '.join(dict.fromkeys(p.name for p in asked))} takes any such {what} in {', '.join(formats)}"
        )
    found = devices_module.select(None if devices is None else [devices] if isinstance(devices, str) else list(devices))
    return Plan(profile, cases, taking, formats, found, False, frozenset(p.name for p in own), file)


def execute(
    plan: Plan,
    workers: int = 1,
    advance: Callable[[str], None] = lambda _: None,
    acknowledgements: Sequence[FilePath] = (),
    references: FilePath = COMMITTED_GOLD,
) -> Audit:
    """Runs a plan; `advance` is told of each problem as it begins.

    `acknowledgements` are files beside the committed one. `references` is the folder of the gold table; what it does
    not hold, or holds damaged, is computed. Raises UsageError for acknowledgements that cannot be read.
    """
    acknowledged = read_acknowledgements(COMMITTED, *acknowledgements)
    seconds: dict[str, float] = {}
    start, spent = perf_counter(), (TORCH.seconds, COMPILING.seconds)
    gold = read_gold(references)
    with Engine(workers, gold.values, Cache(default_file()) if plan.file is not None else None) as engine:
        if plan.file is None:
            blocks = _blocks(plan, engine, advance, {})
            seconds["paths"] = perf_counter() - start
            thread = [measure_thread(device.name) for device in plan.devices] if plan.whole else []
            seconds["thread"] = perf_counter() - start - seconds["paths"]
            advance("references")
            for block in blocks:
                block.reference(), block.exact()
            seconds["references"] = perf_counter() - start - seconds["thread"] - seconds["paths"]
            advance("errors")
            errors = _errors(blocks)
            problems = {(b.problem.case.name, b.problem.dtype): b.problem for b in blocks}
        else:
            errors, problems, thread = _streamed(plan, engine, advance), {}, []
    advance("findings")
    tables = {"errors": errors, "summary": summarise(errors)}
    if plan.whole or plan.own:
        tables["gradients"] = _gradients(plan, problems, errors)
    findings, stale = find(errors, acknowledged, tables.get("gradients"), plan.own)
    tables["findings"] = typed(_with_reproducers(findings, plan, problems), "findings")
    if plan.whole:
        looks = _closer_looks(plan, problems)
        key = ["case", "row", "path", "dtype", "device"]
        known = errors[errors["target_kind"] == "logits"][[*key, "input_error"]]
        looks["attribution"] = looks["attribution"].astype({"row": "Int64"}).merge(known, on=key, how="left")
        tables |= {name: typed(table, name) for name, table in looks.items()}
    if thread:
        tables["thread"] = typed(pd.concat(thread, ignore_index=True), "thread")
    seconds |= {"torch": TORCH.seconds - spent[0], "compiling": COMPILING.seconds - spent[1]}
    seconds["total"] = perf_counter() - start
    environment = describe_environment(
        plan.devices,
        devices_module.found(),
        schema_version=SCHEMA_VERSION,
        profile=plan.profile,
        cases=len(plan.cases),
        paths=sorted({p.name for p in plan.paths}),
        dtypes=plan.dtypes,
        workers=workers,
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )
    # A file's numbers are none of those the acknowledgements are about.
    return Audit(tables, environment, seconds, stale if plan.file is None else [], gold.damaged)


def _blocks(
    plan: Plan, engine: Engine, advance: Callable[[str], None], stopped: dict[tuple[str, str], str]
) -> list[_Block]:
    """Every path's results on every problem, and the references they wait for. `stopped`: paths that took too long."""
    blocks: list[_Block] = []
    for case, dtype, paths in plan.problems():
        advance(f"{case.name} {dtype}")
        problem = build(case, dtype)
        exact = engine.request(problem)
        before = None if case.native else engine.request(build(case, "float64"))
        wanted = {q: engine.request(problem, q) for q in {p.quantity for p in paths}}
        for device in plan.devices:
            for path, result in _run_paths(problem, device.name, [p for p in paths if p.runs_on(device.name)], stopped):
                blocks.append(_Block(problem, device.name, path, result, wanted[path.quantity], exact, before))
    return blocks


def _gradients(plan: Plan, problems: Problems, errors: pd.DataFrame) -> pd.DataFrame:
    """Of every path, or of the user's own, that computed all it was given, on a few cases."""
    closer, parts = _some(plan, problems, CLOSER), []
    failed = errors.loc[errors["result_class"] == "not_computed", ["path", "dtype", "device"]].drop_duplicates()
    lacking = set(failed.itertuples(index=False, name=None))
    for device, dtype in product((d.name for d in plan.devices), plan.dtypes):
        paths = [p for p in plan.paths if not p.compiles and p.runs_on(device) and (not plan.own or p.name in plan.own)]
        able = [p for p in paths if (p.name, dtype, device) not in lacking]
        parts.append(measure_gradients([p for p in closer if p.dtype == dtype], able, device))
    return typed(pd.concat(parts, ignore_index=True), "gradients")


def _closer_looks(plan: Plan, problems: Problems) -> dict[str, pd.DataFrame]:
    """Elements of all but wide cases; invariance and attribution on a few, which cost more a row."""
    kl = [p for p in plan.paths if p.kind == "kl" and p.reduction == "none" and p.target_kind == "logits"]
    # Every check of a compiled path would be another compilation: its eager form is compared with it instead.
    paths = [p for p in kl if not p.compiles]
    compiled = {"quick": (), "standard": (COMPARISON,), "full": MAIN}[plan.profile]
    closer, wide, thread = (_some(plan, problems, names) for names in (CLOSER, (WIDE,), ("identical_n1000",)))
    narrow = [p for p in problems.values() if p.input.shape[1] <= NARROW and p.case.input_kind == "logits"]
    looks: dict[str, list[pd.DataFrame]] = {"elements": [], "invariance": [], "attribution": []}
    for device in (d.name for d in plan.devices):
        looks["elements"].append(measure_elements(narrow, device))
        looks["attribution"] += [measure_attribution(closer, device), measure_attribution(thread, device, 8)]
        looks["invariance"].append(measure_invariance([*closer, *wide], paths, device, compiled))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in looks.items()}


def _some(plan: Plan, problems: Problems, names: Iterable[str]) -> list[Problem]:
    return [problems[name, dtype] for name in names for dtype in plan.dtypes if (name, dtype) in problems]


def _streamed(plan: Plan, engine: Engine, advance: Callable[[str], None]) -> pd.DataFrame:
    """The rows of errors.csv of a user's file, a block of its rows in memory at a time."""
    assert plan.file is not None
    rows, classes = plan.file.input.shape
    step = max(1, ELEMENTS_AT_ONCE // classes)
    parts: list[pd.DataFrame] = []
    stopped: dict[tuple[str, str], str] = {}
    for start in range(0, rows, step):
        cases = [plan.file.case(slice(start, start + step))]
        part = _errors(_blocks(replace(plan, cases=cases), engine, advance, stopped))
        parts.append(part.assign(row=part["row"] + start, rows=rows))
    return typed(pd.concat(parts, ignore_index=True), "errors")


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

        given = {"profile": profile, "cases": cases, "paths": paths, "dtypes": dtypes, "devices": devices}
        words = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        call = re.sub(r"<function (\S+) at \w+>", r"\1", words)
        audit.environment["command"] = f"audit.run({call}, out={str(out)!r})"
        write_report(audit.tables, audit.environment, FilePath(out))
    return audit.tables["errors"]


def _run_paths(
    problem: Problem, device: str, paths: Sequence[Path], stopped: dict[tuple[str, str], str]
) -> Iterator[tuple[Path, Result]]:
    """Every path on the problem's tensors, carried to the device once. One that was `stopped` is not run again."""
    try:
        originals = problem.input.to(device), problem.target.to(device)
    except (TypeError, RuntimeError) as error:
        for path in paths:
            rows = len(problem.input) if path.reduction == "none" else 1
            yield path, Result(np.full(rows, np.nan), note=describe(error))
        return
    # A copy even on the CPU: the problem's own tensors must survive a path that writes into its inputs.
    x, y = (t.clone() for t in originals)
    for path in paths:
        if where := stopped.get((path.name, device)):
            rows = len(problem.input) if path.reduction == "none" else 1
            yield path, Result(np.full(rows, np.nan), note=f"not run: {where}")
            continue
        result = measure(path, x, y, originals)
        if result.note:
            x, y = (t.clone() for t in originals)
        if result.too_slow:
            stopped[path.name, device] = f"{result.note or TOO_SLOW} on {problem.case.name} {problem.dtype}"
        yield path, result


def _errors(blocks: Sequence[_Block]) -> pd.DataFrame:
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
    return typed(table, "errors")


def _block_columns(block: _Block) -> dict[str, object]:
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


def _row_columns(blocks: Sequence[_Block]) -> Iterator[dict[str, Sequence[object] | Rows]]:
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


def _difference(exact: str, before: str) -> float:
    """exact - before, rounded once; not a number where either is infinite or there is nothing before."""
    a, b = Decimal(exact), Decimal(before or "nan")
    return float(_EXACT.subtract(a, b)) if a.is_finite() and b.is_finite() else float("nan")


def _text(values: Wait, reduction: str, classes: int) -> list[str]:
    """References as they are published: one a row, or one in all."""
    rows = values().values
    return [published(row) for row in rows] if reduction == "none" else [reduced(rows, reduction, classes)]
