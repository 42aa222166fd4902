"""A report folder: every table as CSV, environment.json, report.md and report.html, put in place as a whole."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping
from contextlib import suppress

import pandas as pd

from audit.base.kinds import failing
from audit.base.text import markdown as escape
from audit.base.usage import UsageError
from audit.base.workers import Later
from audit.publish.answer import answer
from audit.publish.bench import NAME, read_bench
from audit.publish.figures import Plot, draw
from audit.publish.folder import report_folder
from audit.publish.history import add_run
from audit.publish.matrix import MEDIANS, grid
from audit.publish.page import page
from audit.publish.tables import described, typed, write_csv
from audit.publish.verdict import Tables, counted, example


def write_report(
    tables: Mapping[str, pd.DataFrame],
    environment: Mapping[str, object],
    out: pathlib.Path,
    plots: Later[dict[str, Plot]] | None = None,
    all_rows: Iterable[pd.DataFrame] = (),
) -> str:
    """Replaces `out`, which a failure on the way leaves as it was, and adds the run to the history beside it.

    What is returned says whether another file had to make way for the history; else it is empty.

    `plots` are of the tables, if they were begun before; `all_rows` parts of errors.csv, to be written as Parquet.
    Raises UsageError where `out` holds something other than a report.
    """
    with report_folder(out) as folder:
        for name, table in tables.items():
            write_csv(table, folder / f"{name}.csv", name)
        for number, part in enumerate(all_rows):
            (folder / "all_rows").mkdir(exist_ok=True)
            typed(part, "errors").to_parquet(folder / "all_rows" / f"{number:06d}.parquet", index=False)
        write_csv(described([*tables, "columns"]), folder / "columns.csv", "columns")
        (folder / "report.md").write_text(markdown(tables, environment), encoding="utf-8")
        (folder / "environment.json").write_text(
            json.dumps(environment, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        drawn = (plots or draw(tables))()
        with suppress(UsageError):  # an audit does not fail for what an interrupted benchmark left
            drawn |= draw({"bench": read_bench(out.parent / NAME)})()
        for name, plot in drawn.items():
            (folder / f"{name}.svg").write_text(plot.file, encoding="utf-8")
        (folder / "report.html").write_text(page(tables, environment, drawn), encoding="utf-8")
    return add_run(tables["errors"], environment, out)


def markdown(tables: Tables, environment: Mapping[str, object]) -> str:
    """report.md: the answer for a pull request or an issue, a row a way, and what reproduces it."""
    told = answer(tables, environment)
    lines = [f"# {escape(told.verdict)}", "", escape(told.ran), ""]
    for question, said in told.questions:
        lines.append(f"- **{escape(question)}** " + "\\\n  ".join(map(escape, said.split("\n"))))
    for f in failing(tables["findings"]).to_dict("records"):
        what = f"{escape(f['path'])} {f['dtype']} {f['device']}, {f['symptom']}, {counted(f['results'], 'result')}"
        lines += ["", f"**New**: {what}"]
        lines += [f"of {escape(f['cases'])}; {escape(example(f))}. findings.csv has a script that shows it."]
    columns, rows = grid(tables["errors"])
    lines += ["", MEDIANS, "", "| way | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += ["| " + " | ".join(map(escape, row)) + " |" for row in rows]
    lines += ["", *(f"- Known limit: {escape(name)}: {escape(reason)}" for name, reason in told.limits)]
    return "\n".join([*lines, "", *told.thread, "", escape(str(environment.get("command", ""))), ""])
