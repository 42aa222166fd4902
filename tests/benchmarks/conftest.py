"""What bench.json holds beside pytest-benchmark's own, and what is made of it: a table, bench.csv."""

from pathlib import Path

import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from audit.publish.bench import read_bench
from audit.publish.tables import write_csv
from audit.publish.terminal import console


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    machine_info["torch"] = torch.__version__


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    """Keeps the statistics alone: the single rounds would be most of the file."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)


def pytest_terminal_summary(terminalreporter, exitstatus, config) -> None:
    json = config.getoption("benchmark_json")
    if json is None or exitstatus > 1:
        return
    file = json if isinstance(json, Path) else Path(json.name)  # an open file in older versions of pytest-benchmark
    bench = read_bench(file)
    written = [file, file.with_suffix(".csv")]
    write_csv(bench, written[1], "bench")
    for (device, direction), rows in bench.groupby(["device", "direction"], sort=False):
        show(rows[rows["pareto"]], f"{direction} on {device}: the Pareto-best paths, time and correct bits")
    print("written: " + ", ".join(map(str, written)))


def show(best: pd.DataFrame, title: str) -> None:
    """A row a size and dtype: its paths, the fastest first."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for name in ("rows x classes", "dtype"):
        table.add_column(name, no_wrap=True)
    table.add_column("fastest first")
    for (rows, classes, dtype), group in best.groupby(["rows", "classes", "dtype"], sort=False):
        points = group.sort_values("seconds").itertuples()
        paths = [f"{p.path} {duration(p.seconds)} {p.correct_bits:.0f}" for p in points]
        table.add_row(f"{rows} x {classes:,}", dtype, ", ".join(paths))
    console().print(table)


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
