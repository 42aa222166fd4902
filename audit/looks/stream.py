"""errors.csv of a user's file, a chunk of rows in memory: most are judged by the screen, the others by the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.base.kinds import TOKENS
from audit.base.text import describe
from audit.base.usage import UsageError
from audit.base.workers import Later, later
from audit.cases import Problem, build
from audit.judge.bounds import OVERFLOWS, Exact
from audit.judge.limits import Limits
from audit.judge.references import SCREENED, Engine, References
from audit.judge.screen import DTYPES, Enclosure, certain, enclose, least_bound
from audit.looks import Look, Run, Trial, begin_trial, together
from audit.looks.errors import error_table, run_paths
from audit.machine.devices import REMARKS
from audit.machine.measure import Result
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
# What statistics are made of, and of which percentiles.
COLUMNS = [*KEY, "computed", "exact", "reverse", "same_top", "abs_error"]
PERCENTILES = {"p1": 1, "p5": 5, "p10": 10, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "p99_9": 99.9}
UNDEFINED = "holds a NaN, +inf, or -inf throughout: KL is NaN"


def _table(run: Run) -> pd.DataFrame:
    """With all rows in the spool: summary and statistics of them all, and the rows that errors.csv shows."""
    for part, reached in _parts(run):
        if len(part):
            run.spool.put(part, reached)
    run.tables["summary"] = summarise(together(run.spool.parts(SUMMARISED)))
    told = statistics(together(run.spool.parts(COLUMNS)), run.plan.given.input.kind == TOKENS)
    run.tables["statistics"] = typed(told, "statistics")
    return _shown(run.spool, int(run.tables["summary"]["n"].sum()))


LOOK = Look("errors", ("file",), lambda run: partial(_table, run))


def _parts(run: Run) -> Iterator[tuple[pd.DataFrame, int]]:
    """The rows from where the spool ends on, a span at a time, and the row each part reaches to."""
    plan, count, (_, span) = run.plan, len(run.plan.given.mask), _sizes(run.plan)
    starts = range(run.spool.reached, count, span)
    if run.executor is None:
        for start in starts:
            yield _judged(run, start, start + span), min(start + span, count)
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
    if failed:
        run.stopped = {(path.name, device): failed for path in plan.paths for device in run.devices}
    return _judged(run, start, start + span)


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


def _sizes(plan: Plan) -> tuple[int, int]:
    """Rows of a chunk, and of a table, which is some chunks: all of their numbers may have to wait for the engine."""
    classes, results = plan.given.input.classes, len(plan.paths) * len(plan.dtypes) * len(plan.devices)
    step = max(1, min(ROWS, NUMBERS // classes))
    return step, step * max(1, min(RESULTS // (step * results), WAITING // (step * classes)))


def _problems(run: Run, first: int, last: int) -> Iterator[tuple[NDArray[np.int64], Problem, Problem, list[Path]]]:
    """A chunk of rows in each dtype: which the mask keeps, as the file has them and as they are judged, and by what."""
    file, (step, _) = run.plan.given, _sizes(run.plan)
    for start in range(first, min(len(file.mask), last), step):
        kept = file.kept(start, min(start + step, last))
        if not len(kept):
            continue
        run.advance(f"row {start}")
        case = file.case(slice(start, start + step))
        if case.kinds == ("logits", "logits"):  # which anything may be
            given = Problem(case, file.dtype, *file.tensors(start, min(start + step, last)))
        else:
            given = build(case, file.dtype)
        for _, dtype, paths in replace(run.plan, cases=[case]).problems():
            input, target = (t.to(getattr(torch, dtype)) for t in (given.input, given.target))
            yield kept, given, Problem(case, dtype, input, target), paths


def _judged(run: Run, first: int, last: int) -> pd.DataFrame:
    """Rows of errors.csv, with what statistics.csv wants besides."""
    file = run.plan.given
    count = len(file.mask)
    sampled = np.random.default_rng(0).random(count) < SAMPLE
    sampled[file.mask.argmax()] = True
    sampled |= count <= SMALL[0] and count * file.input.classes <= SMALL[1]
    results: list[tuple[Trial, Result]] = []
    added: list[pd.DataFrame] = []
    for chunk, (kept, given, problem, paths) in enumerate(_problems(run, first, last)):
        measured = list(run_paths(run, problem, paths))
        enclosed = _enclosed(problem, paths, run.devices[0])
        same_top = _top(problem.input) == _top(problem.target)
        of_rows = pd.DataFrame({"row": kept, "reverse": _reverse(problem, enclosed), "same_top": same_top})
        before = None if problem.dtype == given.dtype else _before(run, given, problem)
        for rows, trial in _lots(run, problem, measured, enclosed, sampled[kept]):
            trial = replace(trial, before=before and partial(before, rows, trial.references["kl"]))
            for place, one in enumerate(measured):
                results.append((trial, replace(one, computed=one.computed[rows])))
                added.append(of_rows.iloc[rows].assign(chunk=chunk, place=place))
    if not results:
        return pd.DataFrame()
    table = error_table(results).assign(**together(added)).sort_values(["chunk", "place", "row"], ignore_index=True)
    lost = table["reference"].eq("nan") & table["note"].eq("")
    columns = typed(table.assign(rows=count, note=table["note"].mask(lost, UNDEFINED)), "errors")
    exact = table["reference" if file.input.kind == TOKENS else "exact_kl"].map(float)
    return columns.assign(exact=exact, reverse=table["reverse"], same_top=table["same_top"])


def _top(rows: Tensor) -> NDArray[np.int64]:
    """The largest number's place in each row; torch takes 17 times as long for halves."""
    places: NDArray[np.int64] = (rows if rows.dtype == torch.float64 else rows.float()).numpy().argmax(-1)
    return places


