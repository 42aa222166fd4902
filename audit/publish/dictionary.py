"""docs/tables.md, made from the one schema: `python -m audit.publish.dictionary > docs/tables.md`."""

from __future__ import annotations

from audit.publish.schema import SCHEMAS

_HEAD = """# The tables

Every CSV of a report, column by column; each is checked against this list before it is written. `audit.read_table`
gives each back with these dtypes; [loading.md](loading.md) has the same for pandas, polars, DuckDB and R.
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
