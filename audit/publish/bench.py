"""bench.json, as pytest-benchmark writes it: read as a table, and measured again."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile

import pandas as pd

from audit.base.usage import UsageError
from audit.publish.tables import typed

ROOT = pathlib.Path(__file__).parents[2]
STDERR = 2
NAME = "bench.json"
KEY = ["path", "dtype", "device", "rows", "classes", "direction"]


def bench_file(report: pathlib.Path) -> pathlib.Path:
    """Where a report's benchmarks are: within a baseline, beside a report, which a later audit replaces as a whole."""
    return report / NAME if (report / NAME).exists() else report.parent / NAME


def read_bench(file: pathlib.Path) -> pd.DataFrame:
    """The benchmarks of paths in a bench.json, with the columns of table `bench`; `.attrs` has the version of torch.

    `seconds` is a call's median. Raises UsageError for a file that cannot be read as one.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        benchmarks = [b for b in content["benchmarks"] if "ratio" in b["extra_info"]]
        rows = [{**b["params"], "seconds": b["stats"]["median"], **b["extra_info"]} for b in benchmarks]
        bench = typed(pd.DataFrame(rows), "bench")
        bench.attrs["torch"] = content.get("machine_info", {}).get("torch")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file}: cannot be read as the benchmarks of `make bench`: {error!r}") from None
    return bench.assign(pareto=pareto(bench))


def pareto(bench: pd.DataFrame) -> pd.Series:
    """Which paths no other path of the same size, dtype, device and direction beats in both time and correct bits."""
    least = float("-inf")
    order = bench.sort_values(["seconds", "correct_bits"], ascending=[True, False])
    alike = [order[name] for name in KEY[1:]]
    # The most bits of those that are faster.
    most = order["correct_bits"].fillna(least).groupby(alike).cummax().groupby(alike).shift(fill_value=least)
    return (order["correct_bits"] > most).reindex(bench.index).astype("boolean")


def measure_again(suspects: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `bench` with the keys of `suspects`, measured now.

    Raises UsageError where they cannot be: the benchmarks are in the repository's tests, and need pytest-benchmark.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / NAME
        names = suspects[KEY].astype(str).agg("-".join, axis=1)
        tests = [f"tests/benchmarks/bench_paths.py::bench_path[{name}]" for name in names]
        command = [sys.executable, "-m", "pytest", f"--benchmark-json={out}", *tests]
        status = subprocess.run(command, cwd=ROOT, stdout=STDERR, check=False).returncode
        if status > 1 or not out.exists():
            raise UsageError(f"{len(tests)} benchmarks look slower and cannot be repeated: see above")
        return read_bench(out)
