"""Tables: their columns, as columns.csv has them, and their way to CSV and back, bit for bit.

`python -m audit.publish.tables > docs/tables.md` writes the columns for a reader.
"""

from __future__ import annotations

import csv
import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

from audit.base.kinds import GATED
from audit.base.usage import UsageError, check_word

SCHEMA_VERSION = 1
TEXT, INTEGER, FLOAT, BOOLEAN = "str", "Int64", "float64", "boolean"
# Python's own float() rounds correctly and reads nan, inf and -0.0.
_READ: dict[str, Callable[[str], object]] = {
    INTEGER: int, FLOAT: float, BOOLEAN: {"True": True, "False": False}.__getitem__
}  # fmt: skip
# Columns of text that a user may have chosen; where it begins so, a spreadsheet would compute it, or hide the mark.
_NAMES = {"case", "path", "note", "acknowledged_by", "reason", "cases"}
_FORMULA = re.compile(r"^(?=[=+\-@'])")
_GROUP = ["case", "path", "reduction", "dtype", "device", "kind"]
SUMMARISED = [
    *_GROUP, "row", "computed", "scaled_error", "correct_bits", "negative", "false_zero", "result_class",
    "within_bound",
]  # fmt: skip
_TITLE = """# The tables

Every CSV of a report, column by column; each is checked against this list before it is written. `audit.read_table`
gives each back with these dtypes; [loading.md](loading.md) has the same for pandas, polars, DuckDB and R.
"""


@dataclass(frozen=True)
class Column:
    """`dtype` as pandas reads it back; `empty` says when the field is."""

    name: str
    dtype: str
    meaning: str
    unit: str = ""
    empty: str = "never"


def _schemas() -> dict[str, list[Column]]:
    schemas: dict[str, list[Column]] = {}
    lines = (files("audit.publish") / "columns.csv").read_text(encoding="utf-8").splitlines()
    for line in csv.DictReader(lines):
        schemas.setdefault(line.pop("file").removesuffix(".csv"), []).append(Column(**line))
    return schemas


SCHEMAS = _schemas()


def described(names: Iterable[str]) -> pd.DataFrame:
    """The rows of columns.csv: what the columns of the tables `names` are, for whatever reads them."""
    rows = [vars(column) | {"file": f"{name}.csv"} for name in names for column in SCHEMAS[name]]
    return typed(pd.DataFrame(rows), "columns")


def dictionary() -> str:
    """The text of docs/tables.md."""
    parts = [_TITLE]
    for name, columns in SCHEMAS.items():
        parts.append(f"\n## {name}.csv\n\n| column | dtype | unit | meaning | empty |\n|---|---|---|---|---|\n")
        for c in columns:
            fields = (c.name, c.dtype, c.unit, c.meaning.replace("|", "\\|"), c.empty)
            parts.append(f"| {' | '.join(fields)} |\n")
    return "".join(parts)


def typed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The columns of table `name`, in order and of their dtypes; one that is not there is empty."""
    wanted = frame.reindex(columns=[c.name for c in SCHEMAS[name]])
    text = [c.name for c in SCHEMAS[name] if c.dtype == TEXT]
    wanted[text] = wanted[text].astype(object).where(wanted[text].notna(), "").astype(str)
    return wanted.astype({c.name: c.dtype for c in SCHEMAS[name] if c.dtype != TEXT})


def check(frame: pd.DataFrame, name: str) -> None:
    """Raises ValueError where a frame is not the table `name`: its columns in order, each of its dtype."""
    wanted = [c.name for c in SCHEMAS[name]]
    if list(frame.columns) != wanted:
        missing, extra = set(wanted) - set(frame.columns), set(frame.columns) - set(wanted)
        raise ValueError(f"{name}: missing {sorted(missing)}, unknown {sorted(extra)}, or in another order")
    for column in SCHEMAS[name]:
        series = frame[column.name]
        text = infer_dtype(series, skipna=False) in ("string", "empty")
        if not text if column.dtype == TEXT else str(series.dtype) != column.dtype:
            raise ValueError(f"{name}.{column.name}: expected {column.dtype}, got {series.dtype}")


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
    with np.errstate(invalid="ignore"):  # numpy 1.24 warns where it makes text of a NaN
        frame.to_csv(file, index=False, lineterminator="\n", encoding="utf-8")


def read_table(folder: str | pathlib.Path, name: str) -> pd.DataFrame:
    """The table `name` of a report as a DataFrame, every column with its dtype and every number as it was.

    `folder` is the report, or the table's file. Text columns are "" where a field is empty, numbers NaN, integers and
    flags <NA>. Raises UsageError, a ValueError, for a name that is no table, and a missing or foreign file.
    """
    check_word(name, SCHEMAS, "table")
    file = pathlib.Path(folder)
    file = file / f"{name}.csv" if file.is_dir() else file
    try:
        text = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read as {name}.csv: {error}") from None
    if missing := [c.name for c in SCHEMAS[name] if c.name not in text]:
        raise UsageError(f"{file}: not a {name}.csv of this audit: it has no column {', '.join(missing)}")
    try:
        for column in _NAMES & set(text):
            text[column] = text[column].str.removeprefix("'")
        return pd.DataFrame({c.name: _from_text(text[c.name], c.dtype) for c in SCHEMAS[name]})
    except (ValueError, KeyError) as error:
        raise UsageError(f"{file}: not a {name}.csv of this audit: {error}") from None


def _from_text(series: pd.Series, dtype: str) -> pd.Series:
    if dtype == TEXT:
        return series
    return pd.Series([_READ[dtype](field) if field else None for field in series], dtype=dtype)


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


if __name__ == "__main__":
    print(dictionary(), end="")
