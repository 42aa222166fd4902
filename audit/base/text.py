"""Text of a user's own, made harmless for where it is shown."""

from __future__ import annotations

import re


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


# What CommonMark, GitHub's tables and its links would take for markup; an underscore within a word is none.
_MARKUP = re.compile(r"[\\`*{}\[\]<>&|~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.")


def markdown(text: str) -> str:
    """As it is shown by itself: no character of it is markup."""
    return _MARKUP.sub(r"\\\g<0>", plain(text))
