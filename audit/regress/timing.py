"""Benchmarks, measured again."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile

import pandas as pd

from audit.base.usage import UsageError
from audit.publish.bench import KEY, NAME, read_bench

ROOT = pathlib.Path(__file__).parents[2]
STDERR = 2


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
