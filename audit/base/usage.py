"""What a person asks for, by name or glob, and the one exception a person is meant to read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any


class UsageError(ValueError):
    """Wrong usage or unreadable input: one line saying what was given, what was expected, what to do."""


def check_word(word: object, known: Collection[str], what: str) -> None:
    """Raises UsageError, naming what there is, for anything but one of the words that are known."""
    if not isinstance(word, str) or word not in known:
        raise UsageError(f"{what} {word!r} is not one of {', '.join(known)}")


def several(given: Any) -> list[Any]:
    """What may be given alone or as several, as a list; a dtype and a device of torch by their names."""
    items = [given] if isinstance(given, (str, bytes)) or not isinstance(given, Iterable) else list(given)
    return [str(i).removeprefix("torch.") if type(i).__module__ == "torch" else i for i in items]


def choose(patterns: Any, names: Sequence[str], what: str) -> list[str]:
    """The names that match any pattern (as `several` takes them), in their own order; all of them for None.

    Raises UsageError, naming the nearest or all there are, for a pattern that matches nothing, and for no pattern.
    """
    if patterns is None:
        return list(names)
    patterns = several(patterns)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"expected names or globs of {what}s, got {patterns!r}")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = get_close_matches(pattern, names, n=3)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            listed = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
            raise UsageError(f"unknown {what} {pattern!r}: {hint}there are {listed}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
