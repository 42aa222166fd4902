"""Every command and every example of the README and the docs runs.

A page's blocks are run in order in one folder, Python in one namespace; a block whose first line names a file
(`# my_kernel.py`) is written there too. Always: the Python, and whether a command's target, options and modules exist.
Slowly (`-m slow`): the commands themselves, with the short profile; `# exit status 1:` beside one says what to expect.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

import audit
from audit import cases, paths
from audit.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"sh", "python", "r", "text", "", "ini", "yaml", "markdown"}
# Commands that are not run here, each with what runs it instead.
ELSEWHERE = {
    "make test": "is this very run",
    "make test-oldest": "is this very run, with older packages",
    "make test-slow": "is this very run",
    "make test-browser": "a job of its own in .ci/run",
    "make check": "part of make test",
    "make bench": "minutes; tests/benchmarks is what it runs",
    "make baseline": "an audit and a bench; tests/test_comparison.py records baselines",
    "make regress": "an audit and a bench; tests/test_comparison.py compares with baselines",
    "make exhaustive": "more than an hour; tests/explain/test_exhaustive.py begins and resumes it",
    "make references": "tests/reference/test_gold.py builds and verifies",
    "pip install": "needs a package index",
    "git clone": "needs a network",
    "cd": "no program",
}
FILES = "audit references .ci tests docs Makefile setup.py pyproject.toml requirements.txt requirements-oldest.txt"
FILES += " README.md CONTRIBUTING.md"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    for language, content in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M):
        assert language in LANGUAGES, f"{page.name}: a block of language {language!r}, which no one runs"
        yield language, content


def parse(words: list[str]) -> None:
    """Raises where a command names a target, a command, an option, a module or a script that is not there."""
    if words[0] == "cp":
        return
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert all(word in targets for word in words[1:] if "=" not in word), words
        return
    if words[0] == "python" and words[1:3] != ["-m", "audit"]:
        assert find_spec(words[2]) if words[1] == "-m" else (ROOT / words[1]).is_file(), words
        return
    assert words[:3] == ["python", "-m", "audit"] or words[0] == "kl-audit", words
    rest = words[1:] if words[0] == "kl-audit" else words[3:]
    group: Any = typer.main.get_command(app)
    command: Any = group.commands[rest[0]]
    command.make_parser(command.context_class(command)).parse_args(rest[1:])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small report, which pages read from as reports/latest."""
    folder = tmp_path_factory.mktemp("report")
    audit.run(profile="quick", cases="near_*", paths="*log_softmax", devices="cpu", out=folder / "latest")
    return folder


@pytest.fixture
def folder(report: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a page's reader stands; what the page registers is gone after it."""
    shutil.copytree(report, tmp_path / "reports")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module, name in ((cases, "CASES"), (paths, "PATHS")):
        module.registered()
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    yield tmp_path
    sys.modules.pop("my_kernel", None)


def follow(page: Path, folder: Path, do: Callable[[list[str], int], None]) -> None:
    """Runs the page's Python and hands its commands to `do`, each with its exit status."""
    names: dict[str, object] = {}
    for language, content in blocks(page):
        if file := re.match(r"# ([\w.]+)\n", content):
            (folder / file[1]).write_text(content)
        if language == "python":
            try:
                exec(content, names)
            except ModuleNotFoundError as error:
                assert error.name in ("polars", "duckdb", "jax"), error
        for line in content.splitlines() if language == "sh" else ():
            words = shlex.split(line, comments=True)
            if words and not any(words[: len(known.split())] == known.split() for known in ELSEWHERE):
                status = re.search(r"# exit status (\d):", line)
                do(words, int(status[1]) if status else 0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_run_and_the_commands_exist(page: Path, folder: Path) -> None:
    follow(page, folder, lambda words, _: parse(words))
    for span in re.findall(r"`((?:python -m audit|kl-audit|make) [^`]+)`", page.read_text()):
        parse(shlex.split(span))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_run(page: Path, folder: Path) -> None:
    for name in FILES.split():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHON": sys.executable, "PROFILE": "quick"}

    def run(words: list[str], status: int) -> None:
        answer = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert answer.returncode == status, f"{shlex.join(words)}: {answer.stdout[-2000:]}{answer.stderr[-2000:]}"

    follow(page, folder, run)


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
        for link in re.findall(r"\]\(([^)]+)\)", text):
            target, _, anchor = link.partition("#")
            if target.startswith("http"):
                continue
            file = (page.parent / target) if target else page
            assert file.exists(), f"{page.name}: {link}"
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.M) if file.suffix == ".md" else []
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not anchor or anchor in anchors, f"{page.name}: {link}"
