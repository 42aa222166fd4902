"""Text of a user's own, made harmless for where it is shown."""

from __future__ import annotations


def plain(text: str) -> str:
    """On one line, with what a terminal would obey, and what no encoding has, written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def describe(error: BaseException) -> str:
    """An exception on one line, for a table."""
    try:
        text = str(error).strip()
    except BaseException as worse:
        text = f"its text raises {type(worse).__name__}"
    return plain(f"{type(error).__name__}: {text.partition(chr(10))[0][:500]}".rstrip(": "))


def counted(number: int, noun: str) -> str:
    """1 result, 2 results, 1,000 results."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
