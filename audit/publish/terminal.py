"""What a person sees: progress while it runs, then the few tables that answer, then where the files are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from audit.base.kinds import GATED
from audit.publish.answer import STARRED, comparable, example, sentences


def console() -> Console:
    """Standard output; plain text where it is no terminal or NO_COLOR is set."""
    # rich's own NO_COLOR keeps bold and italics.
    return Console(highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto")


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of `total` steps; the callable names the step that begins. Shows nothing where there is no terminal."""
    columns = (TextColumn("{task.description:32s}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        yield lambda description: bar.update(task, description=description, advance=1)


def say(console: Console, text: str) -> None:
    """Prints it as it is: brackets are no markup, and a long line is the terminal's to fold."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def show(tables: Mapping[str, pd.DataFrame], folder: Path, console: Console) -> None:
    """The drift by path and dtype, the thread's numbers, the answer in sentences, the findings, where the files are."""
    errors = tables["errors"]
    for device in errors["device"].unique():
        show_drift(errors[errors["device"] == device], str(device), console)
    if "thread" in tables:
        show_thread(tables["thread"], console)
    for sentence in sentences(tables):
        say(console, sentence)
    show_findings(tables["findings"], console)
    uncomputed = errors[(errors["result_class"] == "not_computed") & errors["kind"].isin(GATED)]
    for note, count in uncomputed["note"].value_counts().items():
        say(console, f"not computed: {count} results: {note}")
    new = int((tables["findings"]["status"] == "new").sum())
    say(console, f"{len(errors):,} results, {new} new findings")
    written = ", ".join(str(file) for file in sorted(folder.iterdir()))
    say(console, f"written: {written}")


def show_findings(findings: pd.DataFrame, console: Console) -> None:
    """Every new finding with its example and the script that reproduces it; lossy ones; acknowledged ones by reason."""
    for finding in findings[findings["status"] == "new"].to_dict("records"):
        row = "" if pd.isna(finding["row"]) else f" row {finding['row']}"
        say(
            console,
            f"FINDING {finding['path']} {finding['dtype']} {finding['device']}: {finding['symptom']}, "
            f"{finding['results']} results, as in {finding['case']}{row}: {example(finding)}; "
            "findings.csv has a script that reproduces it",
        )
    for finding in findings[findings["status"] == "lossy"].to_dict("records"):
        where = f"{finding['path']} {finding['dtype']} {finding['device']}"
        say(console, f"lossy: {where}: {finding['results']} results; in {finding['case']} {example(finding)}")
    for name, group in findings[findings["status"] == "acknowledged"].groupby("acknowledged_by", sort=False):
        paths = ", ".join(group["path"].unique())
        say(console, f"acknowledged: {name}: {group['results'].sum()} results of {paths}")


def show_drift(errors: pd.DataFrame, device: str, console: Console) -> None:
    """A row a path: the median magnitude of its drift in each dtype, and the share of negative results."""
    shown = comparable(errors)
    if shown.empty:
        return
    dtypes = list(shown["dtype"].unique())
    table = Table(
        title=f"Drift on {device}: median |computed - exact| of rows of logits, % negative",
        caption=f"* {STARRED}" if shown["label"].str.endswith("*").any() else None,
        box=SIMPLE_HEAD,
        padding=0,  # four dtypes fit 80 columns, and a long path's name is folded before any number is cut
        show_edge=False,
    )
    table.add_column("path", overflow="fold")
    for dtype in dtypes:
        table.add_column(str(dtype), justify="right", no_wrap=True, min_width=11)
    for label, rows in shown.groupby("label", sort=False):
        table.add_row(str(label), *(_cell(rows[rows["dtype"] == dtype]) for dtype in dtypes))
    console.print(table)


def _cell(rows: pd.DataFrame) -> str:
    measured = rows["abs_error"].dropna()
    if measured.empty:
        return "-"
    return f"{measured.median():.1e} {100 * float(rows['negative'].mean()):.0f}%"


def show_thread(thread: pd.DataFrame, console: Console) -> None:
    """A row a quote: the measured median magnitude, and the percentile of it where the quote stands.

    Beside today's torch stand the kernels of the thread's time, emulated.
    """
    for device, rows in thread.groupby("device", sort=False):
        table = Table(
            title=f"The thread's numbers on {device}: median |x| here, percentile p of the quote",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("subject", no_wrap=True, min_width=25)
        table.add_column("quoted", no_wrap=True, max_width=11)
        table.add_column("today", no_wrap=True)
        table.add_column("2017 kernels", no_wrap=True)
        for (subject, quoted), pair in rows.groupby(["subject", "quoted"], sort=False):
            cells = {str(row["implementation"]): _measured(row) for _, row in pair.iterrows()}
            table.add_row(str(subject), str(quoted), cells.get("today", ""), cells.get("thread_era", ""))
        console.print(table)


def _measured(row: pd.Series) -> str:
    size = "" if pd.isna(row["median_magnitude"]) else f"{row['median_magnitude']:.1e} "
    percentile = "" if pd.isna(row["percentile"]) else f"p{row['percentile']:.0f} "
    return f"{size}{percentile}{'sign' if row['reproduced'] == 'mechanism' else row['reproduced']}"
