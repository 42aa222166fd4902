"""Installed from a wheel, the package works anywhere: names, console script, references."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audit.reference.gold import COMMITTED_GOLD, read_records

ROOT = Path(__file__).parents[1]
RUN = ("run", "--profile", "quick", "--case", "random_scale1", "--path", "log_softmax", "--workers", "1",
       "--device", "cpu")  # fmt: skip
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where a wheel, made from a copy of the tree, is installed without what it depends on."""
    setuptools = pytest.importorskip("setuptools")
    pytest.importorskip("pip")
    if tuple(map(int, setuptools.__version__.split(".")[:2])) < (70, 1):
        pytest.importorskip("wheel")  # which makes wheels for an older one
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    shutil.copytree(ROOT / "audit", tree / "audit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "references", tree / "references")
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, tree)
    for command in (
        ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, tree],
        [
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--find-links",
            folder,
            "--target",
            folder / "site",
            "kl-audit",
        ],
    ):
        subprocess.run([*PIP, *command], check=True, capture_output=True, cwd=folder, timeout=120)
    return folder / "site"


def call(installed: Path, cwd: Path, *command: object) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(installed)}
    command = (sys.executable, *command)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_it_is_imported_anywhere_and_has_every_reference(installed: Path, tmp_path: Path) -> None:
    script = """
import audit
from audit.reference.gold import COMMITTED_GOLD, read_records
print(audit.__file__, len(read_records(COMMITTED_GOLD)), audit.exact_kl([0.0, 1.0], [1.0, 0.0]) > 0)
"""
    answer = call(installed, tmp_path, "-c", script)
    assert answer.stdout.split() == [
        str(installed / "audit/__init__.py"),
        str(len(read_records(COMMITTED_GOLD))),
        "True",
    ]


def test_every_file_of_the_package_is_in_the_wheel(installed: Path) -> None:
    files = {
        f.relative_to(ROOT) for f in (ROOT / "audit").rglob("*") if f.is_file() and f.parent.name != "__pycache__"
    } | {Path("audit") / f.relative_to(ROOT) for f in (ROOT / "references").glob("*.csv")}
    assert {str(f) for f in files if not (installed / f).is_file()} == set()


def test_the_console_script_audits_with_the_references_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    answer = call(installed, tmp_path, installed / "bin" / "kl-audit", *RUN)
    assert answer.returncode == 0, answer.stderr
    script = 'import audit; print({*audit.read_table("reports/latest", "errors")["reference_source"]})'
    assert call(installed, tmp_path, "-c", script).stdout.strip() == "{'gold'}"


def test_where_there_are_no_references_one_line_says_so(installed: Path, tmp_path: Path) -> None:
    answer = call(installed, tmp_path, "-m", "audit", "references", "verify", "--folder", tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert len(answer.stderr.splitlines()) == 1 and "has no gold.csv" in answer.stderr
    answer = call(installed, tmp_path, "-m", "audit", *RUN, "--references", tmp_path, "--out", tmp_path / "out")
    assert answer.returncode == 0, answer.stderr
    assert "every reference was computed" in " ".join((answer.stdout + answer.stderr).split())
