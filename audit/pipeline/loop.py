"""The audit, end to end: every look is begun, then taken; what a gate objects to is found in their tables."""

from __future__ import annotations

import pathlib
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import pandas as pd

from audit.base.kinds import failing
from audit.base.text import plain
from audit.base.workers import Later, Workers
from audit.explain.reproducer import with_examples
from audit.judge.findings import COMMITTED, find, read_acknowledgements
from audit.judge.references import Engine
from audit.looks import Run, attribution, elements, errors, gradients, growth, invariance, stream, thread
from audit.machine.devices import REMARKS, found
from audit.machine.environment import describe_environment, source_digest
from audit.machine.measure import COMPILING, TORCH, pace
from audit.machine.plan import Names, Own, Plan, beside, plan
from audit.paths import Path
from audit.publish.answer import failed_devices
from audit.publish.figures import Plot, draw
from audit.publish.folder import Spool, check_replaceable
from audit.publish.tables import SCHEMA_VERSION, summarise, typed
from audit.reference.gold import COMMITTED_GOLD, Cache, default_file, read_gold

# In the order in which they are taken: the others may want the table of errors.
LOOKS = (errors.LOOK, stream.LOOK, thread.LOOK, invariance.LOOK, elements.LOOK, attribution.LOOK, growth.LOOK,
         gradients.LOOK)  # fmt: skip


@dataclass(frozen=True)
class Audit:
    """A finished run: the tables by name, the plots as they were begun, and what environment.json holds.

    `stale` names the acknowledgements that met no finding, `damaged` the gold records that were not used,
    `failed_devices` says which were lost or computed nothing.
    """

    tables: dict[str, pd.DataFrame]
    plots: Later[dict[str, Plot]]
    environment: dict[str, Any]
    stale: list[str]
    damaged: list[str]
    failed_devices: list[str]

    @property
    def new_findings(self) -> pd.DataFrame:
        return failing(self.tables["findings"])


def execute(
    plan: Plan,
    workers: Workers | None = None,
    advance: Callable[[str], None] = lambda _: None,
    *,
    acknowledgements: Sequence[pathlib.Path] = (),
    references: pathlib.Path = COMMITTED_GOLD,
    spool: Spool | None = None,
    executor: Executor | None = None,
) -> Audit:
    """Runs a plan, by itself or among `workers`; `advance` is told of each problem as it begins.

    `acknowledgements` are files beside the committed one. `references` is the folder of the gold table; what it does
    not hold, or holds damaged, is computed. Of a file, parts are kept in `spool`, and judged by `executor` where one is
    given. Raises UsageError for acknowledgements that cannot be read.
    """
    acknowledged = read_acknowledgements(COMMITTED, *acknowledgements)
    start = perf_counter()
    TORCH.seconds = COMPILING.seconds = 0.0
    REMARKS.clear()
    gold, workers = read_gold(references), workers or Workers(1)
    engine = Engine(workers.submit, gold.values, Cache(default_file()) if plan.file is not None else None)

    run = Run(plan, engine, workers.submit, advance, spool or Spool(), executor)
    begun = [(look.table, look.begin(run)) for look in LOOKS if plan.kind in look.runs]
    for name, rows in begun:
        advance(name)
        run.tables[name] = typed(rows(), name)

    plots = draw(run.tables, workers.submit)
    advance("findings")
    gradients, invariance = run.tables.get("gradients"), run.tables.get("invariance")
    findings, stale = find(
        run.tables["errors"], acknowledged, gradients, own=plan.own, invariance=invariance, asked=plan.asked
    )
    run.tables["findings"] = typed(with_examples(findings, plan), "findings")
    if "summary" not in run.tables:  # as it is of a file, of whose rows not all may be in errors.csv
        run.tables["summary"] = summarise(run.tables["errors"])
    seconds = {"torch": TORCH.seconds, "compiling": COMPILING.seconds, "total": perf_counter() - start}
    own = [p for p in plan.paths if p.name in plan.own]
    environment = describe_environment(
        plan.devices,
        found(),
        schema_version=SCHEMA_VERSION,
        profile=plan.profile,
        cases=len(plan.cases),
        paths={p.name: p.summary for p in sorted(plan.paths, key=_usual)},
        dtypes=plan.dtypes,
        kernels={p.name: beside(p.reduction) for p in own},
        sources={p.name: source_digest(p.function) for p in own},
        paces=_paces(plan) if plan.kind == "kernel" else {},
        workers=workers.count,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        remarks=sorted(REMARKS),
    )
    # A file's numbers are none of those the acknowledgements are about.
    stale = stale if plan.file is None else []
    failed = failed_devices(run.tables["errors"])
    return Audit(run.tables, plots, environment, stale, gold.damaged, failed)


def _usual(path: Path) -> tuple[bool, bool]:
    """Of paths of one name the one that gives rows of logits comes last."""
    return path.reduction == "none", path.target_kind == "logits"


def _paces(plan: Plan) -> dict[str, float]:
    """How many times as fast as torch's the kernels of the user's own are that take logits."""
    device = plan.devices[-1].name
    logits = [p for p in plan.paths if p.input_kind == p.target_kind == "logits" and p.runs_on(device)]
    torchs = {p.reduction: p for p in logits if p.name == beside(p.reduction)}
    return {p.name: round(pace(p, torchs[p.reduction], device), 3) for p in logits if p.name in plan.own}


def run(
    *,
    profile: str = "standard",
    cases: Names = None,
    paths: Iterable[str | Own] | str | Own | None = None,
    dtypes: Names = None,
    devices: Names = None,
    out: str | pathlib.Path | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Runs the audit and returns the rows of errors.csv; writes a report folder only where `out` is given.

    Each filter is a name or glob, or several; `paths` also takes callables fn(input_logits, target_logits) -> per-row
    KL, named after the function and shown beside the log_softmax path. `workers` is the number of processes,
    this one among them; None begins no other, so that a plain script needs no main guard.

    Raises UsageError, a ValueError, for a name that is not there or an `out` that is not a report.
    """
    chosen = plan(profile, cases, paths, dtypes, devices)
    if out is not None:
        check_replaceable(pathlib.Path(out))
    with Workers(1 if workers is None else workers) as processes:
        audit = execute(chosen, processes)
        if out is not None:
            from audit.publish.report import write_report

            given = {"profile": profile, "cases": cases, "paths": paths, "dtypes": dtypes, "devices": devices}
            words = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
            call = re.sub(r"<function (\S+) at \w+>", r"\1", words)
            audit.environment["command"] = plain(f"audit.run({call}, out={str(out)!r})")
            if remark := write_report(audit.tables, audit.environment, pathlib.Path(out), audit.plots):
                warnings.warn(remark, stacklevel=2)
    return audit.tables["errors"]
