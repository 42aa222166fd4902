"""What a run leaves on a disk: a report, which is replaced as a whole or not at all, and rows that outlive a kill."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from time import sleep
from typing import TypeVar

import pandas as pd

from audit.base.usage import UsageError

MARK = "environment.json"
WORKSHOP = ".partial"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
Result = TypeVar("Result")
_made: list[tuple[pathlib.Path, os.stat_result]] = []


def check_replaceable(out: pathlib.Path) -> None:
    """Raises UsageError where `out` is something other than a report, so that no one's files are lost.

    Also where no report can be written, which is tried without a trace.
    """
    absent = [folder for folder in pathlib.Path(os.path.abspath(out)).parents if not os.path.lexists(folder)]
    try:
        with _beside(out):
            pass
    finally:
        for folder in absent:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def report_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill beside `out`, in `.partial/`; on success it takes the place of `out`, else it is removed.

    Rows that a killed run has kept are removed: this is the next run, and has not gone on with them. A symlink is
    followed. Raises UsageError where `out` cannot be replaced or written.
    """
    with _beside(out) as (partial, real):
        for left in partial.parent.glob("rows-*"):
            _remove_unlocked(left)
        _made.append((real, partial.stat()))
        yield partial
        _patiently(lambda: _replace(partial, real))


def in_place() -> pathlib.Path | None:
    """The report that this process made last, once it stands in its place."""
    with suppress(OSError):
        if _made and os.path.samestat(_made[-1][0].stat(), _made[-1][1]):
            return _made[-1][0]
    return None


@contextmanager
def _beside(out: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """A new folder in `.partial/`, locked for as long as this process lives, and where `out` really is.

    First the report that a killed run set aside is put back, and what killed runs have left is removed.
    """
    if "\0" in str(out):
        raise UsageError(f"{str(out)!r}: no name holds a NUL")
    try:
        real = pathlib.Path(os.path.realpath(out))
        _patiently(lambda: _refuse_foreign(real))
        partial, lock = _patiently(lambda: _begun(real.parent / WORKSHOP))
        try:
            for left in partial.parent.glob("[0-9]*-*"):
                _remove_unlocked(left)
            _put_back(real)
            with suppress(FileNotFoundError):
                real.lstat()  # whose name may be too long
            yield partial, real
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)
            with suppress(OSError):
                partial.parent.rmdir()
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from None


def _refuse_foreign(out: pathlib.Path) -> None:
    if out in (pathlib.Path.cwd(), *pathlib.Path.cwd().parents):
        raise UsageError(f"{out} holds the folder you are in: give another --out")
    # Looked at once for each question: another run may exchange it between two looks.
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(out).st_mode):
            raise UsageError(f"{out} is a file: expected a folder for the report")
    names = os.listdir(out) if out.is_dir() else [MARK]
    if names and MARK not in names:
        raise UsageError(f"{out} holds files but no {MARK}, so it is no report: give another --out or empty it")


def _patiently(step: Callable[[], Result]) -> Result:
    """What the step gives, tried again where another run came between."""
    for _ in range(100):
        with suppress(FileNotFoundError, FileExistsError):
            return step()
        sleep(0.01)
    return step()


def _begun(workshop: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A new folder and the open handle that holds its lock, which no other run had swept away before."""
    partial = workshop / f"{os.getpid()}-{token_hex(4)}"
    partial.mkdir(parents=True)
    handle = _locked(partial, fcntl.LOCK_EX)
    if not partial.exists():
        os.close(handle)
        raise FileNotFoundError(partial)
    return partial, handle


def _locked(folder: pathlib.Path, how: int) -> int:
    """An open handle that holds the folder's lock, where the file system has locks."""
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # also where it is another run's that this one does not wait for
        fcntl.flock(handle, how)
    return handle


def _remove_unlocked(folder: pathlib.Path) -> None:
    """Removes a folder unless a run that lives holds its lock: a killed one's ended with it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _replace(partial: pathlib.Path, out: pathlib.Path) -> None:
    """In one step, or in two where the system has no exchange."""
    _refuse_foreign(out)
    try:
        if not out.exists():
            partial.rename(out)
        elif not _exchange(partial, out):
            try:
                out.rename(_aside(out))
                partial.rename(out)
            finally:
                _put_back(out)
    except OSError as error:
        raise FileExistsError(out) if error.errno == errno.ENOTEMPTY else error from None


def _aside(out: pathlib.Path) -> pathlib.Path:
    return out.parent / WORKSHOP / f"old {out.name[-100:]}"


def _put_back(out: pathlib.Path) -> None:
    """The report that this run, or a killed one, set aside and did not replace; one that was replaced is removed."""
    with suppress(OSError):
        if not out.exists():
            _aside(out).rename(out)
    shutil.rmtree(_aside(out), ignore_errors=True)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Lets two names change places; False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        if ctypes.get_errno() in _NO_EXCHANGE:
            return False
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return True


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
        workshop = pathlib.Path(os.path.realpath(out)).parent / WORKSHOP
        self.folder = workshop / f"rows-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        for left in workshop.glob("rows-*"):
            if left != self.folder or not resume:
                _remove_unlocked(left)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def _files(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("*.pickle"))

    @property
    def reached(self) -> int:
        return max((int(file.stem) for file in self._files), default=0)

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
        for part in map(pd.read_pickle, self._files):
            yield part if columns is None else part[columns]

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        with suppress(OSError):
            self.folder.parent.rmdir()