def _lots(
    run: Run, problem: Problem, measured: Sequence[Result], enclosed: Enclosure, sampled: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], Trial]]:
    """The rows that are compared with what the engine gives, and those where every result is certain by the screen."""
    paths = list(dict.fromkeys(one.path for one in measured))
    texts = [enclosed.text(row) for row in range(len(sampled))]
    sure = np.array([text != "" for text in texts])
    for one in measured:
        if not one.note:
            sure &= certain(one.path.promise, enclosed, one.computed, one.dtype, problem.dtype)
    asked, screened = np.flatnonzero(~sure | sampled), np.flatnonzero(sure & ~sampled)
    part = Problem(problem.case, problem.dtype, problem.input[asked], problem.target[asked])
    if len(asked):
        trial = begin_trial(part, paths, run.engine, run.submit)
        yield asked, replace(trial, limits=later(_checked, trial, enclosed, asked))
    if len(screened):
        rest = Problem(problem.case, problem.dtype, problem.input[screened], problem.target[screened]).slim()
        bounds = {p.promise: (least_bound(p.promise, enclosed, problem.dtype)[screened],) * 2 for p in paths}
        limits = Limits(enclosed.scale[screened], np.full(len(screened), np.nan), bounds)
        values = References([Certified(texts[row], SCREENED) for row in screened])
        yield screened, Trial(rest, paths, lambda: limits, {"kl": lambda: values})


def _before(run: Run, given: Problem, problem: Problem) -> Callable[[NDArray[np.int64], Later[References]], References]:
    """Of some rows, whose references are there, those of the file's numbers, before they were rounded."""
    (x, y), (rounded_x, rounded_y) = given.numbers, problem.numbers
    same: NDArray[np.bool_] = ((x == rounded_x) & (y == rounded_y)).all(axis=1)
    enclosed = _enclosed(given, [], run.devices[0])
    values = [Certified(enclosed.text(row), SCREENED) for row in range(len(same))]
    asked = np.flatnonzero(np.array([value.value == "" for value in values]) & ~same)
    exact = run.engine.request(Problem(given.case, given.dtype, given.input[asked], given.target[asked]))

    def before(rows: NDArray[np.int64], now: Later[References]) -> References:
        engine = dict(zip(asked.tolist(), exact().rows, strict=True))
        known = zip(rows.tolist(), now().rows, strict=True)
        return References([own if same[row] else engine.get(row, values[row]) for row, own in known])

    return before


