"""References that are kept: text keyed by the digest of the very numbers, so that a name can never vouch for a value.

The committed ones stand in a table; those of a user's own logits in one SQLite file, from one run to the next.
"""

from __future__ import annotations

import csv
import hashlib
import os
import pathlib
import platform
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

from audit import __version__

NAME = "gold.csv"
_PACKAGE = pathlib.Path(__file__).parents[1]
# The folder of the committed references: a wheel has it inside the package, a checkout beside it.
COMMITTED_GOLD = _PACKAGE / "references" if (_PACKAGE / "references").is_dir() else _PACKAGE.parent / "references"
DIGITS = 60
LIMIT = 50_000  # records in a cache, of about 400 bytes


class Record(NamedTuple):
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

    @property
    def key(self) -> tuple[str, str]:
        return self.digest, self.quantity

    def sealed(self) -> Record:
        return self._replace(checksum=self._sum())

    def _sum(self) -> str:
        return hashlib.sha256("\x1f".join(self[:-1]).encode()).hexdigest()[:16]

    @property
    def intact(self) -> bool:
        return self.checksum == self._sum()


FIELDS = Record._fields


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


class Gold(NamedTuple):
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
    records = read_records(folder)
    whole = [r for r in records if r.intact]
    values = {r.key: r.value for r in whole}
    twice = [r for r in whole if values[r.key] != r.value]
    for record in twice:
        values.pop(record.key, None)
    return Gold(values, [record_name(*r.key) for r in records if not r.intact or r in twice])


def write_records(folder: pathlib.Path, records: Iterable[Record]) -> None:
    """Writes the table in the records' order of digest, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{NAME}.partial"
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(sorted(records))
    partial.replace(folder / NAME)


def default_file() -> pathlib.Path:
    """In the user's cache folder, which XDG_CACHE_HOME may name."""
    home = os.path.expanduser("~/.cache")
    # Who has no home has no cache either.
    folder = os.environ.get("XDG_CACHE_HOME") or (os.devnull if home.startswith("~") else home)
    return pathlib.Path(folder) / "kl-audit" / "references.sqlite"


class Cache:
    """The records of a SQLite file, whose locks let two runs share it; the oldest of more than `limit` are dropped.

    A record is used only where its checksum fits and the same versions made it. What cannot be read or written is no
    failure: the values are computed again.
    """

    def __init__(self, file: pathlib.Path, limit: int = LIMIT) -> None:
        self._file, self._limit = file, limit

    def read(self, keys: Iterable[tuple[str, str]], versions: str) -> dict[tuple[str, str], Record]:
        """The intact records of these digests and quantities that the versions made."""
        query = f"SELECT {', '.join(FIELDS)} FROM records WHERE digest = ? AND quantity = ?"
        try:
            with closing(self._connect()) as database:
                found = {key: Record(*map(str, row)) for key in keys for row in database.execute(query, key)}
        except (OSError, sqlite3.Error, ValueError):
            return {}
        return {key: record for key, record in found.items() if record.intact and record.versions == versions}

    def write(self, records: Sequence[Record]) -> None:
        marks = ", ".join("?" * len(FIELDS))
        try:
            with closing(self._connect()) as database, database:
                database.executemany(f"INSERT OR REPLACE INTO records VALUES ({marks})", records)
                oldest = "SELECT rowid FROM records ORDER BY rowid LIMIT max(0, (SELECT COUNT(*) FROM records) - ?)"
                database.execute(f"DELETE FROM records WHERE rowid IN ({oldest})", (self._limit,))
        except (OSError, sqlite3.Error, ValueError):
            return

    def _connect(self) -> sqlite3.Connection:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._file, timeout=10.0)
        # What a power failure tears is computed again; waiting for the disk at every block of rows is dearer.
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"CREATE TABLE IF NOT EXISTS records ({', '.join(FIELDS)}, PRIMARY KEY (digest, quantity))")
        return database
