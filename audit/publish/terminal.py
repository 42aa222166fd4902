"""What a person sees: progress while it runs, then the few tables that answer, then where the files are."""

from __future__ import annotations

import os
import pathlib
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from audit.base.kinds import GATED, LOSSY
from audit.base.text import plain
from audit.publish.answer import LIMITS, answer
from audit.publish.matrix import compared, grid
from audit.publish.verdict import counted, example, headline


def console() -> Console:
    """Standard output; plain text where it is no terminal or NO_COLOR is set."""
    # rich's own NO_COLOR keeps bold and italics.
    return Console(highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto")


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of `total` steps; the callable names the step that begins. Shows nothing where there is no terminal."""
    columns = (TextColumn("{task.description:32s}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        yield lambda description: bar.update(task, description=description, advance=1)


def say(console: Console, text: str) -> None:
    """Prints it as it is: brackets are no markup, no character is a command, a long line is the terminal's to fold."""
    console.print("\n".join(map(plain, text.split("\n"))), soft_wrap=True, markup=False, highlight=False)


def tell(console: Console, text: str, indent: str = "") -> None:
    """Prints sentences, folded between words; a line's own indent is kept."""
    for line in text.split("\n"):
        said = line.lstrip(" ")
        lead = indent + " " * (len(line) - len(said))
        fold = textwrap.TextWrapper(console.width, lead, lead, break_long_words=False, break_on_hyphens=False)
        say(console, fold.fill(plain(said)))


def show(
    tables: Mapping[str, pd.DataFrame], environment: Mapping[str, Any], folder: pathlib.Path, console: Console
) -> None:
    """The matrix, the findings, then the answer, which is what stays on the screen; last where the files are."""
    errors, told = tables["errors"], answer(tables, environment)
    show_matrix(compared(tables), console)
    for finding in (
        told.new.to_dict("records") if not environment.get("kernels") else ()
    ):  # of those the verdict says it
        row = "" if pd.isna(finding["row"]) else f" row {finding['row']}"
        say(
            console,
            f"FINDING {headline(finding)}, as in {finding['case']}{row}: {example(finding)}; findings.csv has a script "
            "that reproduces it",
        )
    uncomputed = errors[(errors["result_class"] == "not_computed") & errors["kind"].isin(GATED)]
    for note, count in uncomputed["note"].value_counts().items():
        say(console, f"not computed: {counted(count, 'result')}: {note}")
    for text in told.thread:
        tell(console, text)
    say(console, f"\n{told.verdict}")
    tell(console, told.ran)
    for question, said in told.questions:
        say(console, f"\n{question}")
        tell(console, said, "  ")
    known = dict(told.limits)
    if lossy := known.pop(LOSSY, ""):
        tell(console, f"\nlossy: {lossy}")
    if known:
        limits = counted(len(known), "known limit")
        explained = "" if environment.get("kernels") else f", explained in {LIMITS}"
        tell(console, f"\n{limits}, listed in {folder / 'report.md'}{explained}")
    tables_written = counted(sum(1 for _ in folder.glob("*.csv")), "table")
    say(console, f"\nwritten: {folder / 'report.html'} to read, and {tables_written} beside it")


def show_matrix(results: pd.DataFrame, console: Console) -> None:
    """A row a way, the best first, a table a device."""
    for device in results["device"].unique():
        columns, rows = grid(results[results["device"] == device])
        if not rows:
            continue
        # Four dtypes fit 80 columns, and a long path's name is folded before any number is cut.
        title = f"Ways of computing KL on {device}: correct bits, % negative"
        table = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False)
        table.add_column("way", overflow="fold")
        for name in columns:
            table.add_column(name.removesuffix(f" {device}"), justify="right", no_wrap=True, min_width=11)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)


def show_thread(thread: pd.DataFrame, console: Console) -> None:
    """A row a quote: the measured median magnitude, and the percentile of it where the quote stands.

    Beside today's torch stand the kernels of the thread's time, emulated.
    """
    for device, rows in thread.assign(cell=thread.apply(_measured, axis=1)).groupby("device", sort=False):
        title = f"The thread's numbers on {device}: median |x| here, percentile p of the quote"
        table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
        for name, width in (("subject", 25), ("quoted", 11), ("today", None), ("2017 kernels", None)):
            table.add_column(name, no_wrap=True, max_width=width, min_width=width)
        for (subject, quoted), pair in rows.groupby(["subject", "quoted"], sort=False):
            cells = pair.set_index("implementation")["cell"]
            table.add_row(str(subject), str(quoted), cells.get("today", ""), cells.get("thread_era", ""))
        console.print(table)


def _measured(row: pd.Series) -> str:
    size = "" if pd.isna(row["median_magnitude"]) else f"{row['median_magnitude']:.1e} "
    percentile = "" if pd.isna(row["percentile"]) else f"p{row['percentile']:.0f} "
    return f"{size}{percentile}{'sign' if row['reproduced'] == 'mechanism' else row['reproduced']}"
