"""A report folder is replaced as a whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audit.base.usage import UsageError

MARK = "environment.json"


def check_replaceable(out: Path) -> None:
    """Raises UsageError where `out` is something other than a report, so that no one's files are lost."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: expected a folder for the report")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise UsageError(f"{out} holds files but no {MARK}, so it is no report: give another --out or empty it")


@contextmanager
def report_folder(out: Path) -> Iterator[Path]:
    """A folder to fill beside `out`, in `.partial/`; on success it takes the place of `out`, else it is removed.

    Raises UsageError where `out` cannot be replaced or written.
    """
    check_replaceable(out)
    workshop = out.parent / ".partial"
    try:
        workshop.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{out.name}-{os.getpid()}-", dir=workshop))
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from None
    try:
        partial.chmod(0o755)
        yield partial
        old = partial.with_name(f"{partial.name}-old")
        if out.exists():
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if workshop.is_dir() and not any(workshop.iterdir()):
            workshop.rmdir()
