"""A report: every table as CSV, environment.json, report.md and report.html; and its rows of history.csv beside it."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from itertools import count
from typing import Any

import numpy as np
import pandas as pd

from audit.base.text import markdown as escape
from audit.base.usage import UsageError
from audit.base.workers import Later
from audit.publish.answer import answer
from audit.publish.bench import NAME, read_bench
from audit.publish.figures import Plot, draw
from audit.publish.folder import report_folder
from audit.publish.matrix import MEDIANS, compared, grid
from audit.publish.page import page
from audit.publish.tables import described, read_table, summarise, typed, write_csv
from audit.publish.verdict import Tables, example, headline

RUNS = 500  # of some 160 rows each, in history.csv: 30 MB
# Only runs of the same inputs compare: each such series is told by itself.
SERIES = ["path", "dtype", "device", "input_digest"]
VERSIONS = ["torch", "driver", "model", "cpu_capability", "audit", "source"]


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
        run = run_rows(tables["errors"], environment)
        history = since(run, out)
        (folder / "report.html").write_text(page(tables, environment, drawn, history), encoding="utf-8")
    return add_run(run, out)


def markdown(tables: Tables, environment: Mapping[str, object]) -> str:
    """report.md: the answer for a pull request or an issue, a row a way, and what reproduces it."""
    told = answer(tables, environment)
    lines = [f"# {escape(told.verdict)}", "", escape(told.ran), ""]
    for question, said in told.questions:
        lines.append(f"- **{escape(question)}** " + "\\\n  ".join(map(escape, said.split("\n"))))
    for new in told.new.to_dict("records"):
        lines += ["", f"**New**: {escape(headline(new))}"]
        lines += [f"of {escape(new['cases'])}; {escape(example(new))}. findings.csv has a script that shows it."]
    columns, rows = grid(compared(tables))
    lines += ["", MEDIANS, "", "| way | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += ["| " + " | ".join(map(escape, row)) + " |" for row in rows]
    lines += ["", *(f"- Known limit: {escape(name)}: {escape(reason)}" for name, reason in told.limits)]
    return "\n".join([*lines, "", *told.thread, "", escape(str(environment.get("command", ""))), ""])


def add_run(rows: pd.DataFrame, out: pathlib.Path) -> str:
    """Adds a run's `run_rows` to the history beside its report `out`, of which the newest RUNS stay.

    Runs that end at once wait for each other, and the file is replaced as a whole. One that is no history, or has an
    older one's columns, is set aside, which the text that is returned says; else it is empty. Raises UsageError where
    it cannot be written.
    """
    remark = ""
    file = pathlib.Path(os.path.abspath(out)).parent / "history.csv"
    try:
        with file.with_name(".history.lock").open("w") as lock:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            history = typed(pd.DataFrame(), "history")
            try:
                history = read_table(file, "history") if file.exists() else history
            except UsageError:
                names = (file.with_name(f"history.csv.old{number or ''}") for number in count())
                aside = file.rename(next(name for name in names if not name.exists()))
                remark = f"{file} was no history as this audit writes it: it is now {aside.name}, and a new one begins"
            rows = rows.assign(run=1 + history["run"].max() if len(history) else 1).astype({"run": "Int64"})
            history = pd.concat([history[history["run"] > rows["run"].max() - RUNS], rows], ignore_index=True)
            partial = file.with_name(".history.partial")  # what a killed run left there is overwritten
            write_csv(history, partial, "history")
            partial.replace(file)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}") from None
    return remark


def since(new: pd.DataFrame, out: pathlib.Path) -> pd.DataFrame:
    """Of each row of `run_rows` of a run to be written to `out`: for how many runs of the history beside it, and
    since when, the numbers are what they are; the medians of scaled_error now and before; what changed with them.
    """
    try:
        old = read_table(pathlib.Path(os.path.abspath(out)).parent, "history")
    except UsageError:
        old = new.iloc[:0]
    told = []
    for key, series in pd.concat([old.merge(new[SERIES]), new]).groupby(SERIES, sort=False, dropna=False):
        changed = np.flatnonzero(series["computed_digest"] != series["computed_digest"].iloc[-1])
        begins = changed[-1] + 1 if len(changed) else 0
        first, before = series.iloc[begins], series.iloc[begins - 1] if begins else None
        row = {**dict(zip(SERIES, key, strict=True)), "runs": len(series) - begins, "since": first["created"]}
        row |= {"median error": first["scaled_error_median"], "before": np.nan, "what changed": ""}
        if before is not None:
            moved = [f"{v} {before[v]} -> {first[v]}" for v in VERSIONS if before[v] != first[v]]
            row |= {"before": before["scaled_error_median"], "what changed": ", ".join(moved) or "no version"}
        told.append(row)
    return pd.DataFrame(told).drop(columns="input_digest")


def run_rows(errors: pd.DataFrame, environment: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a run in history.csv: one a path, dtype and device, its number still to be given."""
    key, torch = ["path", "dtype", "device"], environment.get("torch", {})
    errors = errors.sort_values(["case", "reduction"], kind="stable")
    digests = errors.groupby(key, sort=False)["input_digest"]
    inputs = digests.agg(lambda given: sha256("".join(sorted(given)).encode()).hexdigest())
    rows = summarise(errors.assign(case="", reduction="")).join(inputs, on=key)
    models = {device["name"]: device["model"] for device in environment.get("devices", ())}
    versions = {name: environment.get(name) for name in ("created", "audit", "driver")}
    versions |= {"torch": torch.get("version"), "cpu_capability": torch.get("cpu_capability")}
    sources = rows["path"].map(environment.get("sources", {}))
    return typed(rows.assign(run=0, model=rows["device"].map(models), source=sources, **versions), "history")
