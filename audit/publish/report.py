"""A report folder: every table as CSV and environment.json, put in place as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pandas as pd

from audit.errors import UsageError
from audit.publish.bench import NAME, read_bench
from audit.publish.figures import draw
from audit.publish.folder import report_folder
from audit.publish.markdown import markdown
from audit.publish.page import page
from audit.publish.tables import write_csv
from audit.workers import Submit, later


def write_report(
    tables: Mapping[str, pd.DataFrame], environment: Mapping[str, object], out: Path, submit: Submit = later
) -> None:
    """Replaces `out`; a failure on the way leaves it as it was. Plots may be drawn by other processes.

    Raises UsageError where `out` holds something other than a report.
    """
    with report_folder(out) as folder:
        drawn = dict(tables)
        with suppress(UsageError):  # an audit does not fail for what an interrupted benchmark left
            drawn["bench"] = read_bench(out.parent / NAME)
        plots = draw(drawn, submit)
        for name, table in tables.items():
            write_csv(table, folder / f"{name}.csv", name)
        (folder / "report.md").write_text(markdown(tables, environment), encoding="utf-8")
        (folder / "environment.json").write_text(json.dumps(environment, indent=2, ensure_ascii=False) + "\n")
        for name, plot in plots().items():
            (folder / f"{name}.svg").write_text(plot.file, encoding="utf-8")
        (folder / "report.html").write_text(page(tables, environment, plots()), encoding="utf-8")
