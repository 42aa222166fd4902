"""References of a user's own logits, kept from one run to the next: sealed records in one SQLite file.

A record is used only where its checksum fits and the same versions made it. What cannot be read or written is no
failure: the values are computed again. SQLite's locks let two runs share the file.
"""

from __future__ import annotations

import os
import pathlib
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import astuple

from audit.reference.gold import FIELDS, Record

LIMIT = 50_000  # records, of about 400 bytes
_SECONDS = 10.0  # to wait for another run
_COLUMNS = ", ".join(FIELDS)


def default_file() -> pathlib.Path:
    """In the user's cache folder, which XDG_CACHE_HOME may name."""
    home = os.path.expanduser("~/.cache")
    # Who has no home has no cache either.
    folder = os.environ.get("XDG_CACHE_HOME") or (os.devnull if home.startswith("~") else home)
    return pathlib.Path(folder) / "kl-audit" / "references.sqlite"


class Cache:
    """The records of a file, the oldest dropped where there would be more than `limit`."""

    def __init__(self, file: pathlib.Path, limit: int = LIMIT) -> None:
        self._file, self._limit = file, limit

    def read(self, keys: Iterable[tuple[str, str]], versions: str) -> dict[tuple[str, str], Record]:
        """The intact records of these digests and quantities that the versions made."""
        query = f"SELECT {_COLUMNS} FROM records WHERE digest = ? AND quantity = ?"
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
                database.executemany(f"INSERT OR REPLACE INTO records VALUES ({marks})", map(astuple, records))
                oldest = "SELECT rowid FROM records ORDER BY rowid LIMIT max(0, (SELECT COUNT(*) FROM records) - ?)"
                database.execute(f"DELETE FROM records WHERE rowid IN ({oldest})", (self._limit,))
        except (OSError, sqlite3.Error, ValueError):
            return

    def _connect(self) -> sqlite3.Connection:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._file, timeout=_SECONDS)
        # What a power failure tears is computed again; waiting for the disk at every block of rows is dearer.
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"CREATE TABLE IF NOT EXISTS records ({_COLUMNS}, PRIMARY KEY (digest, quantity))")
        return database
