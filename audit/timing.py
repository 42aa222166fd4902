"""Runs the benchmarks of tests/benchmarks, all or some of them again."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from audit.errors import UsageError
from audit.publish.bench import read_bench

ROOT = Path(__file__).parents[1]
STDERR = 2
FOLDER = ROOT / "tests" / "benchmarks"


def run_benchmarks(out: Path, only: Sequence[str] = (), stdout: int | None = None) -> bool:
    """Writes pytest-benchmark's JSON to `out`: of every benchmark, or of those that `only` names by their node ids.

    False where a benchmark failed; the others are written. Raises UsageError where they cannot be run.
    """
    if missing := [name for name in ("pytest", "pytest_benchmark") if find_spec(name) is None]:
        raise UsageError(
            f"the benchmarks need {', '.join(missing)}: {sys.executable} lacks them; `make bench` sets them up"
        )
    if not FOLDER.is_dir():
        raise UsageError(f"the benchmarks are in the repository, not in the package: there is no {FOLDER}")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / out.name
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
        command += ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*"]
        command += ["--benchmark-quiet", f"--benchmark-json={made}", *(only or [str(FOLDER)])]
        status = subprocess.run(command, cwd=ROOT, check=False, stdout=stdout).returncode
        if status > 1 or not made.exists():
            raise UsageError(f"the benchmarks could not be run: pytest ended with status {status}")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(made.read_bytes())
    return status == 0


def measure_again(suspects: pd.DataFrame) -> pd.DataFrame:
    """The rows of table `bench` of the paths, dtypes, devices, sizes and directions of `suspects`, measured now."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        names = suspects[["path", "dtype", "device", "rows", "classes", "direction"]].astype(str).agg("-".join, axis=1)
        run_benchmarks(out, [f"{FOLDER / 'bench_paths.py'}::bench_path[{name}]" for name in names], STDERR)
        return read_bench(out)