def _checked(trial: Trial, enclosed: Enclosure, asked: NDArray[np.int64]) -> Limits:
    """The engine's limits. Whatever it is asked for is a check on the screen."""
    limits, values = trial.limits(), trial.references["kl"]().values
    there = ~np.isnan(enclosed.kl[asked])
    held = all(enclosed.holds(asked[place], values[place]) for place in np.flatnonzero(there))
    for promise, both in limits.bounds.items():
        least = least_bound(promise, enclosed, trial.problem.dtype)[asked]
        held &= not any((least > bound).any() for bound in both)
    if not held:
        raise UsageError(
            "the screen and the exact engine differ: this device's exp, expm1 or log is worse than the 2 ulp that "
            "docs/screening.md assumes; --device cpu judges the file without it"
        )
    return limits


def _enclosed(problem: Problem, paths: Sequence[Path], device: str) -> Enclosure:
    """By the screen, which is for logits in a format that leaves binary64 digits to spare, and KL row by row."""
    if (
        problem.dtype not in DTYPES
        or problem.case.kinds != ("logits", "logits")
        or any((p.quantity, p.reduction, p.rounding.temperature) != ("kl", "none", 1) for p in paths)
    ):
        return Enclosure.none(len(problem.input))
    try:
        return enclose(problem.input.to(device), problem.target.to(device))
    except (RuntimeError, TypeError):  # no double, or no memory, there
        return enclose(problem.input, problem.target)


@OVERFLOWS
def _reverse(problem: Problem, enclosed: Enclosure) -> Rows:
    """KL(input || target) of each row, in binary64: from the screen, or as it is defined."""
    reverse, (target_kind, input_kind) = enclosed.reverse.copy(), problem.case.kinds
    rows = np.flatnonzero(np.isnan(reverse))
    if len(rows):
        input, target = (t[rows].double().numpy() for t in (problem.input, problem.target))
        turned = Exact.of(target, input, input_kind, target_kind)
        lost = undefined(input, input_kind) | undefined(target, target_kind)
        values = np.where(((turned.target.p > 0) & ~turned.there).any(axis=1), np.inf, turned.kl)
        reverse[rows] = np.where(lost, np.nan, values)
    return reverse


def statistics(rows: pd.DataFrame, tokens: bool) -> pd.DataFrame:
    """What people compare two models by, of rows with COLUMNS: of the exact values and by path.

    Of distributions the exact values are those of KL, in both directions; of `tokens` those of what each path means.
    """
    parts: dict[tuple[object, ...], dict[str, object]] = {}
    for (dtype, path, device), results in rows.groupby(["dtype", "path", "device"], sort=False):
        same_top = np.nan if tokens else results["same_top"].mean()
        shared = {"dtype": dtype, "device": "", "direction": "target_input", "same_top_class": same_top}
        exact = shared | {"path": f"exact {path}" if tokens else "exact"}
        parts.setdefault((dtype, exact["path"]), exact | _distribution(results["exact"]))
        if not tokens:
            other = exact | {"direction": "input_target"}
            parts.setdefault((dtype, "reverse"), other | _distribution(results["reverse"]))
        errors = results["abs_error"]
        error = {"error_p99": errors[np.isfinite(errors)].quantile(0.99)}
        parts[dtype, path, device] = (
            shared | {"path": path, "device": device} | error | _distribution(results["computed"])
        )
    return pd.DataFrame(list(parts.values()))


def _distribution(values: pd.Series) -> dict[str, object]:
    """Of those that are finite."""
    finite = values[np.isfinite(values)]
    return {
        "n": len(values),
        "non_finite": len(values) - len(finite),
        "mean": finite.mean(),
        "standard_error": finite.sem(),
        "minimum": finite.min(),
        **{name: finite.quantile(percent / 100) for name, percent in PERCENTILES.items()},
        "maximum": finite.max(),
    }
