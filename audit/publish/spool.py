"""The rows of a long run as they come, in parts that outlive it where it is killed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from contextlib import suppress

import pandas as pd

from audit.base.usage import UsageError
from audit.publish.folder import remove_unlocked


class Spool:
    """Parts of a table, each told the row it reaches to; here in memory, for a run that nothing is to outlive."""

    def __init__(self) -> None:
        self._parts: list[pd.DataFrame] = []

    @property
    def reached(self) -> int:
        return 0

    def put(self, part: pd.DataFrame, reached: int) -> None:
        self._parts.append(part)

    def parts(self, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        return (part if columns is None else part[columns] for part in self._parts)

    def close(self) -> None:
        """The run has ended well."""


class Kept(Spool):
    """In `.partial/` beside `out`, in a folder named after what identifies the run.

    What other runs have left there is removed; the same run's is gone on with where it is to `resume`. Raises
    UsageError where a part cannot be written, and then what there is stays.
    """

    def __init__(self, out: pathlib.Path, identity: str, resume: bool = False) -> None:
        workshop = pathlib.Path(os.path.realpath(out)).parent / ".partial"
        self.folder = workshop / f"rows-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        for left in workshop.glob("rows-*"):
            if left != self.folder or not resume:
                remove_unlocked(left)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY)
        with suppress(OSError):  # another such run, or a file system without locks
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def files(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("*.pickle"))

    @property
    def reached(self) -> int:
        return int(self.files[-1].stem) if self.files else 0

    def put(self, part: pd.DataFrame, reached: int) -> None:
        """Whole or not at all."""
        file = self.folder / f"{reached:015d}.pickle"
        try:
            part.to_pickle(file.with_suffix(".tmp"))
            file.with_suffix(".tmp").rename(file)
        except OSError as error:
            file.with_suffix(".tmp").unlink(missing_ok=True)
            kept = f"the rows up to {self.reached:,} are kept, and --resume goes on from them"
            raise UsageError(f"{self.folder}: {error.strerror}; {kept}") from None

    def parts(self, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        for file in self.files:
            part = pd.read_pickle(file)
            yield part if columns is None else part[columns]

    def close(self) -> None:
        """The run has ended well."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        with suppress(OSError):
            self.folder.parent.rmdir()
