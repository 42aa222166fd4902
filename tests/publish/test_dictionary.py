"""The docs' data dictionary is the schema's, what is written keeps it, and its loading examples read a report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import audit
from audit.publish.tables import SCHEMAS, dictionary

ROOT = Path(__file__).parents[2]
LOADING = (ROOT / "docs" / "loading.md").read_text()
EXAMPLES = dict(re.findall(r"^(\w+)(?:, [^:]*)?:\n\n```\w+\n(.*?)```", LOADING, re.S | re.M))
CASES, PATHS = ["one_hot", "impossible_matched", "mistakes_apart"], ["log_softmax*", "log_prob*", "kl_div_loss"]
R_PRINTS = """
for (n in names(table)) {
  cat("\\x1d")
  column <- table[[n]]
  cat(if (is.double(column)) sprintf("%a", column) else as.character(column), sep = "\\x1e")
  cat("\\x1e")
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with NaN, infinities, notes with commas and quotes, and uncomputed results."""
    folder = tmp_path_factory.mktemp("user")
    audit.run(profile="quick", cases=CASES, paths=PATHS, devices="cpu", out=folder / "reports/latest")
    return folder


def tables(folder: Path) -> list[str]:
    return [file.stem for file in sorted((folder / "reports/latest").glob("*.csv"))]


def same(read: pd.Series, written: pd.Series) -> bool:
    """Bit for bit, but that one NaN is as good as another and an empty text may be a missing one."""
    if str(written.dtype) == "float64":
        bits = [np.where(np.isnan(v), np.nan, v).view("int64") for v in (read.to_numpy(), written.to_numpy())]
        return bool((bits[0] == bits[1]).all())
    if str(written.dtype) in ("Int64", "boolean"):
        return read.equals(written)
    return ["" if v is None or v != v else v for v in read] == list(written)


def test_the_page_is_made_from_the_schema() -> None:
    page = (ROOT / "docs" / "tables.md").read_text()
    assert page == dictionary()
    for columns in SCHEMAS.values():
        for column in columns:
            assert f"| {column.name} | {column.dtype} |" in page


def test_a_column_that_is_never_empty_is_not(folder: Path) -> None:
    for file in (folder / "reports/latest").glob("*.csv"):
        fields = pd.read_csv(file, dtype=str, keep_default_na=False)
        for column in SCHEMAS[file.stem]:
            assert column.empty != "never" or (fields[column.name] != "").all(), f"{file.stem}.{column.name}"


@pytest.mark.parametrize("tool", [name for name in EXAMPLES if name != "R"])
def test_the_loading_example_gives_every_table_back(tool: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(tool.lower())
    monkeypatch.chdir(folder)
    for name in tables(folder):
        names: dict[str, object] = {}
        exec(EXAMPLES[tool].replace('"errors"', f'"{name}"'), names)
        read = names["table"]
        table = read.df() if tool == "DuckDB" else read  # type: ignore[attr-defined]
        written = audit.read_table("reports/latest", name)
        assert list(table.columns) == list(written.columns) and len(table) == len(written)
        for column in SCHEMAS[name]:
            back = pd.Series(list(table[column.name]), dtype=column.dtype)
            assert same(back, written[column.name]), f"{name}.{column.name}"


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_the_loading_example_for_r_gives_every_table_back(folder: Path) -> None:
    for name in tables(folder):
        script = EXAMPLES["R"].replace('"errors"', f'"{name}"') + R_PRINTS
        answer = subprocess.run(["Rscript", "-e", script], cwd=folder, capture_output=True, text=True, check=True)
        written = audit.read_table(folder / "reports/latest", name)
        columns = answer.stdout.split("\x1d")[1:]
        assert len(columns) == len(written.columns)
        for text, column in zip(columns, SCHEMAS[name], strict=True):
            fields: list[object] = list(text.split("\x1e")[:-1])
            if column.dtype == "float64":
                fields = [float("nan") if f in ("NA", "NaN") else float.fromhex(str(f)) for f in fields]
            elif column.dtype != "str":
                fields = [pd.NA if f == "NA" else eval(str(f).title()) for f in fields]
            assert same(pd.Series(fields, dtype=column.dtype), written[column.name]), f"{name}.{column.name}"


def test_the_environment_says_what_gives_the_report_again(folder: Path) -> None:
    command = json.loads((folder / "reports/latest/environment.json").read_text())["command"]
    names = {"audit": SimpleNamespace(run=lambda **given: given)}
    given = eval(command, names)
    assert given.pop("out") == str(folder / "reports/latest")
    assert given == {"profile": "quick", "cases": CASES, "paths": PATHS, "devices": "cpu"}
