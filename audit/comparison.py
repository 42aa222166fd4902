"""Two reports side by side: what got worse, what changed, what got better."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from audit.errors import UsageError
from audit.publish.tables import read_table

KEY = ["case", "path", "reduction", "dtype"]

# Factors, each with its reason. A median of scaled errors moves by a third between sound kernels that sum in another
# order, so half as much again is news; a tail, of fewer results, by up to two. Few rows say little of either.
MEDIAN, TAIL = 1.5, 2.0
ENOUGH = 30
FEW = 2.0  # by which the factors grow where there are fewer rows than ENOUGH
LEAST = 0.25  # roundoffs: below that an error is no error, however it multiplies
BITS = 1.0


@dataclass(frozen=True)
class Change:
    """One difference. `worse` fails a comparison; the others are told."""

    worse: bool
    what: str
    where: str
    before: str
    after: str


@dataclass(frozen=True)
class Report:
    """A report folder's tables that a comparison needs."""

    summary: pd.DataFrame
    findings: pd.DataFrame
    environment: dict[str, object]


def read_report(folder: Path) -> Report:
    """Raises UsageError for a folder that is no report."""
    try:
        environment = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: not a report of this audit: {error}") from None
    summary, findings = (read_table(folder / f"{name}.csv", name) for name in ("summary", "findings"))
    return Report(summary, findings, environment)


def compare(baseline: Report, current: Report, *, same_machine: bool = False) -> list[Change]:
    """The changes from one report to another, the worst first.

    Rows are matched by case, path, reduction and dtype, and by device where either side has several. What vanished
    fails only on the `same_machine`. Raises UsageError where the two have no row in common.
    """
    several = max(r.summary["device"].nunique() for r in (baseline, current)) > 1
    key = [*KEY, "device"] if several else KEY
    old, new = (r.summary.set_index(key) for r in (baseline, current))
    common = old.index.intersection(new.index)
    if common.empty:
        raise UsageError("the two reports have no case, path and dtype in common")
    changes = _findings(baseline.findings, current.findings, ["path", "dtype", "symptom", *(["device"] * several)])
    for index in common:
        before, after = old.loc[index], new.loc[index]
        if before["kind"] in ("kl", "identity"):
            changes += _row(" ".join(map(str, index)), before, after)
    for index in old.index.difference(new.index):
        changes.append(Change(same_machine, "vanished", " ".join(map(str, index)), "there", "not there"))
    changes += _versions(baseline.environment, current.environment)
    return sorted(changes, key=lambda c: not c.worse)


def _row(where: str, before: pd.Series, after: pd.Series) -> list[Change]:
    changes = []

    def changed(worse: bool, what: str, column: str) -> None:
        changes.append(Change(worse, what, where, f"{before[column]:.4g}", f"{after[column]:.4g}"))

    few = FEW if min(before["n"], after["n"]) < ENOUGH else 1.0
    for column, factor in (("median", MEDIAN), ("p99", TAIL), ("max", TAIL)):
        column = f"scaled_error_{column}"
        if after[column] > max(before[column], LEAST) * factor * few:
            changed(True, f"{column} up by more than {factor * few:g}", column)
        elif before[column] > max(after[column], LEAST) * factor * few:
            changed(False, f"{column} improved", column)
    if before["correct_bits_median"] - after["correct_bits_median"] >= BITS * few and before["correct_bits_median"] > 0:
        changed(True, "a correct bit lost in the median", "correct_bits_median")
    if after["non_finite"] > before["non_finite"]:
        changed(True, "more results that are not finite", "non_finite")
    if after["negative_share"] > 0 and before["negative_share"] == 0:
        # Where a value is all rounding, its sign is chance: only results that have correct bits tell.
        changed(bool(after["correct_bits_median"] > 1), "negative where there was none", "negative_share")
    if not changes and before["computed_digest"] != after["computed_digest"]:
        changes.append(Change(False, "changed in the last place", where, "", ""))
    return changes


def _findings(before: pd.DataFrame, after: pd.DataFrame, key: list[str]) -> list[Change]:
    old, new = ({tuple(row) for row in t[t["status"] == "new"][key].to_numpy()} for t in (before, after))
    known = {tuple(row) for row in before[key].to_numpy()}
    changes = [Change(True, "new finding", " ".join(map(str, f)), "", "") for f in sorted(new - known)]
    return changes + [Change(False, "finding gone", " ".join(map(str, f)), "", "") for f in sorted(old - new)]


def _versions(before: dict[str, object], after: dict[str, object]) -> list[Change]:
    old, new = ({**_flat(e, "torch"), **_flat(e, "packages"), "python": e.get("python")} for e in (before, after))
    names = sorted({name for name in {*old, *new} if old.get(name) != new.get(name)})
    return [Change(False, "version changed", name, str(old.get(name)), str(new.get(name))) for name in names]


def _flat(environment: dict[str, object], name: str) -> dict[str, object]:
    part = environment.get(name)
    return {f"{name} {key}": value for key, value in part.items()} if isinstance(part, dict) else {}


def text(changes: list[Change], since: str, format: str) -> str:
    """The changes as text, markdown, json, or annotations for GitHub. Raises UsageError for another format."""
    worse = [c for c in changes if c.worse]
    verdict = f"{len(worse)} worse, {len(changes) - len(worse)} other changes since {since}"
    if format == "json":
        return json.dumps({"since": since, "worse": len(worse), "changes": [asdict(c) for c in changes]}, indent=2)
    last_place = [c for c in changes if c.what == "changed in the last place"]
    shown = [c for c in changes if c not in last_place]
    if last_place:
        where = last_place[0].where + (f" and {len(last_place) - 1} more" if len(last_place) > 1 else "")
        shown.append(Change(False, "changed in the last place", where, "", ""))
    if format == "markdown":
        rows = [f"| {'**worse**' if c.worse else ''} | {c.what} | {c.where} | {c.before} | {c.after} |" for c in shown]
        return "\n".join([f"{verdict}", "", "| | what | where | before | after |", "|---|---|---|---|---|", *rows])
    arrow = {c: f" {c.before} -> {c.after}" if c.before or c.after else "" for c in shown}
    if format == "github":
        lines = [f"::{'error' if c.worse else 'notice'}::{c.what}: {c.where}{arrow[c]}" for c in shown]
        return "\n".join([*lines, verdict])
    if format == "text":
        lines = [f"{'WORSE ' if c.worse else '      '}{c.what}: {c.where}{arrow[c]}" for c in shown]
        return "\n".join([*lines, verdict])
    raise UsageError(f"format {format!r} is not one of text, markdown, json, github")
