"""The runs of history.csv, one after another: where a number changed, and which version had changed with it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import pandas as pd

from audit.base.text import plain
from audit.base.usage import choose
from audit.publish.report import SERIES, VERSIONS
from audit.regress.changes import told
from audit.regress.comparison import COLUMNS, METRICS, Changes, changed_errors

FIGURES = [*METRICS, "n", "computed_digest"]
SHOWN = 10
VANISHED: dict[Hashable, Any] = {**dict.fromkeys(COLUMNS), "worse": True, "what": "nothing is computed any more"}


def stretches(history: pd.DataFrame, paths: list[str] | None = None) -> pd.DataFrame:
    """The rows of table `history` whose results, or versions, are not those of the run before: a row a stretch.

    `runs` and `until` say how many it spans, and when the last was; `versions` which changed with its first, or all of
    a series' first; `changes` holds what a comparison with the run before says, in its words. `paths`: names or globs.
    Raises UsageError where no path has the name.
    """
    chosen = history["path"].isin(choose(paths, list(history["path"].unique()), "path"))
    rows = history[chosen].sort_values("run", kind="stable").reset_index(drop=True)
    before = rows.groupby(SERIES)[[*FIGURES, *VERSIONS, "run"]].shift()
    first = before["run"].isna()
    changed = rows["computed_digest"] != before["computed_digest"]
    pairs = zip(first, before[VERSIONS].to_numpy(), rows[VERSIONS].to_numpy(), strict=True)
    rows["versions"] = [", ".join(_versions(*pair)) for pair in pairs]
    rows["changes"] = _changes(rows, before)
    begins = changed | (rows["versions"] != "")
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
    """The runs of a stretch with their figures, and what had changed with the first."""
    until = f" to {row['until'][:16]}, {row['runs']} runs" if row["runs"] > 1 else ""
    figures = (
        f"median {row['scaled_error_median']:.3g} u, 99th percentile {row['scaled_error_p99']:.3g} u, "
        f"{row['correct_bits_median']:.1f} bits, {row['negative_share']:.1%} negative, {row['non_finite']} not finite"
    )
    if pd.isna(row["negative_share"]):
        figures = "nothing was computed"
    changes = [f"    {'WORSE ' if change['worse'] else ''}{told(change)}" for change in row["changes"]]
    begun = f"  run {row['run']}, {row['created'][:16]}{until}: {figures}"
    return [begun, f"    {row['versions'] or 'no version changed'}", *changes]


def _versions(first: bool, before: Iterable[str], after: Iterable[str]) -> Iterator[str]:
    for name, old, new in zip(VERSIONS, before, after, strict=True):
        if old != new and (new or not first):
            yield f"{name} {new}" if first else f"{name} {old or 'none'} -> {new or 'none'}"


def _changes(rows: pd.DataFrame, before: pd.DataFrame) -> pd.Series:
    """What a comparison says of each row that has one `before`."""
    pairs = rows.drop(columns=FIGURES).assign(kind_before=rows["kind"], where=rows.index)
    for side, table in (("before", before), ("after", rows)):
        pairs = pairs.join(table[FIGURES].add_suffix(f"_{side}"))
    # Over cases of few and of many correct bits their median stands between two cases, and judges neither.
    pairs = pairs.assign(correct_bits_median_before=float("nan"), correct_bits_median_after=float("nan"))
    pairs = pairs[pairs["negative_share_before"].notna()]
    lost = pairs["negative_share_after"].isna()
    found: dict[Hashable, Changes] = {row: [VANISHED] for row in pairs.index[lost]}
    for change in changed_errors(pairs[~lost]):
        found.setdefault(change["where"], []).append(change | dict.fromkeys(("path", "dtype", "device", "where")))
    return pd.Series([found.get(row, []) for row in rows.index], dtype=object)
