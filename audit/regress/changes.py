"""The changes between two reports, for a terminal, a pull request, a program or GitHub's annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import log2
from typing import Any

import pandas as pd

from audit.base.text import markdown as escape
from audit.base.text import plain
from audit.regress.reports import Report

FORMATS = ("text", "markdown", "json", "github")
SHOWN = 20
WHERE = ("path", "dtype", "device", "case", "reduction", "where")


def render(changes: pd.DataFrame, baseline: Report, current: Report, format: str) -> str:
    """`changes`, as compare gives them, in one of FORMATS; json has every one.

    The others group what got worse by path and dtype and all else by what it is, each with its worst example, and
    show so much as a person reads.
    """
    worse = int(changes["worse"].sum())
    verdict = f"{worse} worse, {len(changes) - worse} other changes"
    sides = {"baseline": baseline.side, "current": current.side}
    if format == "json":
        # JSON has neither nan nor inf.
        records = [
            {name: None if pd.isna(v) else str(v) if v == float("inf") else v for name, v in row.items()}
            for row in changes.to_dict("records")
        ]
        return json.dumps({**sides, "worse": worse, "changes": records}, indent=2, ensure_ascii=False)
    head = [f"{name}: {', '.join(filter(None, side.values()))}" for name, side in sides.items()]
    names = changes[["worse", "what", "path", "dtype"]].itertuples(index=False)
    group = pd.Series([name if name.worse else name.what for name in names], changes.index, dtype=object)
    shown = changes.assign(more=group.groupby(group).transform("size") - 1)[~group.duplicated()]
    cut = shown[shown["worse"]].iloc[SHOWN:]
    shown = shown.drop(cut.index)
    rest = [f"... and {len(cut)} more that got worse: --format json has them all"] if len(cut) else []
    if format == "github":
        return "\n".join(_annotations(shown, [f"kl-audit: {verdict}", *head, *rest]))
    lines = [(row["worse"], told(row)) for row in shown.to_dict("records")]
    if format == "text":
        return "\n".join([*head, *(f"{'WORSE' if worse else '':6}{line}" for worse, line in lines), *rest, verdict])
    listed = [f"- {'**worse** ' if worse else ''}{escape(line)}" for worse, line in lines]
    return "\n".join([f"**{verdict}**", "", *map(escape, head), "", *listed, *rest])


def told(change: Mapping[Any, Any]) -> str:
    """A change in a line; of bits how many lie between the two sides, of other numbers the factor."""
    bits = change["unit"] == "bits"
    parts = [str(change[name]) for name in WHERE if pd.notna(change[name]) and change[name]]
    sides = [
        "" if pd.isna(v) else str(v) if not isinstance(v, float) else f"{v:.1f}" if bits else f"{v:.3g}"
        for v in (change["before"], change["after"])
    ]
    if any(sides):
        parts.append(f"{' -> '.join(sides)} {change['unit']}".strip())
    if pd.notna(change["times"]):
        factors = (f"{log2(v):.1f} bits" if bits else f"{v:.3g} times" for v in (change["times"], change["allowed"]))
        # What is below the least error that counts is taken as that.
        smaller, larger = sorted(v if isinstance(v, float) else 0.0 for v in (change["before"], change["after"]))
        least = larger / change["times"]
        of = f" {least:.3g}" if 0 < smaller < 0.99 * least and not bits else ""
        parts.append(f"({next(factors)}{of}, {next(factors)} allowed)")
    if change.get("more"):
        parts.append(f"and {change['more']} more")
    return plain(f"{change['what']}: {' '.join(parts)}".removesuffix(": "))


def _annotations(shown: pd.DataFrame, summary: list[str]) -> list[str]:
    """One for each path and dtype that got worse, as GitHub shows few; and one that says what else there is."""
    worse = shown[shown["worse"]].fillna({"path": "", "dtype": ""})
    errors = [
        _command("error", f"{path} {dtype}".strip() or "report", map(told, rows.to_dict("records")))
        for (path, dtype), rows in worse.groupby(["path", "dtype"], sort=False)
    ]
    others = map(told, shown[~shown["worse"]].to_dict("records"))
    return [*errors, _command("notice", summary[0], [*summary[1:], *others])]


def _command(level: str, title: str, lines: Iterable[str]) -> str:
    """A workflow command, which ends at a line's end, and where % begins an escape; in a title , and : end it."""
    title, data = ("%0A".join(plain(line).replace("%", "%25") for line in given) for given in ([title], lines))
    return f"::{level} title={title.replace(':', '%3A').replace(',', '%2C')}::{data}"
