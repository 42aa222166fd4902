"""What each row of the tables is compared with: exact values a row, reduced exactly where a path reduces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from decimal import Context, Decimal
from multiprocessing import get_context
from types import TracebackType

import numpy as np

from audit.cases import Problem
from audit.reference.exact import row_references

PUBLISHED_DIGITS = 50
_WIDE = Context(prec=400)
_PUBLISHED = Context(prec=PUBLISHED_DIGITS)
CLASSES_A_TASK = 4_000


def divisor(reduction: str, rows: int, classes: int) -> int:
    """What a reduced value divides the sum over rows by, as torch does."""
    return {"none": 1, "sum": 1, "mean": rows * classes, "batchmean": rows}[reduction]


def published(value: str | Decimal) -> str:
    """`value` to 50 significant digits."""
    return str(_PUBLISHED.plus(Decimal(value))).lower().replace("infinity", "inf")


def reduced(rows: Sequence[str], reduction: str, classes: int) -> str:
    """The reduced reference from its rows' references (60 digits each), to 50 digits.

    Rows are KL divergences of distributions, never negative, so their sum cancels nothing.
    """
    total = Decimal(0)
    for row in rows:
        total = _WIDE.add(total, Decimal(row))
    return published(_WIDE.divide(total, Decimal(divisor(reduction, len(rows), classes))))


@dataclass(frozen=True)
class References:
    """A problem's exact KL a row, as text of 60 digits, and where each came from: "computed" or "exact"."""

    kl: list[str]

    @property
    def sources(self) -> list[str]:
        """An exact 0 and an infinity are decided, not computed."""
        return ["exact" if Decimal(value) == 0 or Decimal(value).is_infinite() else "computed" for value in self.kl]


class Engine:
    """Computes references, in `workers` processes beside the devices' work, or with 1 in this one when asked for.

    Rows that were asked for before are not computed again.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None
        self._rows: dict[tuple[str, str], Callable[[], str]] = {}

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)

    def request(self, problem: Problem) -> Callable[[], References]:
        """Starts the references of a problem; the callable returned waits for them."""
        keys = [(digest, problem.case.target_kind) for digest in problem.row_digests]
        fresh = [i for i, key in enumerate(keys) if key not in self._rows]
        input, target = problem.numbers
        step = max(1, CLASSES_A_TASK // input.shape[1])
        for start in range(0, len(fresh), step):
            part = fresh[start : start + step]
            answer = self._start(input[part], target[part], problem.case.target_kind)
            for place, i in enumerate(part):
                self._rows[keys[i]] = lambda answer=answer, place=place: answer()[place]  # type: ignore[misc]
        return lambda: References([self._rows[key]() for key in keys])

    def _start(
        self, input: np.ndarray[tuple[int, ...], np.dtype[np.float64]], target: np.ndarray[tuple[int, ...], np.dtype[np.float64]], kind: str
    ) -> Callable[[], list[str]]:
        if self._pool is not None:
            return self._pool.submit(row_references, input, target, kind).result
        known: list[str] = []

        def here() -> list[str]:
            if not known:
                known.extend(row_references(input, target, kind))
            return known

        return here
