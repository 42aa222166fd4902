"""What a person asks for, by name or glob, and the one exception a person is meant to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase


class UsageError(ValueError):
    """Wrong usage or unreadable input: one line saying what was given, what was expected, what to do."""


def choose(patterns: Iterable[str] | str | None, names: Sequence[str], what: str) -> list[str]:
    """The names that match any pattern, in their own order; all of them for None.

    Raises UsageError, naming the nearest or all there are, for a pattern that matches nothing, and for no pattern.
    """
    if patterns is None:
        return list(names)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"expected names or globs of {what}s, got {patterns!r}")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = get_close_matches(pattern, names, n=3)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            listed = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
            raise UsageError(f"unknown {what} {pattern!r}: {hint}there are {listed}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
