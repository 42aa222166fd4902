"""errors.csv of a user's file, a chunk of rows in memory: most are judged by the screen, the others by the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from audit.base.usage import UsageError
from audit.base.workers import Later, later
from audit.cases import Problem, build
from audit.judge.limits import Limits, begin_limits
from audit.judge.references import SCREENED, References
from audit.judge.screen import DTYPES, Enclosure, certain, enclose, least_bound
from audit.looks import Look, Run, Trial, together
from audit.looks.errors import Measured, error_table, run_paths
from audit.paths import Path
from audit.reference.exact import Certified

# Numbers and rows of a chunk, a few copies of which the paths make; results, and numbers that wait for the engine, of
# which a table is made.
NUMBERS, ROWS = 2**21, 2**12
RESULTS, WAITING = 2**13, 2**22
# Rows that the engine judges whatever the screen says, as a check on it: some of a large file, a small one's all.
SAMPLE, SMALL = 1 / 200, (64, 2**20)  # of rows; rows, and numbers
UNDEFINED = "holds a NaN, +inf, or -inf throughout: KL is NaN"


@dataclass(frozen=True)
class Chunk:
    """What the paths gave on some rows, what that is compared with begun; the rows' numbers in the file."""

    results: list[Measured]
    rows: NDArray[np.int64]
    waiting: int  # numbers the engine has to look at


def begin(run: Run) -> Later[pd.DataFrame]:
    def judged() -> pd.DataFrame:
        assert run.plan.file is not None
        parts: list[pd.DataFrame] = []
        chunks: list[Chunk] = []
        for chunk in _chunks(run):
            chunks.append(chunk)
            if sum(c.waiting for c in chunks) > WAITING or sum(len(c.results) * len(c.rows) for c in chunks) > RESULTS:
                parts.append(_table(chunks))
                chunks = []
        parts += [_table(chunks)] if chunks else []
        return together(parts).assign(rows=len(run.plan.file.mask))

    return judged


LOOK = Look("errors", ("file",), begin)


def _table(chunks: Sequence[Chunk]) -> pd.DataFrame:
    table = error_table([result for chunk in chunks for result in chunk.results])
    numbers = np.concatenate([chunk.rows for chunk in chunks for _ in chunk.results])
    lost = table["reference"].eq("nan") & table["note"].eq("")
    return table.assign(row=numbers, note=table["note"].mask(lost, UNDEFINED))


def _chunks(run: Run) -> Iterator[Chunk]:
    file = run.plan.file
    assert file is not None
    count, step = len(file.mask), max(1, min(ROWS, NUMBERS // file.input.classes))
    sampled = np.random.default_rng(0).random(count) < SAMPLE
    sampled[file.mask.argmax()] = True
    sampled |= count <= SMALL[0] and count * file.input.classes <= SMALL[1]
    stopped: dict[tuple[str, str], str] = {}
    for start in range(0, count, step):
        rows = file.kept(start, start + step)
        if not len(rows):
            continue
        run.advance(f"row {start}")
        for case, dtype, paths in replace(run.plan, cases=[file.case(slice(start, start + step))]).problems():
            trial = Trial(build(case, dtype), paths, later(_nothing), {}, None)
            results = list(run_paths(trial, run.devices, stopped))
            yield _compared(run, trial, results, sampled[rows], rows)


def _nothing() -> Limits:
    return Limits(np.empty(0), np.empty(0), {})


def _compared(
    run: Run, trial: Trial, results: Sequence[Measured], sampled: NDArray[np.bool_], rows: NDArray[np.int64]
) -> Chunk:
    """The results with what they are compared with: by the screen in rows where all are certain, else by the engine."""
    problem, paths = trial.problem, trial.paths
    enclosed = _enclosed(problem, run.devices[0]) if _screens(problem, paths) else Enclosure.none(len(rows))
    texts = [enclosed.text(row) for row in range(len(rows))]
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
    return Chunk([replace(one, trial=merged) for one in results], rows, problem.input.shape[1] * len(asked))


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
