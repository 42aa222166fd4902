"""The picker of the interpreter, against ambient interpreters made for the purpose; nothing here needs a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CORE = ("torch", "mpmath", "pandas", "numpy", "matplotlib", "typer", "rich")
TORCH = "9.8.7+ambient"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    for name in ("pyproject.toml", "requirements.txt", "requirements-oldest.txt", "Makefile"):
        shutil.copy(ROOT / name, folder)
    return folder


def ambient(folder: Path, modules: tuple[str, ...], **versions: str) -> Path:
    """A virtual environment whose python3 finds these modules, of version 99 but for `versions` and torch's TORCH."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for module in modules:
        version = ({"torch": TORCH} | versions).get(module, "99.0")
        (site / module).mkdir()
        (site / module / "__init__.py").touch()
        (site / module / "version.py").write_text(f"__version__ = '{version}'\n")
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    return folder / "bin" / "python3"


def pins(file: str) -> dict[str, str]:
    """What a file of requirements asks for on this Python: versions by name."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    asked = [wanted for wanted in map(Requirement, lines) if wanted.marker is None or wanted.marker.evaluate()]
    return {wanted.name: str(wanted.specifier).removeprefix("==") for wanted in asked}


def wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        info = f"{name}-{version}.dist-info"
        file.writestr(f"{name}/__init__.py", "")
        requires = f"Requires-Dist: {needs}\n" if needs else ""
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def pick(
    project: Path, python: Path | None = None, need: str = "core", **variables: object
) -> subprocess.CompletedProcess[str]:
    """Runs the picker with `python` as the ambient python3 and no package index but the folder `wheels`."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "VIRTUAL_ENV", "PYTHONPATH")}
    if python is not None:
        environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project / "wheels"), "PIP_CONFIG_FILE": os.devnull}
    environment |= {name: str(value) for name, value in variables.items()}
    return subprocess.run(
        ["sh", project / ".ci" / "interpreter.sh", need], env=environment, capture_output=True, text=True, timeout=120
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
    wheel(project / "wheels", "rich", pins("requirements.txt")["rich"])
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
    wheel(project / "wheels", "rich", pins("requirements.txt")["rich"])
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


def version_of(python: str, name: str) -> str:
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run([python.strip(), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_what_is_older_than_the_floor_is_replaced_in_the_venv_alone(project: Path, tmp_path: Path) -> None:
    python = ambient(tmp_path / "ambient", CORE, typer="0.12.3")
    wheel(project / "wheels", "typer", pins("requirements.txt")["typer"])
    answer = pick(project, python)
    assert answer.returncode == 0, answer.stderr
    assert "which lacks typer" in answer.stderr
    assert version_of(answer.stdout, "typer") == pins("requirements.txt")["typer"]
    refused = pick(project, PYTHON=python)
    assert refused.returncode == 2 and "lacks typer, or has them older" in refused.stderr


def test_a_torch_that_is_too_old_is_named_and_never_replaced(project: Path, tmp_path: Path) -> None:
    answer = pick(project, ambient(tmp_path / "ambient", CORE, torch="2.5.1+cu121"))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "has torch 2.5.1+cu121, which is older" in answer.stderr.splitlines()[-1]
    assert not (project / ".venv").exists()


def test_beside_an_old_numpy_the_newest_that_fits_joins(project: Path, tmp_path: Path) -> None:
    modules = tuple(module for module in CORE if module != "matplotlib")
    python = ambient(tmp_path / "ambient", modules, numpy="1.24.1")
    locked = pins("requirements.txt")["matplotlib"]
    wheel(project / "wheels", "matplotlib", locked, "numpy>=1.25")
    wheel(project / "wheels", "matplotlib", "3.8.4", "numpy>=1.21")
    wheel(project / "wheels", "matplotlib", "99.0", "numpy>=1.21")
    answer = pick(project, python)
    assert answer.returncode == 0, answer.stderr
    assert [version_of(answer.stdout, name) for name in ("numpy", "matplotlib")] == ["1.24.1", "3.8.4"]


def python_2() -> Path | None:
    return next(Path.home().glob(".pyenv/versions/2.7*/bin/python"), None)


@pytest.mark.parametrize("command", ["true", "false", "cat", "echo", python_2()])
def test_what_is_no_python_3_has_its_one_line(project: Path, command: str | Path | None) -> None:
    if command is None:
        pytest.skip("there is no Python 2")
    answer = pick(project, PYTHON=command)
    assert (answer.returncode, answer.stdout) == (2, "")
    said = "is Python 2.7" if isinstance(command, Path) else "does not run Python"
    assert len(answer.stderr.splitlines()) == 1 and said in answer.stderr


def test_the_oldest_packages_join_an_ambient_torch_in_a_venv_of_their_own(project: Path, tmp_path: Path) -> None:
    python = ambient(tmp_path / "ambient", (*CORE, "pytest", "hypothesis", "pytest_benchmark"))
    oldest = pins("requirements-oldest.txt")
    for name, version in oldest.items():
        wheel(project / "wheels", name.replace("-", "_"), version)
    answer = pick(project, python, "oldest")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == str(project / ".venv-oldest" / "bin" / "python")
    assert {name: version_of(answer.stdout, name) for name in oldest} == oldest
    assert TORCH in answer.stderr
    assert not (project / ".venv").exists()


def test_every_floor_is_the_version_that_the_oldest_set_has() -> None:
    floors = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    oldest = re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "requirements-oldest.txt").read_text(), re.M)
    for name in floors.keys() - {"torch", "setuptools"}:
        assert Version(floors[name]) == min(Version(version) for tried, version in oldest if tried == name), name


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-oldest.txt"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_every_package_is_pinned_once_on_every_python(file: str, python: str) -> None:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    asked = [Requirement(line) for line in lines]
    here = [w.name for w in asked if w.marker is None or w.marker.evaluate({"python_version": python})]
    assert sorted(here) == sorted({w.name for w in asked})


def test_make_alone_lists_the_targets() -> None:
    listed = subprocess.run(["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True)
    assert listed.returncode == 0
    for target in ("audit", "test"):
        assert f"make {target}: " in listed.stdout
