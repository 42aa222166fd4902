"""docs/tables.md, made from the one schema: `python -m audit.publish.dictionary > docs/tables.md`."""

from __future__ import annotations

from audit.publish.schema import SCHEMAS

_HEAD = """# The tables

Every CSV of a report, column by column; each is checked against this list before it is written. `audit.read_errors`
gives errors.csv back with these dtypes, bit for bit. Other tools read the numbers as the shortest decimals of binary64;
`reference` and `exact_kl` have 50 digits and must be read as text.

pandas, which would read decimals a unit in the last place off, and a reference of `nan` as missing:

```python
import pandas as pd

text = dict.fromkeys(["reference", "exact_kl", "note"], "str")
flags = dict.fromkeys(["within_bound", "negative", "false_zero"], "boolean")
exact = {"float_precision": "round_trip", "keep_default_na": False, "na_values": [""]}
errors = pd.read_csv("reports/latest/errors.csv", dtype=text | flags | {"row": "Int64"}, **exact)
```

polars:

```python
import polars as pl

types = {"reference": pl.String, "exact_kl": pl.String, "computed": pl.Float64}
errors = pl.read_csv("reports/latest/errors.csv", schema_overrides=types, infer_schema_length=None)
```

DuckDB:

```python
import duckdb

text = {"reference": "VARCHAR", "exact_kl": "VARCHAR"}
errors = duckdb.read_csv("reports/latest/errors.csv", dtype=text, quotechar='"', sample_size=-1)
```

R:

```r
text <- c(reference = "character", exact_kl = "character")
flags <- c(within_bound = "logical", negative = "logical", false_zero = "logical")
errors <- read.csv("reports/latest/errors.csv", colClasses = c(text, flags))
```
"""


def dictionary() -> str:
    parts = [_HEAD]
    for name, columns in SCHEMAS.items():
        parts += [f"\n## {name}.csv\n\n| column | dtype | unit | meaning | empty |\n|---|---|---|---|---|\n"]
        for c in columns:
            meaning = c.meaning.replace("|", "\\|")
            parts.append(f"| {c.name} | {c.dtype} | {c.unit} | {meaning} | {c.empty} |\n")
    return "".join(parts)


if __name__ == "__main__":
    print(dictionary(), end="")
