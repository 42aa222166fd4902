"""The figures that README and docs quote of a standard audit: `python docs/renew.py reports/latest` renews them.

docs/numbers.csv has a row a figure: the table it is from, the rows (a query of pandas), the column, the statistics over
it one after another, how it is written, and what that came to. A page quotes it before a comment with its name:
31 %<!-- negative-4 -->.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's audit, wherever it is called from

import audit  # noqa: E402

FILE = ROOT / "docs" / "numbers.csv"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUOTED = re.compile(r"([^\s*(|]+?(?: %)?)<!-- ([\w-]+) -->")


def read() -> list[dict[str, str]]:
    with open(FILE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(row: dict[str, str], table: pd.DataFrame) -> str:
    """A figure as it is quoted. Raises ValueError where the table has no such rows."""
    column = table.query(row["rows"])[row["column"]] if row["rows"] else table[row["column"]]
    if column.empty:
        raise ValueError(f"{row['name']}: {row['table']}.csv has no rows of {row['rows']}")
    for step in row["statistic"].split("."):
        column = column.iloc[0] if step == "first" else getattr(column, step)()
    text = format(float(column), row["form"]).replace("%", " %")
    return re.sub(r"^-", "−", re.sub(r"e([+-])0", r"e\1", text))


def renew(report: Path) -> None:
    """Writes every figure anew, into numbers.csv and the pages. Raises ValueError for a report that is not standard."""
    profile = json.loads((report / "environment.json").read_text(encoding="utf-8"))["profile"]
    if profile != "standard":
        raise ValueError(f"{report} is of the profile {profile}: the docs quote the standard audit")
    rows = read()
    tables = {name: audit.read_table(report, name) for name in {row["table"] for row in rows}}
    texts = {row["name"]: written(row, tables[row["table"]]) for row in rows}
    with open(FILE, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"text": texts[row["name"]]} for row in rows)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(QUOTED.sub(lambda m: f"{texts[m[2]]}<!-- {m[2]} -->", text), encoding="utf-8")


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
