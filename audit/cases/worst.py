"""The worst inputs known: references/worst.csv, which `python -m audit worst --record` adds to, as cases."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import partial

import numpy as np

from audit.base.formats import FORMATS, Format
from audit.cases import Case, Rows, register
from audit.reference.gold import COMMITTED_GOLD

TABLE = COMMITTED_GOLD / "worst.csv"


@dataclass(frozen=True)
class Record:
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
    if not table.exists():
        return []
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    made = []
    for r in rows:
        numbers = int(r["classes"]), float(r["error"]), float(r["bound"])
        made.append(Record(r["path"], r["dtype"], *numbers, r["versions"], r["when"], r["input"], r["target"]))
    return made


def write_worst(records: Iterable[Record], table: pathlib.Path = TABLE) -> None:
    """Of each path, dtype and number of classes those records that no other beats."""
    all_ = list(records)
    kept = [r for i, r in enumerate(all_) if r.beats(all_[:i] + all_[i + 1 :])]
    with open(table, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Record)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(r) for r in sorted(kept, key=lambda r: (r.path, r.dtype, r.classes, r.error)))


def make(classes: int, format: Format) -> tuple[Rows, Rows]:
    own = [r for r in read_worst() if (r.dtype, r.classes) == (format.name, classes)]
    sides = [r.input for r in own], [r.target for r in own]
    input, target = (np.array([[float.fromhex(v) for v in text.split()] for text in side]) for side in sides)
    return input, target


_KNOWN = read_worst()
for _classes in sorted({r.classes for r in _KNOWN}):
    _dtypes = tuple(name for name in FORMATS if any((r.dtype, r.classes) == (name, _classes) for r in _KNOWN))
    _summary = f"the worst rows of {_classes} classes that a search has found"
    register(Case(f"worst_n{_classes}", _summary, partial(make, _classes), dtypes=_dtypes, native=True))
