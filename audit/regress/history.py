"""The runs of history.csv, one after another: where a number changed, and which version had changed with it."""

from __future__ import annotations

from collections.abc import Hashable
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from audit.base.text import plain
from audit.base.usage import UsageError
from audit.publish.changes import told
from audit.regress.comparison import METRICS, Changes, changed_errors

# Only runs of the same inputs compare: each such series is told by itself.
SERIES = ["path", "dtype", "device", "input_digest"]
VERSIONS = ["torch", "driver", "model", "cpu_capability", "audit"]
FIGURES = [*METRICS, "n", "computed_digest"]
SHOWN = 10


def stretches(history: pd.DataFrame, paths: list[str] | None = None) -> pd.DataFrame:
    """The rows of table `history` whose figures, or versions, are not those of the run before: a row a stretch.

    `runs` and `until` say how many it spans, and when the last was; `versions` which changed with its first, or all of
    a series' first; `changes` holds what a comparison with the run before says, in its words. `paths`: names or globs.
    Raises UsageError where no path has the name.
    """
    chosen = history["path"].map(lambda path: any(fnmatchcase(path, glob) for glob in paths or ["*"]))
    if not chosen.any():
        raise UsageError(f"the history has no path {' or '.join(paths or ['at all'])}")
    rows = history[chosen.astype(bool)].sort_values("run", kind="stable").reset_index(drop=True)
    before = rows.groupby(SERIES)[[*FIGURES, *VERSIONS, "run"]].shift()
    first = before["run"].isna()
    same = (rows[FIGURES] == before[FIGURES]).fillna(False) | (rows[FIGURES].isna() & before[FIGURES].isna())
    changed = ~same.all(axis=1) & ~first
    rows["versions"] = [_versions(*pair) for pair in zip(_records(before), _records(rows), strict=True)]
    rows["changes"] = _changes(rows, before)
    begins = first | changed | (rows["versions"] != "")
    stretch = rows.groupby([*(rows[name] for name in SERIES), begins.groupby([rows[n] for n in SERIES]).cumsum()])
    rows["runs"], rows["until"] = stretch["run"].transform("size"), stretch["created"].transform("last")
    return rows[begins]


def text(rows: pd.DataFrame) -> str:
    """`stretches` for a person: a block a series, the one that changed last at the end."""
    lines: list[str] = []
    newest = rows["run"].where(rows["changes"].map(bool), 0).groupby([rows[name] for name in SERIES]).transform("max")
    for _, series in rows.iloc[newest.argsort(kind="stable")].groupby(SERIES, sort=False):
        path, dtype, device, n = series[[*SERIES[:3], "n"]].iloc[-1]
        lines.append(f"{path} {dtype} {device}, {n:,} results")
        lines += [f"  ... {len(series) - SHOWN} earlier changes"] if len(series) > SHOWN else []
        lines += [line for row in series.tail(SHOWN).to_dict("records") for line in _lines(row)]
    worse = sum(change["worse"] for changes in rows["changes"] for change in changes)
    return "\n".join([*map(plain, lines), f"{rows[SERIES].drop_duplicates().shape[0]} series, {worse} times worse"])


def _lines(row: dict[Hashable, Any]) -> list[str]:
    figures = (
        f"median {row['scaled_error_median']:.3g} u, 99th percentile {row['scaled_error_p99']:.3g} u, "
        f"{row['correct_bits_median']:.1f} bits, {row['negative_share']:.1%} negative, {row['non_finite']} not finite"
    )
    until = f" to {row['until'][:16]}, {row['runs']} runs" if row["runs"] > 1 else ""
    changes = [f"    {'WORSE ' if change['worse'] else ''}{told(change)}" for change in row["changes"]]
    versions = row["versions"] or "no version changed"
    return [f"  {row['created'][:16]}{until}: {figures}", f"    {versions}", *changes]


def _records(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    return table[["run", *VERSIONS]].to_dict("records")


def _versions(before: dict[Hashable, Any], after: dict[Hashable, Any]) -> str:
    if pd.isna(before["run"]):
        return ", ".join(f"{name} {after[name]}" for name in VERSIONS if after[name])
    return ", ".join(f"{v} {before[v]} -> {after[v]}" for v in VERSIONS if before[v] != after[v])


def _changes(rows: pd.DataFrame, before: pd.DataFrame) -> pd.Series:
    """What a comparison says of each row that has one `before`."""
    pairs = rows.drop(columns=FIGURES).assign(kind_before=rows["kind"], where=rows.index)
    for side, table in (("before", before), ("after", rows)):
        pairs = pairs.join(table[FIGURES].add_suffix(f"_{side}"))
    found: dict[Hashable, Changes] = {}
    for change in changed_errors(pairs[before["run"].notna()]):
        found.setdefault(change["where"], []).append(change | dict.fromkeys(("path", "dtype", "device", "where")))
    return pd.Series([found.get(row, []) for row in rows.index], dtype=object)
