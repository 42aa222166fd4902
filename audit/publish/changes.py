"""The changes between two reports, for a terminal, a pull request, a program or GitHub's annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import log2
from typing import Any

import pandas as pd

from audit.base.text import markdown as escape
from audit.base.text import plain
from audit.base.usage import UsageError

FORMATS = ("text", "markdown", "json", "github")
SHOWN = 20
Side = dict[str, str]


def check_format(format: str) -> None:
    """Raises UsageError for a format that is not known."""
    if format not in FORMATS:
        raise UsageError(f"--format {format!r} is not one of {', '.join(FORMATS)}")


def side(report: str, environment: Mapping[str, Any]) -> Side:
    """What tells one side of a comparison from another."""
    torch, devices = environment["torch"], environment["devices"]
    models = [f"{d['name']} {d['model']}" for d in devices if d["status"] == "audited"]
    return {
        "report": report,
        "created": str(environment.get("created", "")),
        "torch": f"torch {torch['version']}",
        "driver": f"driver {environment['driver']}" if environment.get("driver") else "",
        "machine": ", ".join([*models, torch["cpu_capability"]]),
    }


def render(changes: pd.DataFrame, baseline: Side, current: Side, format: str) -> str:
    """`changes`, as compare gives them, in one of FORMATS; json has every one.

    The others group what got worse by path and dtype and all else by what it is, each with its worst example, and
    show so much as a person reads.
    """
    worse = int(changes["worse"].sum())
    verdict = f"{worse} worse, {len(changes) - worse} other changes"
    sides = {"baseline": baseline, "current": current}
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
    rows = shown.to_dict("records")
    if format == "text":
        return "\n".join([*head, *(f"{'WORSE' if r['worse'] else '':6}{told(r)}" for r in rows), *rest, verdict])
    table = ["| | what | where | before | after | |", "|---|---|---|---|---|---|", *map(_row, rows)]
    return "\n".join([f"**{verdict}**", "", *(f"- {escape(line)}" for line in head), "", *table, "", *rest])


def told(change: Mapping[Any, Any]) -> str:
    """A change in a line."""
    before, after, times = _numbers(change)
    arrow = " ".join([f"{before} -> {after}", change["unit"]]).strip() if before or after else ""
    parts = _where(change), arrow, f"({times})" if times else ""
    return plain(f"{change['what']}: {' '.join(filter(None, parts))}".removesuffix(": "))


def _annotations(shown: pd.DataFrame, summary: list[str]) -> list[str]:
    """One for each path and dtype that got worse, as GitHub shows few; and one that says what else there is."""
    worse = shown[shown["worse"]].fillna({"path": "", "dtype": ""})
    told_ = [
        _command("error", f"{path} {dtype}".strip() or "report", map(told, rows.to_dict("records")))
        for (path, dtype), rows in worse.groupby(["path", "dtype"], sort=False)
    ]
    others = map(told, shown[~shown["worse"]].to_dict("records"))
    return [*told_, _command("notice", summary[0], [*summary[1:], *others])]


def _command(level: str, title: str, lines: Any) -> str:
    """A workflow command, which ends at a line's end, and where % begins an escape; in a title , and : end it."""
    data, name = ("%0A".join(plain(line).replace("%", "%25") for line in given) for given in (lines, [title]))
    return f"::{level} title={name.replace(':', '%3A').replace(',', '%2C')}::{data}"


def _row(change: Mapping[Any, Any]) -> str:
    before, after, times = _numbers(change)
    cells = [str(change["what"]), _where(change), *(f"{v} {change['unit']}".strip() for v in (before, after)), times]
    return "| " + " | ".join(["**worse**" if change["worse"] else "", *map(escape, cells)]) + " |"


def _where(change: Mapping[Any, Any]) -> str:
    names = (change[name] for name in ("path", "dtype", "device", "case", "reduction", "where"))
    more = f"and {change['more']} more" if change.get("more") else ""
    return " ".join([*(str(name) for name in names if pd.notna(name) and name), more]).strip()


def _numbers(change: Mapping[Any, Any]) -> tuple[str, str, str]:
    """Both sides, and the factor between them; of bits, how many lie between them."""
    bits = change["unit"] == "bits"
    before, after = (
        "" if pd.isna(v) else str(v) if not isinstance(v, float) else f"{v:.1f}" if bits else f"{v:.3g}"
        for v in (change["before"], change["after"])
    )
    if pd.isna(change["times"]):
        return before, after, ""
    factors = change["times"], change["allowed"]
    if bits:
        return before, after, "{:.1f} bits, {:.1f} allowed".format(*map(log2, factors))
    return before, after, "{:.3g} times, {:.3g} allowed".format(*factors)
