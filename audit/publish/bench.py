"""bench.json, as pytest-benchmark writes it, as a table and as plots of accuracy against time."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd

from audit.base.usage import UsageError
from audit.publish.tables import typed

NAME = "bench.json"
KEY = ["path", "dtype", "device", "rows", "classes", "direction"]


def bench_file(report: pathlib.Path) -> pathlib.Path:
    """Where a report's benchmarks are: within a baseline, beside a report, which a later audit replaces as a whole."""
    return report / NAME if (report / NAME).exists() else report.parent / NAME


def read_bench(file: pathlib.Path) -> pd.DataFrame:
    """The benchmarks of paths in a bench.json, with the columns of table `bench`.

    `seconds` is a call's median. Raises UsageError for a file that cannot be read as one.
    """
    with _readable(file) as content:
        benchmarks = [b for b in content["benchmarks"] if "ratio" in b["extra_info"]]
        rows = [{**b["params"], "seconds": b["stats"]["median"], **b["extra_info"]} for b in benchmarks]
        bench = typed(pd.DataFrame(rows), "bench")
        return bench.assign(pareto=pareto(bench))


def measured_with(file: pathlib.Path) -> str:
    """The version of torch that a bench.json was measured with. Raises UsageError as read_bench does."""
    with _readable(file) as content:
        return str(content["machine_info"]["torch"])


@contextmanager
def _readable(file: pathlib.Path) -> Iterator[Any]:
    try:
        yield json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file}: cannot be read as the benchmarks of `make bench`: {error!r}") from None


def pareto(bench: pd.DataFrame) -> pd.Series:
    """Which paths no other path of the same size, dtype, device and direction beats in both time and correct bits."""
    least = float("-inf")
    order = bench.sort_values(["seconds", "correct_bits"], ascending=[True, False])
    alike = [order[name] for name in KEY[1:]]
    # The most bits of those that are faster.
    most = order["correct_bits"].fillna(least).groupby(alike).cummax().groupby(alike).shift(fill_value=least)
    return (order["correct_bits"] > most).reindex(bench.index).astype("boolean")


def figure(bench: pd.DataFrame) -> Any:
    """A matplotlib figure of the rows given: a panel for each dtype and size, correct bits against time.

    The Pareto-best paths are named and joined; the others are grey. Give it one device and one direction.
    """
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(zip(bench["rows"], bench["classes"], strict=True)))
    dtypes = list(bench["dtype"].unique())
    drawn = Figure(figsize=(3.4 * len(dtypes), 2.6 * len(sizes)), layout="constrained")
    panels = drawn.subplots(len(sizes), len(dtypes), squeeze=False)
    for row, (rows, classes) in enumerate(sizes):
        for column, dtype in enumerate(dtypes):
            here = (bench["rows"] == rows) & (bench["classes"] == classes) & (bench["dtype"] == dtype)
            _panel(panels[row][column], bench[here].dropna(subset=["seconds", "correct_bits"]))
            panels[row][column].set_title(f"{dtype}, {rows:,} x {classes:,}", fontsize="small")
    drawn.supxlabel("time of a call, median", fontsize="small")
    drawn.supylabel("correct bits, median over rows", fontsize="small")
    return drawn


def _panel(axes: Any, bench: pd.DataFrame) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    best = bench[bench["pareto"]].sort_values("seconds")
    others = bench[~bench["pareto"]]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(EngFormatter(unit="s"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize="x-small", which="both")
    axes.plot(others["seconds"], others["correct_bits"], "o", color="0.6", markersize=3)
    axes.step(best["seconds"], best["correct_bits"], "o-", where="post", color="C0", markersize=5)
    for point in best.itertuples():
        axes.annotate(
            point.path, (point.seconds, point.correct_bits), (3, -3), textcoords="offset points", fontsize="x-small",
            va="top",
        )  # fmt: skip
    axes.margins(x=0.3, y=0.15)
