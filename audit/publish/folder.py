"""A report folder is replaced as a whole or not at all, and from the first report on there is one at every moment."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from time import sleep
from typing import TypeVar

from audit.base.usage import UsageError
from audit.publish.history import history_file, read_history

MARK = "environment.json"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
Result = TypeVar("Result")
_made: list[tuple[pathlib.Path, os.stat_result]] = []


def check_replaceable(out: pathlib.Path) -> None:
    """Raises UsageError where `out` is something other than a report, so that no one's files are lost.

    Also where no report can be written, which is tried without a trace, and where history.csv beside it is no history.
    """
    read_history(history_file(out))
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

    A symlink is followed. Raises UsageError where `out` cannot be replaced or written.
    """
    with _beside(out) as (partial, real):
        _made.append((real, partial.stat()))
        yield partial
        _refuse_foreign(real)
        _patiently(lambda: _replace(partial, real))


def in_place() -> pathlib.Path | None:
    """The report that this process made last, once it stands in its place."""
    with suppress(OSError):
        if _made and os.path.samestat(_made[-1][0].stat(), _made[-1][1]):
            return _made[-1][0]
    return None


@contextmanager
def _beside(out: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """A new folder in `.partial/`, locked for as long as this process lives, and where `out` really is."""
    if "\0" in str(out):
        raise UsageError(f"{str(out)!r}: no name holds a NUL")
    try:
        real = pathlib.Path(os.path.realpath(out))
        _refuse_foreign(real)
        partial, lock = _patiently(lambda: _begun(real.parent / ".partial"))
        try:
            _sweep(partial.parent)
            _put_back(real)
            with suppress(FileNotFoundError):
                real.lstat()  # whose name may be too long
            yield partial, real
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)
            with suppress(OSError):
                partial.parent.rmdir()
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from None


def _refuse_foreign(out: pathlib.Path) -> None:
    if out in (pathlib.Path.cwd(), *pathlib.Path.cwd().parents):
        raise UsageError(f"{out} holds the folder you are in: give another --out")
    if os.path.lexists(out) and not out.is_dir():
        raise UsageError(f"{out} is a file: expected a folder for the report")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
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
    workshop.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    handle = os.open(partial, os.O_RDONLY)
    with suppress(OSError):  # not every file system has locks
        fcntl.flock(handle, fcntl.LOCK_EX)
    if not partial.exists():
        os.close(handle)
        raise FileNotFoundError(partial)
    return partial, handle


def _sweep(workshop: pathlib.Path) -> None:
    """Removes what killed runs have left: their locks ended with them."""
    for folder in workshop.glob("[0-9]*-*"):
        remove_unlocked(folder)


def remove_unlocked(folder: pathlib.Path) -> None:
    """Removes a folder unless a run that lives holds its lock."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _replace(partial: pathlib.Path, out: pathlib.Path) -> None:
    """In one step, or in two where the system has no exchange."""
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
    return out.parent / ".partial" / f"old {out.name[-100:]}"


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
