"""errors.csv of a user's file, a chunk of rows in memory: most are judged by the screen, the others by the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from audit.base.kinds import TOKENS
from audit.base.text import describe
from audit.base.usage import UsageError
from audit.base.workers import Later, later
from audit.cases import Problem, build
from audit.judge.bounds import OVERFLOWS, Exact
from audit.judge.limits import Limits, begin_limits
from audit.judge.references import SCREENED, Engine, References
from audit.judge.screen import DTYPES, Enclosure, certain, enclose, least_bound
from audit.looks import Look, Run, Trial, together
from audit.looks.errors import Measured, error_table, run_paths
from audit.looks.statistics import COLUMNS, statistics
from audit.machine.devices import REMARKS
from audit.machine.plan import Plan
from audit.paths import Path
from audit.publish.folder import Spool
from audit.publish.tables import SUMMARISED, summarise, typed
from audit.reference.exact import Certified
from audit.reference.values import Rows, undefined

# Numbers and rows of a chunk, a few copies of which the paths make; results and numbers of which a table is made.
NUMBERS, ROWS = 2**21, 2**12
RESULTS, WAITING = 2**13, 2**24
# Rows that the engine judges whatever the screen says, as a check on it: some of a large file, a small one's all.
SAMPLE, SMALL = 1 / 1000, (64, 2**20)  # of rows; rows, and numbers
AHEAD = 64  # parts that are asked of an executor before the first is there
# Results that errors.csv holds whole; of more, how many of a path's worst.
MOST, WORST = 100_000, 100
KEY = ["path", "dtype", "device"]
UNDEFINED = "holds a NaN, +inf, or -inf throughout: KL is NaN"


def begin(run: Run) -> Later[pd.DataFrame]:
    def judged() -> pd.DataFrame:
        """With all rows in the spool: summary and statistics of them all, and the rows that errors.csv shows."""
        for part, reached in _parts(run):
            if len(part):
                run.spool.put(part, reached)
        run.tables["summary"] = summarise(together(run.spool.parts(SUMMARISED)))
        if run.plan.given.input_kind != TOKENS:  # of which one a row there is no divergence
            run.tables["statistics"] = typed(statistics(together(run.spool.parts(COLUMNS))), "statistics")
        return _shown(run.spool, int(run.tables["summary"]["n"].sum()))

    return judged


LOOK = Look("errors", ("file",), begin)


def _parts(run: Run) -> Iterator[tuple[pd.DataFrame, int]]:
    """The rows from where the spool ends on, a span at a time, and the row each part reaches to."""
    plan, count, span = run.plan, len(run.plan.given.mask), _span(run.plan)
    starts = range(run.spool.reached, count, span)
    if run.executor is None:
        stopped: dict[tuple[str, str], str] = {}
        for start in starts:
            yield _judged(run, start, start + span, stopped), min(start + span, count)
        return
    # Rows that kill their worker are named, and have no results.
    threads = torch.get_num_threads()
    submit = run.executor.submit
    begun = deque(submit(judge_rows, plan, threads, span, start) for start in starts[:AHEAD])
    for place, start in enumerate(starts):
        run.advance(f"row {start}")
        try:
            part = begun.popleft().result()
        except Exception as error:  # whatever a scheduler raises for a worker that died
            note = f"rows {start} to {min(start + span, count) - 1}: {describe(error)}"
            REMARKS.add(note)
            part = judge_rows(plan, threads, span, start, note)
        begun.extend(submit(judge_rows, plan, threads, span, after) for after in starts[place + AHEAD :][:1])
        yield part, min(start + span, count)


def judge_rows(plan: Plan, threads: int, span: int, start: int, failed: str = "") -> pd.DataFrame:
    """A span of rows, which depends on nothing else; the paths are not run where they `failed`."""
    torch.set_num_threads(threads)  # which decides in which order a wide row is added
    run = Run(plan, Engine())
    stopped = {(path.name, device): failed for path in plan.paths for device in run.devices if failed}
    return _judged(run, start, start + span, stopped)


def _shown(spool: Spool, results: int) -> pd.DataFrame:
    """All results; of more than MOST those that are not clear, the worst of each path, and a random sample."""
    if results <= MOST:
        return together(spool.parts())
    clear = spool.parts([*KEY, "within_bound", "lossy", "result_class", "scaled_error"])
    every = together(clear).reset_index()
    worst = every.groupby(KEY, sort=False)["scaled_error"].nlargest(WORST).index.get_level_values(-1)
    wrong = ~every["within_bound"].fillna(True) | every["lossy"].fillna(False) | (every["result_class"] != "finite")
    shown = wrong.to_numpy(bool) | (np.random.default_rng(1).random(results) < MOST / 10 / results)
    shown[worst] = True
    chosen, start = [], 0
    for part in spool.parts():
        chosen.append(part[shown[start : start + len(part)]])
        start += len(part)
    return together(chosen)


def _span(plan: Plan) -> int:
    """Rows of which a table is made at a time: some chunks, whose numbers may all have to wait for the engine."""
    step, results = _step(plan), len(plan.paths) * len(plan.dtypes) * len(plan.devices)
    return step * max(1, min(RESULTS // (step * results), WAITING // (step * plan.given.input.classes)))


def _step(plan: Plan) -> int:
    """Rows of a chunk."""
    return max(1, min(ROWS, NUMBERS // plan.given.input.classes))


def _judged(run: Run, first: int, last: int, stopped: dict[tuple[str, str], str]) -> pd.DataFrame:
    """Rows of errors.csv, with what statistics.csv wants besides."""
    file = run.plan.given
    count, step = len(file.mask), _step(run.plan)
    sampled = np.random.default_rng(0).random(count) < SAMPLE
    sampled[file.mask.argmax()] = True
    sampled |= count <= SMALL[0] and count * file.input.classes <= SMALL[1]
    results: list[Measured] = []
    extra: list[pd.DataFrame] = []
    for start in range(first, min(count, last), step):
        rows = file.kept(start, min(start + step, last))
        if not len(rows):
            continue
        run.advance(f"row {start}")
        for case, dtype, paths in replace(run.plan, cases=[file.case(slice(start, start + step))]).problems():
            if case.kinds == ("logits", "logits"):  # which anything may be
                input, target = (t.to(getattr(torch, dtype)) for t in file.tensors(start, min(start + step, last)))
                problem = Problem(case, dtype, input, target)
            else:
                problem = build(case, dtype)
            trial = Trial(problem, paths, later(_nothing), {}, None)
            made, enclosed = _compared(run, trial, list(run_paths(trial, run.devices, stopped)), sampled[rows])
            same_top = (trial.problem.input.argmax(-1) == trial.problem.target.argmax(-1)).numpy()
            of_rows = pd.DataFrame({"row": rows, "reverse": _reverse(trial.problem, enclosed), "same_top": same_top})
            results, extra = results + made, extra + [of_rows] * len(made)
    if not results:
        return pd.DataFrame()
    table, added = error_table(results), together(extra)
    lost = table["reference"].eq("nan") & table["note"].eq("")
    columns = table.assign(row=added["row"], rows=count, note=table["note"].mask(lost, UNDEFINED))
    more = {"exact": table["exact_kl"].map(float), "reverse": added["reverse"], "same_top": added["same_top"]}
    return typed(columns, "errors").assign(**more)


def _nothing() -> Limits:
    return Limits(np.empty(0), np.empty(0), {})


def _compared(
    run: Run, trial: Trial, results: Sequence[Measured], sampled: NDArray[np.bool_]
) -> tuple[list[Measured], Enclosure]:
    """The results with what they are compared with: by the screen in rows where all are certain, else by the engine.

    And the screen's enclosure.
    """
    problem, paths = trial.problem, trial.paths
    enclosed = _enclosed(problem, run.devices[0]) if _screens(problem, paths) else Enclosure.none(len(sampled))
    texts = [enclosed.text(row) for row in range(len(sampled))]
    sure = np.array([text != "" for text in texts])
    for one in results:
        if not one.result.note:
            sure &= certain(one.path.promise, enclosed, one.result.computed, one.result.dtype, problem.dtype)
    asked = np.flatnonzero(~sure | sampled)
    part = Problem(problem.case, problem.dtype, problem.input[asked], problem.target[asked])
    quantities = dict.fromkeys(("kl", *(path.quantity for path in paths)))
    exact = {quantity: run.engine.request(part, quantity) for quantity in quantities} if len(asked) else {}
    limits = begin_limits(part, paths, run.submit) if len(asked) else later(_nothing)
    merged = replace(
        trial,
        problem=problem.slim(),
        numbers=(asked, part),
        limits=later(_limits, enclosed, paths, problem.dtype, asked, limits),
        references={q: later(_references, enclosed, texts, asked, exact.get(q)) for q in quantities},
    )
    return [replace(one, trial=merged) for one in results], enclosed


@OVERFLOWS
def _reverse(problem: Problem, enclosed: Enclosure) -> Rows:
    """KL(input || target) of each row, in binary64: from the screen, or as it is defined."""
    rows, (target_kind, input_kind) = np.flatnonzero(np.isnan(enclosed.reverse)), problem.case.kinds
    if len(rows):
        input, target = (t[rows].double().numpy() for t in (problem.input, problem.target))
        turned = Exact.of(target, input, input_kind, target_kind)
        values = np.where(turned.there, turned.p * turned.L, 0.0).sum(axis=1)
        lost = undefined(input, input_kind) | undefined(target, target_kind)
        values = np.where(((turned.p > 0) & ~turned.there).any(axis=1), np.inf, values)
        enclosed.reverse[rows] = np.where(lost, np.nan, values)
    return enclosed.reverse


def _screens(problem: Problem, paths: Sequence[Path]) -> bool:
    """Whether the screen is for these: logits in a format that leaves binary64 digits to spare, and KL row by row."""
    return (
        problem.dtype in DTYPES
        and problem.case.kinds == ("logits", "logits")
        and all(p.quantity == "kl" and p.reduction == "none" and p.rounding.temperature == 1 for p in paths)
    )


def _enclosed(problem: Problem, device: str) -> Enclosure:
    try:
        return enclose(problem.input.to(device), problem.target.to(device))
    except (RuntimeError, TypeError):  # no double, or no memory, there
        return enclose(problem.input, problem.target)


def _limits(
    enclosed: Enclosure, paths: Sequence[Path], dtype: str, asked: NDArray[np.int64], exact: Later[Limits]
) -> Limits:
    """The exact limits of the rows that were asked for, and what is proven to be no more of the others."""
    found, scale = exact(), enclosed.scale
    rest = np.full(len(scale), np.nan)
    bounds = {p.promise: (least := least_bound(p.promise, enclosed, dtype), least.copy()) for p in paths}
    if len(asked):
        scale[asked], rest[asked] = found.scale, found.rest
        for promise, both in bounds.items():
            for all_rows, some in zip(both, found.bounds[promise], strict=True):
                _hold(~(all_rows[asked] > some))
                all_rows[asked] = some
    return Limits(scale, rest, bounds)


def _references(
    enclosed: Enclosure, texts: Sequence[str], asked: NDArray[np.int64], exact: Later[References] | None
) -> References:
    rows, gold = [Certified(text, SCREENED) for text in texts], [False] * len(texts)
    if exact is not None:
        found = exact()
        for place, row in enumerate(asked):
            rows[row], gold[row] = found.rows[place], found.gold[place]
            _hold(np.isnan(enclosed.kl[row]) or enclosed.holds(row, rows[row].value))
    return References(rows, gold)


def _hold(proven: NDArray[np.bool_] | bool) -> None:
    """Whatever the engine is asked for is a check on the screen."""
    if not np.all(proven):
        raise UsageError(
            "the screen and the exact engine differ: this device's exp, expm1 or log is worse than the 2 ulp that "
            "docs/screening.md assumes; --device cpu judges the file without it"
        )
