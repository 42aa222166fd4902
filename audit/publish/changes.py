"""The changes between two reports, for a terminal, a pull request, a program or GitHub's annotations."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from audit.base.text import markdown as escape
from audit.base.text import plain
from audit.base.usage import UsageError

FORMATS = ("text", "markdown", "json", "github")
SHOWN = 20


def check_format(format: str) -> None:
    """Raises UsageError for a format that is not known."""
    if format not in FORMATS:
        raise UsageError(f"--format {format!r} is not one of {', '.join(FORMATS)}")


def render(changes: pd.DataFrame, since: str, format: str) -> str:
    """`changes`, as compare gives them, in one of FORMATS; json has every one.

    The others group what got worse by path and dtype and all else by what it is, each with its worst example, and
    show so much as a person reads.
    """
    worse = int(changes["worse"].sum())
    verdict = f"{worse} worse, {len(changes) - worse} other changes since {since}"
    if format == "json":
        # JSON has neither nan nor inf.
        records = [
            {name: None if pd.isna(v) else str(v) if v == float("inf") else v for name, v in row.items()}
            for row in changes.to_dict("records")
        ]
        return json.dumps({"since": since, "worse": worse, "changes": records}, indent=2, ensure_ascii=False)
    names = changes[["worse", "what", "path", "dtype"]].itertuples(index=False)
    group = pd.Series([name if name.worse else name.what for name in names], changes.index, dtype=object)
    shown = changes.assign(more=group.groupby(group).transform("size") - 1)[~group.duplicated()]
    cut = shown[shown["worse"]].iloc[SHOWN:]
    lines = [_line(row, format) for row in shown.drop(cut.index).to_dict("records")]
    if len(cut):
        lines += ["", f"... and {len(cut)} more that got worse: --format json has them all"]
    if format == "text":
        return "\n".join([*lines, verdict])
    table = [f"**{escape(verdict)}**", "", "| | what | where | before | after | |", "|---|---|---|---|---|---|"]
    return "\n".join([*(table if format == "markdown" else [verdict]), *lines])


def _line(row: dict[Any, Any], format: str) -> str:
    where = " ".join(str(row[name]) for name in ("path", "dtype", "where") if pd.notna(row[name]))
    where += f" and {row['more']} more" if row["more"] else ""
    before, after = (
        "" if pd.isna(v) else f"{v:.4g}" if isinstance(v, float) else str(v) for v in (row["before"], row["after"])
    )
    times = "" if pd.isna(row["times"]) else f"{row['times']:.3g} times, {row['allowed']:.3g} allowed"
    if format == "markdown":
        cells = ["**worse**" if row["worse"] else "", row["what"], where, before, after, times]
        return "| " + " | ".join(cells[:1] + [escape(str(cell)) for cell in cells[1:]]) + " |"
    arrow = f"{before} -> {after}" if before or after else ""
    text = f"{row['what']}: " + " ".join(part for part in (where, arrow, f"({times})" if times else "") if part)
    if format == "github":
        # A workflow command ends at a line's end, and % begins an escape.
        return f"::{'error' if row['worse'] else 'notice'}::" + plain(text).replace("%", "%25")
    return f"{'WORSE' if row['worse'] else '':6}{plain(text)}"
