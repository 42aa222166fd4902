"""What a finding's script prints when a user runs it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[[str], tuple[float, float]]:
    """Runs the text in an empty folder; returns the computed and the exact value it prints."""

    def run(script: str) -> tuple[float, float]:
        file = tmp_path / "reproduce.py"
        file.write_text(script)
        answer = subprocess.run([sys.executable, file], capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert answer.returncode == 0, answer.stderr
        computed, exact = (float(line.split()[1]) for line in answer.stdout.splitlines())
        return computed, exact

    return run
