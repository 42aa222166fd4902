"""Committed references: text keyed by the digest of the very numbers, so that a name can never vouch for a value."""

from __future__ import annotations

import csv
import hashlib
import pathlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from functools import cache
from importlib.metadata import version

from audit import __version__

NAME = "gold.csv"
_PACKAGE = pathlib.Path(__file__).parents[1]
# The folder of the committed references: a wheel has it inside the package, a checkout beside it.
COMMITTED_GOLD = _PACKAGE / "references" if (_PACKAGE / "references").is_dir() else _PACKAGE.parent / "references"
DIGITS = 60


@dataclass(frozen=True)
class Record:
    """One exact value. `digest` is of the row's dtype, shape and bytes, or of the case's for a `quantity` with a row.

    The exact number lies within `radius` of `value`, which has `digits` significant digits; 0, inf and nan are decided.
    `engine` made it with `versions`; `checksum` covers all of that.
    """

    digest: str
    quantity: str
    value: str
    radius: str
    digits: str
    engine: str
    versions: str
    checksum: str = ""

    def sealed(self) -> Record:
        return replace(self, checksum=self._sum())

    def _sum(self) -> str:
        return hashlib.sha256("\x1f".join([*vars(self).values()][:-1]).encode()).hexdigest()[:16]

    @property
    def intact(self) -> bool:
        return self.checksum == self._sum()


FIELDS = tuple(field.name for field in fields(Record))


@cache
def versions() -> str:
    return f"kl-audit {__version__}, mpmath {version('mpmath')}, Python {platform.python_version()}"


def radius_of(value: str, digits: int) -> str:
    """The proven radius of a value that was rounded to `digits` digits from one 10 digits sharper, two digits, upwards.

    Half a unit of the last digit, and what the sharper value may be off by; 0 for what is decided.
    """
    number = Decimal(value)
    if not number.is_finite() or not number:
        return "0"
    return f"5.1e{number.adjusted() - digits}"


@dataclass(frozen=True)
class Gold:
    """A table's values by digest and quantity; `damaged` names what was edited, cut off or is there twice, unused."""

    values: dict[tuple[str, str], str]
    damaged: list[str]


def record_name(digest: str, quantity: str) -> str:
    return f"{digest[:12]}… {quantity}"


def read_records(folder: pathlib.Path) -> list[Record]:
    """The records of a folder's table, intact or not; none where there is no table."""
    rows: list[list[str]] = []
    try:
        with open(folder / NAME, newline="", encoding="utf-8") as file:
            rows.extend(csv.reader(file))
    except (OSError, UnicodeDecodeError):
        return []
    except csv.Error:  # lines run together: what follows is lost, and no record
        rows.append(["the rest of the table"])
    return [Record(*(row + [""] * len(FIELDS))[: len(FIELDS)]) for row in rows[1:]]


def read_gold(folder: pathlib.Path) -> Gold:
    whole: list[Record] = []
    damaged: list[Record] = []
    for record in read_records(folder):
        (whole if record.intact else damaged).append(record)
    values = {(r.digest, r.quantity): r.value for r in whole}
    twice = [r for r in whole if values[r.digest, r.quantity] != r.value]
    for record in twice:
        values.pop((record.digest, record.quantity), None)
    return Gold(values, [record_name(r.digest, r.quantity) for r in damaged + twice])


def write_records(folder: pathlib.Path, records: Iterable[Record]) -> None:
    """Writes the table in the records' order of digest, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{NAME}.partial"
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(vars(r).values() for r in sorted(records, key=lambda r: (r.digest, r.quantity)))
    partial.replace(folder / NAME)
