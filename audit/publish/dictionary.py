"""docs/tables.md, made from the one schema: `python -m audit.publish.dictionary > docs/tables.md`."""

from __future__ import annotations

from audit.publish.schema import SCHEMAS

_HEAD = """# The tables

Every CSV of a report, column by column. `read_errors` gives errors.csv back with these dtypes; other tools read the
numbers as the shortest decimals of binary64, and `reference` and `exact_kl` as text.

```python
import pandas as pd

errors = pd.read_csv("reports/latest/errors.csv", dtype={"reference": str, "exact_kl": str})
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
