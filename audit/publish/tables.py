"""Tables to CSV and back, bit for bit."""

from __future__ import annotations

import hashlib
import pathlib
import re

import numpy as np
import pandas as pd

from audit.base.kinds import GATED
from audit.base.usage import UsageError
from audit.publish.schema import FLOAT, INTEGER, SCHEMAS, TEXT, check, typed

# Columns of text that a user may have chosen; where it begins so, a spreadsheet would compute it, or hide the mark.
_NAMES = {"case", "path", "note", "acknowledged_by", "reason", "cases"}
_FORMULA = re.compile(r"^(?=[=+\-@'])")
SUMMARISED = [
    "case", "path", "reduction", "dtype", "device", "kind", "row", "computed", "scaled_error", "correct_bits",
    "negative", "false_zero", "result_class", "within_bound",
]  # fmt: skip
_GROUP = ["case", "path", "reduction", "dtype", "device", "kind"]


def write_csv(frame: pd.DataFrame, file: pathlib.Path, name: str) -> None:
    """Writes the table `name`. Numbers are the shortest decimals that read back to the same binary64 value.

    A computed NaN is written "nan"; an undefined number is an empty field. A name that a spreadsheet would take for a
    formula begins with an apostrophe, which `read_table` takes away again.
    Raises ValueError where the frame does not match the table's columns.
    """
    check(frame, name)
    if "computed" in frame:
        text = frame["computed"].map(float.__repr__)
        if "note" in frame:
            kept = frame["result_class" if "result_class" in frame else "symptom"]
            text = text.where(kept != "not_computed", "")
        frame = frame.assign(computed=text)
    for column in _NAMES & set(frame):
        frame = frame.assign(**{column: frame[column].str.replace(_FORMULA, "'", regex=True)})
    frame.to_csv(file, index=False, lineterminator="\n", encoding="utf-8")


def read_table(folder: str | pathlib.Path, name: str) -> pd.DataFrame:
    """The table `name` of a report as a DataFrame, every column with its dtype and every number as it was.

    `folder` is the report, or the table's file. Text columns are "" where a field is empty, numbers NaN, integers and
    flags <NA>. Raises UsageError, a ValueError, for a name that is no table, and a missing or foreign file.
    """
    if name not in SCHEMAS:
        raise UsageError(f"unknown table {name!r}: there are {', '.join(SCHEMAS)}")
    file = pathlib.Path(folder)
    file = file / f"{name}.csv" if file.is_dir() else file
    columns = SCHEMAS[name]
    try:
        text = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read as {name}.csv: {error}") from None
    if missing := [c.name for c in columns if c.name not in text]:
        raise UsageError(f"{file}: not a {name}.csv of this audit: it has no column {', '.join(missing)}")
    try:
        for name_ in _NAMES & set(text):
            text[name_] = text[name_].str.removeprefix("'")
        return pd.DataFrame({c.name: _from_text(text[c.name], c.dtype) for c in columns})
    except (ValueError, KeyError) as error:
        raise UsageError(f"{file}: not a {name}.csv of this audit: {error}") from None


def _from_text(series: pd.Series, dtype: str) -> pd.Series:
    if dtype == TEXT:
        return series
    if dtype == FLOAT:
        # Python's own float() rounds correctly and reads nan, inf and -0.0.
        return series.map(lambda field: float(field) if field else float("nan")).astype("float64")
    if dtype == INTEGER:
        return series.map(lambda field: int(field) if field else pd.NA).astype("Int64")
    return series.map({"True": True, "False": False, "": pd.NA}).astype("boolean")


def read_errors(path: str | pathlib.Path) -> pd.DataFrame:
    """errors.csv of a report folder, or such a file, as `read_table` gives it; its references are text of 50 digits."""
    return read_table(path, "errors")


def summarise(errors: pd.DataFrame) -> pd.DataFrame:
    """The rows of summary.csv from those of errors.csv, in order of first appearance."""
    given = errors.assign(
        order=errors["row"].fillna(-1).astype("int64"),
        non_finite=~errors["result_class"].isin(["finite", "not_computed"]),
        finding=(~errors["within_bound"].fillna(True)).astype(bool) & errors["kind"].isin(GATED),
    )
    groups = given.groupby(_GROUP, sort=False, observed=True)
    summary = groups.agg(
        n=("computed", "size"),
        scaled_error_median=("scaled_error", "median"),
        scaled_error_max=("scaled_error", "max"),
        correct_bits_median=("correct_bits", "median"),
        negative_share=("negative", "mean"),
        false_zero_share=("false_zero", "mean"),
        non_finite=("non_finite", "sum"),
        findings=("finding", "sum"),
    )
    summary["scaled_error_p99"] = groups["scaled_error"].quantile(0.99)
    group = groups.ngroup().to_numpy()
    in_key_order = given["computed"].to_numpy(np.float64)[np.lexsort((given["order"], group))]
    summary["computed_digest"] = [_digest(part) for part in np.split(in_key_order, np.bincount(group).cumsum()[:-1])]
    return typed(summary.reset_index(), "summary")


def _digest(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    """Every NaN counts as the same one: its payload is no result."""
    data = np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes()
    return hashlib.sha256(data).hexdigest()
