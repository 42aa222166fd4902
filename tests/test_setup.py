"""The picker of the interpreter, against ambient interpreters made for the purpose; nothing here needs a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ("torch", "mpmath", "pandas", "numpy", "matplotlib", "typer", "rich")
TORCH = "9.8.7+ambient"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    for name in ("pyproject.toml", "requirements.txt", "Makefile"):
        shutil.copy(ROOT / name, folder)
    return folder


def ambient(folder: Path, modules: tuple[str, ...]) -> Path:
    """A virtual environment whose python3 finds these modules, and whose torch says it is version TORCH."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for module in modules:
        (site / module).mkdir()
        (site / module / "__init__.py").touch()
        (site / module / "version.py").write_text(f"__version__ = '{TORCH}'\n")
        info = site / f"{module}-{TORCH if module == 'torch' else '1.0'}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {info.stem.split('-')[1]}\n")
    return folder / "bin" / "python3"


def wheel(folder: Path, name: str, version: str) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{name}/__init__.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def pick(project: Path, python: Path | None = None, **variables: object) -> subprocess.CompletedProcess[str]:
    """Runs the picker with `python` as the ambient python3 and no package index but the folder `wheels`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "VIRTUAL_ENV", "PYTHONPATH")}
    if python is not None:
        environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project / "wheels"), "PIP_CONFIG_FILE": os.devnull}
    environment |= {name: str(value) for name, value in variables.items()}
    return subprocess.run(
        ["sh", project / ".ci" / "interpreter.sh", "core"], env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_complete_ambient_interpreter_is_used_as_it_is(project: Path, tmp_path: Path) -> None:
    python = ambient(tmp_path / "ambient", CORE)
    answer = pick(project, python)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == str(python)
    assert str(python) in answer.stderr and TORCH in answer.stderr
    assert not (project / ".venv").exists()


def test_an_ambient_torch_stays_and_only_what_is_missing_is_installed(project: Path, tmp_path: Path) -> None:
    python = ambient(tmp_path / "ambient", CORE[:-1])
    pinned = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("rich=="))
    wheel(project / "wheels", "rich", pinned.partition("==")[2])
    answer = pick(project, python)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == str(project / ".venv" / "bin" / "python")
    assert TORCH in answer.stderr
    found = "import torch, rich; print(torch.__file__); print(rich.__file__)"
    torch, rich = subprocess.run([answer.stdout.strip(), "-c", found], capture_output=True, text=True).stdout.split()
    assert Path(torch).is_relative_to(tmp_path / "ambient")
    assert Path(rich).is_relative_to(project / ".venv")

    shutil.rmtree(project / "wheels")
    (project / ".venv" / "pip.log").unlink()
    again = pick(project, python)
    assert (again.returncode, again.stdout) == (0, answer.stdout)
    assert not (project / ".venv" / "pip.log").exists(), "a second call installed again"


def test_what_cannot_be_installed_is_named_in_one_line(project: Path, tmp_path: Path) -> None:
    answer = pick(project, ambient(tmp_path / "ambient", CORE[:-1]))
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "could not install rich" in answer.stderr.splitlines()[-1]


def test_a_failed_set_up_is_done_again(project: Path, tmp_path: Path) -> None:
    python = ambient(tmp_path / "ambient", CORE[:-1])
    assert pick(project, python).returncode == 2
    pinned = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("rich=="))
    wheel(project / "wheels", "rich", pinned.partition("==")[2])
    assert pick(project, python).returncode == 0


def test_python_names_the_interpreter(project: Path, tmp_path: Path) -> None:
    python = ambient(tmp_path / "other", CORE)
    answer = pick(project, PYTHON=python)
    assert (answer.returncode, answer.stdout.strip()) == (0, str(python))


@pytest.mark.parametrize(
    ("modules", "complaint"), [(CORE[1:], "lacks torch"), (CORE[:-2], "lacks typer rich"), (None, "is not a command")]
)
def test_python_that_will_not_do_is_refused(
    project: Path, tmp_path: Path, modules: tuple[str, ...] | None, complaint: str
) -> None:
    python = tmp_path / "nowhere" if modules is None else ambient(tmp_path / "other", modules)
    answer = pick(project, PYTHON=python)
    assert answer.returncode == 2
    assert complaint in answer.stderr
    assert not (project / ".venv").exists()


def test_make_alone_lists_the_targets() -> None:
    listed = subprocess.run(["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True)
    assert listed.returncode == 0
    for target in ("audit", "test"):
        assert f"make {target}: " in listed.stdout
