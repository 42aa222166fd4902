"""The worst inputs known: references/worst.csv, which `python -m audit worst --record` adds to, as cases."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np

from audit.base.formats import FORMATS, Format
from audit.cases import Case, Rows, register
from audit.reference.gold import COMMITTED_GOLD

TABLE = COMMITTED_GOLD / "worst.csv"


class Record(NamedTuple):
    """A row of logits, hexadecimal, and how far off a path was there: `error` as scaled_error, `bound` likewise."""

    path: str
    dtype: str
    classes: int
    error: float
    bound: float
    versions: str
    when: str
    input: str
    target: str

    def beats(self, others: Iterable[Record]) -> bool:
        """Whether its error, or its share of the bound, is above that of all others of its path, dtype and classes."""
        key = self.path, self.dtype, self.classes
        alike = [o for o in others if (o.path, o.dtype, o.classes) == key]
        return all(self.error > o.error for o in alike) or all(
            self.error / self.bound > o.error / o.bound for o in alike
        )


def read_worst(table: pathlib.Path = TABLE) -> list[Record]:
    numbers: dict[str, type] = {"classes": int, "error": float, "bound": float}
    with open(table, encoding="utf-8", newline="") as file:
        return [Record(**{k: numbers.get(k, str)(v) for k, v in row.items()}) for row in csv.DictReader(file)]


def write_worst(records: Iterable[Record], table: pathlib.Path = TABLE) -> None:
    """Of each path, dtype and number of classes those records that no other beats."""
    all_ = list(records)
    kept = [r for i, r in enumerate(all_) if r.beats(all_[:i] + all_[i + 1 :])]
    with open(table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([Record._fields, *sorted(kept)])


def worst(classes: int, format: Format) -> tuple[Rows, Rows]:
    own = [r for r in _KNOWN if (r.dtype, r.classes) == (format.name, classes)]
    input, target = (
        np.array([[float.fromhex(number) for number in row.split()] for row in side])
        for side in ([r.input for r in own], [r.target for r in own])
    )
    return input, target


_KNOWN = read_worst()
for _classes in sorted({r.classes for r in _KNOWN}):
    _dtypes = tuple(name for name in FORMATS if any((r.dtype, r.classes) == (name, _classes) for r in _KNOWN))
    _summary = f"the worst rows of {_classes} classes that a search has found"
    register(Case(f"worst_n{_classes}", _summary, partial(worst, _classes), dtypes=_dtypes, native=True))
