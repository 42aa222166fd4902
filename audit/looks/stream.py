"""errors.csv of a user's file, a chunk of rows in memory: most are judged by the screen, the others by the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

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
from audit.publish.schema import typed
from audit.publish.spool import Spool
from audit.publish.tables import SUMMARISED, summarise
from audit.reference.exact import Certified
from audit.reference.values import Rows, undefined

# Numbers and rows of a chunk, a few copies of which the paths make; results, and numbers that wait for the engine, of
# which a table is made.
NUMBERS, ROWS = 2**21, 2**12
RESULTS, WAITING = 2**13, 2**22
# Rows that the engine judges whatever the screen says, as a check on it: some of a large file, a small one's all.
SAMPLE, SMALL = 1 / 1000, (64, 2**20)  # of rows; rows, and numbers
AHEAD = 64  # parts that are asked of an executor before the first is there
# Results that errors.csv holds whole; of more, how many of a path's worst.
MOST, WORST = 100_000, 100
KEY = ["path", "dtype", "device"]
UNDEFINED = "holds a NaN, +inf, or -inf throughout: KL is NaN"


@dataclass(frozen=True)
class Chunk:
    """What the paths gave on some rows, what that is compared with begun; the rows' numbers in the file."""

    results: list[Measured]
    rows: NDArray[np.int64]
    count: int  # rows of the file
    stop: int  # the row it reaches to
    waiting: int  # numbers the engine has to look at
    reverse: Rows  # KL(input || target) of each row, in binary64
    same_top: NDArray[np.bool_]


def begin(run: Run) -> Later[pd.DataFrame]:
    def judged() -> pd.DataFrame:
        """With all rows in the spool: summary and statistics of them all, and the rows that errors.csv shows."""
        for part, reached in _here(run) if run.executor is None else _elsewhere(run, run.executor):
            run.spool.put(part, reached)
        run.tables["summary"] = summarise(together(run.spool.parts(SUMMARISED)))
        run.tables["statistics"] = typed(statistics(together(run.spool.parts(COLUMNS))), "statistics")
        return _shown(run.spool, int(run.tables["summary"]["n"].sum()))

    return judged


LOOK = Look("errors", ("file",), begin)


def _here(run: Run) -> Iterator[tuple[pd.DataFrame, int]]:
    """Parts of the table, and the row each reaches to."""
    chunks: list[Chunk] = []
    for some in _chunks(run, run.spool.reached):
        chunks += some
        asked = sum(c.waiting for c in chunks)
        if asked > WAITING or sum(len(c.results) * len(c.rows) for c in chunks) > RESULTS:
            yield _table(chunks), chunks[-1].stop
            chunks = []
    if chunks:
        yield _table(chunks), chunks[-1].stop


def _elsewhere(run: Run, executor: Executor) -> Iterator[tuple[pd.DataFrame, int]]:
    """The same from the executor's workers. Rows that kill theirs are named, and have no results."""
    assert run.plan.file is not None
    step, count = _step(run.plan), len(run.plan.file.mask)
    step *= max(1, RESULTS // (step * len(run.plan.paths) * len(run.plan.dtypes) * len(run.devices)))
    starts = range(run.spool.reached, count, step)
    threads = torch.get_num_threads()
    begun = deque(executor.submit(judge_rows, run.plan, i, i + step, threads) for i in starts[:AHEAD])
    for place, start in enumerate(starts):
        run.advance(f"row {start}")
        try:
            part = begun.popleft().result()
        except Exception as error:  # whatever a scheduler raises for a worker that died
            note = f"rows {start} to {min(start + step, count) - 1}: {describe(error)}"
            REMARKS.add(note)
            part = judge_rows(run.plan, start, start + step, threads, note)
        begun.extend(executor.submit(judge_rows, run.plan, i, i + step, threads) for i in starts[place + AHEAD :][:1])
        if len(part):
            yield part, min(start + step, count)


def judge_rows(plan: Plan, start: int, stop: int, threads: int, failed: str = "") -> pd.DataFrame:
    """Some rows of the table, which depend on nothing else; the paths are not run where they `failed`."""
    torch.set_num_threads(threads)  # which decides in which order a wide row is added
    run = Run(plan, Engine())
    stopped = {(path.name, device): failed for path in plan.paths for device in run.devices if failed}
    chunks = [chunk for some in _chunks(run, start, stop, stopped) for chunk in some]
    return _table(chunks) if chunks else pd.DataFrame()


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


def _table(chunks: Sequence[Chunk]) -> pd.DataFrame:
    """Rows of errors.csv, with what statistics.csv wants besides."""
    table = error_table([result for chunk in chunks for result in chunk.results])
    rows, reverse, same = (
        np.concatenate([getattr(chunk, name) for chunk in chunks for _ in chunk.results])
        for name in ("rows", "reverse", "same_top")
    )
    lost = table["reference"].eq("nan") & table["note"].eq("")
    columns = table.assign(row=rows, note=table["note"].mask(lost, UNDEFINED), rows=chunks[0].count)
    extra = {"exact": table["exact_kl"].map(float), "reverse": reverse, "same_top": same}
    return typed(columns, "errors").assign(**extra)


def _step(plan: Plan) -> int:
    assert plan.file is not None
    return max(1, min(ROWS, NUMBERS // plan.file.input.classes))


def _chunks(
    run: Run, first: int, last: int | None = None, stopped: dict[tuple[str, str], str] | None = None
) -> Iterator[list[Chunk]]:
    """The rows from `first` on, a few at a time, in every dtype."""
    file = run.plan.file
    assert file is not None
    count, step = len(file.mask), _step(run.plan)
    sampled = np.random.default_rng(0).random(count) < SAMPLE
    sampled[file.mask.argmax()] = True
    sampled |= count <= SMALL[0] and count * file.input.classes <= SMALL[1]
    stopped = {} if stopped is None else stopped
    for start in range(first, min(count, last or count), step):
        rows = file.kept(start, start + step)
        if not len(rows):
            continue
        run.advance(f"row {start}")
        chunks = []
        for case, dtype, paths in replace(run.plan, cases=[file.case(slice(start, start + step))]).problems():
            trial = Trial(build(case, dtype), paths, later(_nothing), {}, None)
            results = list(run_paths(trial, run.devices, stopped))
            compared, enclosed, asked = _compared(run, trial, results, sampled[rows])
            same_top = (trial.problem.input.argmax(-1) == trial.problem.target.argmax(-1)).numpy()
            reverse = _reverse(trial.problem, enclosed)
            chunks.append(Chunk(compared, rows, count, min(start + step, count), asked, reverse, same_top))
        yield chunks


def _nothing() -> Limits:
    return Limits(np.empty(0), np.empty(0), {})


def _compared(
    run: Run, trial: Trial, results: Sequence[Measured], sampled: NDArray[np.bool_]
) -> tuple[list[Measured], Enclosure, int]:
    """The results with what they are compared with: by the screen in rows where all are certain, else by the engine.

    And the screen's enclosure, and how many numbers the engine has to look at.
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
        limits=later(_limits, enclosed, paths, problem.dtype, asked, limits),
        references={q: later(_references, enclosed, texts, asked, exact.get(q)) for q in quantities},
    )
    return [replace(one, trial=merged) for one in results], enclosed, problem.input.shape[1] * len(asked)


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
