"""Every way of computing beside the others: a row a way, a column a dtype and device."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from audit.base.formats import FORMATS
from audit.base.kinds import GATED

STABLE = "log_softmax"
MEDIANS = (
    "Median correct bits of the same rows of logits, and the share of negative values. A way that ran on other rows "
    f"stands beside what {STABLE} gives on those."
)
_COLUMNS = ["path", "dtype", "device", "results", "correct_bits", "negative", "against"]
Place = tuple[str, str]
Cell = Mapping[Hashable, Any]


def compared(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the matrix is made of: errors.csv, or the summary of all rows of a file of which that shows some."""
    errors, summary = tables["errors"], tables["summary"]
    return errors if len(errors) == summary["n"].sum() else summary


def matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Path x dtype and device, the best first: median correct bits and share of negative values, on the same rows.

    Those are the rows of logits that most paths of a dtype ran on. `against` is what STABLE has on the rows of a path
    that ran on others, else NaN. `table`: see `compared`.
    """
    judged = table[table["kind"].isin(GATED)]
    if "n" in table:
        names = {"n": "results", "correct_bits_median": "correct_bits", "negative_share": "negative"}
        return _ranked(judged.rename(columns=names).assign(against=np.nan))
    alike = judged["reduction"].eq("none") & judged["target_kind"].eq("logits")
    # What reduces, and where nothing is given as logits, whatever there is.
    others = ~alike.groupby(judged["path"]).transform("any") & (judged["target_kind"].eq("logits") | (not alike.any()))
    rows = judged[alike | others]
    parts = []
    for (device, dtype), group in rows.groupby(["device", "dtype"], sort=False):
        place = pd.MultiIndex.from_frame(group[["case", "row"]])
        sizes = group.groupby("path", sort=False).size()
        usual = sizes.index[sizes == sizes.mode().iloc[-1]][0]
        common = place[group["path"] == usual]
        for path, own in group.groupby("path", sort=False):
            mine = place[group["path"] == path]
            partial = not common.isin(mine).all()
            shown = own if partial else own[mine.isin(common)]
            there = group[group["path"].eq(STABLE) & place.isin(mine) & (partial and path != STABLE)]
            parts.append(
                {
                    "path": path,
                    "dtype": dtype,
                    "device": device,
                    "results": len(shown),
                    "correct_bits": shown["correct_bits"].dropna().median(),
                    "negative": shown["negative"].astype("float64").mean(),
                    "against": there["correct_bits"].dropna().median(),
                }
            )
    return _ranked(pd.DataFrame(parts, columns=_COLUMNS))


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    """The best first, those that ran on other rows last."""
    table = table[_COLUMNS]
    lost = table["dtype"].map({f.name: f.precision for f in FORMATS.values()}) - table["correct_bits"]
    rank = (lost + 1e3 * table["against"].notna()).fillna(1e4).groupby(table["path"]).transform("mean")
    return table.assign(rank=rank).sort_values("rank", kind="stable", ignore_index=True).drop(columns="rank")


def folded(table: pd.DataFrame) -> tuple[list[Place], list[tuple[list[str], list[Cell | None]]]]:
    """The matrix a row a way: its columns, a device and a dtype each; and the paths whose cells are all the same."""
    rows = matrix(table)
    columns = list(dict.fromkeys(zip(rows["device"], rows["dtype"], strict=True)))
    ways: dict[str, tuple[list[str], list[Cell | None]]] = {}
    for path, group in rows.drop(columns="path").groupby(rows["path"], sort=False):
        cells = {(cell["device"], cell["dtype"]): cell for cell in group.to_dict("records")}
        alike = repr(cells)
        ways.setdefault(alike, ([], [cells.get(column) for column in columns]))[0].append(str(path))
    return columns, list(ways.values())


def grid(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The matrix as text: what its columns are, and a row a way."""
    columns, ways = folded(table)
    return [f"{dtype} {device}" for device, dtype in columns], [[", ".join(p), *map(cell, cells)] for p, cells in ways]


def cell(found: Cell | None) -> str:
    """Bits, those of STABLE on the same rows where a path ran on others, and how many values are negative."""
    if found is None:
        return "–"
    bits = "–" if np.isnan(found["correct_bits"]) else f"{found['correct_bits']:.1f}"
    against = "" if np.isnan(found["against"]) else f" ({found['against']:.1f})"
    negative = "" if np.isnan(found["negative"]) else f" {found['negative']:.0%}"
    return bits + against + negative
