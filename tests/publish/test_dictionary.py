"""The docs' data dictionary is the schema's, and its loading example reads a report."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

import audit
from audit.publish.dictionary import dictionary
from audit.publish.schema import SCHEMAS

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_schema() -> None:
    page = (ROOT / "docs" / "tables.md").read_text()
    assert page == dictionary()
    for columns in SCHEMAS.values():
        for column in columns:
            assert f"| {column.name} | {column.dtype} |" in page


def test_the_loading_example_runs(tmp_path: Path, monkeypatch) -> None:
    audit.run(profile="quick", cases="one_hot", paths="log_softmax", devices="cpu", out=tmp_path / "reports/latest")
    monkeypatch.chdir(tmp_path)
    names: dict[str, pd.DataFrame] = {}
    exec(re.search(r"```python\n(.*?)```", dictionary(), re.S)[1], names)
    assert len(names["errors"]) == len(audit.read_errors("reports/latest"))
    assert names["errors"]["reference"].map(type).eq(str).all()
