"""One table of the report, one file: what it measures, and on which kinds of run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from audit.base.workers import Later, Submit, later
from audit.cases import Problem, build
from audit.judge.limits import Limits, begin_limits
from audit.judge.references import Engine, References
from audit.machine.plan import Plan
from audit.paths import Path
from audit.publish.folder import Spool

# Cases that are looked at more closely, by looks that cost more than a path does.
CLOSER = ("random_scale1", "random_scale10", "near_1e-04", "peaked_gap20", "offset_1e+04", "gap_88")


@dataclass(frozen=True)
class Trial:
    """A problem, the paths that take it, and what their results will be compared with.

    `references` are the exact values of each quantity that a path means to compute, and of "kl"; `before` is KL before
    rounding to the dtype.
    """

    problem: Problem
    paths: list[Path]
    limits: Later[Limits]
    references: Mapping[str, Later[References]]
    before: Later[References] | None = None


def begin_trial(
    problem: Problem, paths: list[Path], engine: Engine, submit: Submit, before: Later[References] | None = None
) -> Trial:
    """Its references and limits begun."""
    references = {q: engine.request(problem, q) for q in dict.fromkeys(("kl", *(p.quantity for p in paths)))}
    return Trial(problem, paths, begin_limits(problem, paths, submit), references, before)


@dataclass
class Run:
    """What the looks of a run share: its plan, its trials, and the tables there are so far, by name.

    `stopped` says where a path took too long on a device, which is not tried again.
    """

    plan: Plan
    engine: Engine
    submit: Submit = later
    advance: Callable[[str], None] = lambda _: None
    spool: Spool = field(default_factory=Spool)
    executor: Executor | None = None
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    stopped: dict[tuple[str, str], str] = field(default_factory=dict)

    @cached_property
    def trials(self) -> list[Trial]:
        """All of them, in memory at once: not for a file of the user's own."""
        trials = []
        for case, dtype, paths in self.plan.problems():
            before = None if case.native else self.engine.request(build(case, "float64"))
            trials.append(begin_trial(build(case, dtype), paths, self.engine, self.submit, before))
        return trials

    @property
    def devices(self) -> list[str]:
        return [device.name for device in self.plan.devices]

    def some(self, cases: Iterable[str]) -> list[Trial]:
        """The trials of these cases in every dtype, case by case."""
        known = {(trial.problem.case.name, trial.problem.dtype): trial for trial in self.trials}
        return [known[case, dtype] for case in cases for dtype in self.plan.dtypes if (case, dtype) in known]


@dataclass(frozen=True)
class Look:
    """How a table of the report is made, in the kinds of run that want it.

    `begin` sets going what can be done beside the devices' work; what it returns does the rest, in the order of the
    looks, and gives the table's rows.
    """

    table: str
    runs: tuple[str, ...]
    begin: Callable[[Run], Later[pd.DataFrame]]


def together(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all parts, numbered anew."""
    return pd.concat(parts, ignore_index=True)
