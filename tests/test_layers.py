"""A lower layer imports no higher one; what must be light imports neither torch nor mpmath; calls are short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "audit"
# Each room imports itself and those before it.
ROOMS = [
    "base",
    "reference",
    "cases",
    "paths",
    "causes",
    "machine",
    "judge",
    "publish",
    "explain",
    "looks",
    "pipeline",
    "regress",
    "cli",
    "__main__",
]
RANK = {name: rank for rank, name in enumerate(ROOMS)}
MODULES = sorted(f.relative_to(PACKAGE).with_suffix("").as_posix() for f in PACKAGE.rglob("*.py"))


def imported(module: str) -> set[str]:
    """Every module that `module` imports anywhere, type checking apart."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "audit" else {node.module}
            )
    return names


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
def test_a_layer_imports_no_higher_one(module: str) -> None:
    own = module.split("/")[0]
    for name in imported(module):
        parts = name.split(".")
        if parts[0] != "audit" or len(parts) == 1 or parts[1] == own or parts[1] == "__version__":
            continue
        assert RANK[parts[1]] < RANK[own], f"{module} imports {name}, which is not below it"
        assert own != "publish" or parts[1] == "base", f"{module} imports {name}: publish takes tables alone"


@pytest.mark.parametrize("module", [m for m in MODULES if m != "cli"])  # whose arguments are options
def test_no_call_needs_more_than_five_arguments_by_place(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        places = [argument for argument in function.args.args if argument.arg not in ("self", "cls")]
        assert len(places) <= 5, f"{module}.{function.name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(("reference", "publish"))])
def test_reference_and_publish_name_no_torch(module: str) -> None:
    assert not {name for name in imported(module) if name.split(".")[0] == "torch"}


@pytest.mark.parametrize(
    ("statement", "banned"),
    [
        ("import audit.cli", ("torch", "mpmath")),
        ("import audit.reference.exact", ("torch", "pandas")),
        ("import audit.publish.tables", ("torch", "mpmath")),
    ],
)
def test_light_imports_stay_light(statement: str, banned: tuple[str, ...]) -> None:
    code = f"{statement}; import sys; print([m for m in {banned} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
