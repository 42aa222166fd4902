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
from audit.publish.dictionary import dictionary
from audit.publish.schema import SCHEMAS

ROOT = Path(__file__).parents[2]
LOADING = (ROOT / "docs" / "loading.md").read_text()
EXAMPLES = dict(re.findall(r"^(\w+)(?:, [^:]*)?:\n\n```\w+\n(.*?)```", LOADING, re.S | re.M))
CASES, PATHS = ["one_hot", "impossible_matched", "mistakes_apart"], ["log_softmax*", "log_prob*", "kl_div_loss"]
NUMBERS = [c.name for c in SCHEMAS["errors"] if c.dtype == "float64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with NaN, infinities, notes with commas and quotes, and uncomputed results."""
    folder = tmp_path_factory.mktemp("user")
    audit.run(profile="quick", cases=CASES, paths=PATHS, devices="cpu", out=folder / "reports/latest")
    return folder


def same(numbers: object, wanted: pd.Series) -> bool:
    values = np.asarray(numbers, dtype=np.float64)
    return np.array_equal(np.where(np.isnan(values), np.nan, values), wanted.to_numpy(), equal_nan=True)


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
def test_the_loading_example_reads_every_number_bit_for_bit(
    tool: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(tool.lower())
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(EXAMPLES[tool], names)
    read = names["errors"]
    table = read.df() if tool == "DuckDB" else read  # type: ignore[attr-defined]
    written = audit.read_errors("reports/latest")
    assert len(written) == len(table) and set(written["result_class"]) >= {"not_a_number", "not_computed"}
    for name in NUMBERS:
        assert same(table[name].to_numpy(), written[name]), name
    for name in ("reference", "exact_kl"):
        assert list(table[name]) == list(written[name])


@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed")
def test_the_loading_example_for_r_reads_every_number_bit_for_bit(folder: Path) -> None:
    script = EXAMPLES["R"] + "writeLines(errors$reference)\nfor (n in names(errors)) if (is.numeric(errors[[n]])) {\n"
    script += 'cat("\\n#", n, "\\n"); cat(sprintf("%a", errors[[n]]), sep = "\\n") }\n'
    answer = subprocess.run(["Rscript", "-e", script], cwd=folder, capture_output=True, text=True, check=True)
    text, *columns = answer.stdout.split("#")
    written = audit.read_errors(folder / "reports/latest")
    assert text.split() == list(written["reference"])
    read = {name: rest for name, *rest in (column.split() for column in columns)}
    for name in NUMBERS:
        assert same([float("nan") if v in ("NA", "NaN") else float.fromhex(v) for v in read[name]], written[name]), name


def test_the_environment_says_what_gives_the_report_again(folder: Path) -> None:
    command = json.loads((folder / "reports/latest/environment.json").read_text())["command"]
    names = {"audit": SimpleNamespace(run=lambda **given: given)}
    given = eval(command, names)
    assert given.pop("out") == str(folder / "reports/latest")
    assert given == {"profile": "quick", "cases": CASES, "paths": PATHS, "devices": "cpu"}
