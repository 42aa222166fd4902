"""The figures that README and docs quote agree with docs/numbers.csv, and that with the tables of an audit."""

from __future__ import annotations

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import audit
from audit import cases, paths
from audit.base.formats import FORMATS
from audit.paths.execution import EXECUTIONS
from audit.publish.tables import SCHEMAS, typed
from tests.battery.defects import DEFECTS
from tests.battery.sound import SOUND

ROOT = Path(__file__).parents[1]


def load() -> ModuleType:
    spec = spec_from_file_location("numbers_of_the_docs", ROOT / "docs" / "renew.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


numbers = load()
ROWS = {row["name"]: row for row in numbers.read()}
QUOTES = [(page.name, m[2], m[1]) for page in numbers.PAGES for m in numbers.QUOTED.finditer(page.read_text())]


def test_every_quoted_figure_is_the_tables() -> None:
    assert [(page, name, ROWS[name]["text"]) for page, name, _ in QUOTES] == QUOTES
    assert {name for _, name, _ in QUOTES} == set(ROWS), "a figure that no page quotes"
    comments = sum(len(re.findall(r"<!-- [\w-]+ -->", page.read_text())) for page in numbers.PAGES)
    assert comments == len(QUOTES), "a comment with no figure before it"


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_figures_rows_are_of_a_table_and_name_what_there_is(row: dict[str, str]) -> None:
    empty = typed(pd.DataFrame(), row["table"])
    assert row["column"] in empty
    if row["rows"]:
        empty.query(row["rows"])
    known = {c.name for c in cases.registered("standard")} | {p.name for p in paths.registered()} | set(FORMATS)
    known |= set(EXECUTIONS) | {"none", "sum", "mean", "batchmean", "input", "target", "logits"}
    assert set(re.findall(r"'([^']*)'", row["rows"])) <= known


def test_figures_are_written_from_a_report_into_the_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    report = tmp_path / "latest"
    audit.run(profile="quick", cases="near_1e-04", paths="log_softmax", dtypes="float32", devices="cpu", out=report)
    errors = audit.read_table(report, "errors")
    rows = [
        {"name": "n", "table": "errors", "rows": "", "column": "case", "statistic": "count", "form": ",.0f"},
        {"name": "b", "table": "summary", "rows": "dtype == 'float32'", "column": "correct_bits_median"}
        | {"statistic": "first", "form": ".1f"},
        {"name": "s", "table": "errors", "rows": "", "column": "negative", "statistic": "mean", "form": ".0%"},
    ]
    page, file = tmp_path / "page.md", tmp_path / "numbers.csv"
    page.write_text("(1,000<!-- n --> results), **7<!-- b -->** bits; 5 %<!-- s -->, and 5 % stays.\n")
    pd.DataFrame(rows).assign(text="old").to_csv(file, index=False)
    monkeypatch.setattr(numbers, "FILE", file)
    monkeypatch.setattr(numbers, "PAGES", [page])
    with pytest.raises(ValueError, match="of the profile quick"):
        numbers.renew(report)
    environment = json.loads((report / "environment.json").read_text())
    (report / "environment.json").write_text(json.dumps(environment | {"profile": "standard"}))
    numbers.renew(report)
    bits = f"{errors['correct_bits'].median():.1f}".replace("-", "−")
    share = f"{100 * errors['negative'].mean():.0f} %"
    assert page.read_text() == (
        f"({len(errors)}<!-- n --> results), **{bits}<!-- b -->** bits; {share}<!-- s -->, and 5 % stays.\n"
    )
    assert [row["text"] for row in numbers.read()] == [str(len(errors)), bits, share]
    pd.DataFrame([rows[1] | {"rows": "dtype == 'float64'"}]).assign(text="").to_csv(file, index=False)
    with pytest.raises(ValueError, match=r"summary\.csv has no rows of dtype == 'float64'"):
        numbers.renew(report)


def test_the_docs_count_the_planted_defects_and_the_sound_kernels() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "questions.md"):
        text = " ".join(page.read_text().split())
        planted = {int(n) for n in re.findall(r"(\d+) (?:of \d+ )?planted defects", text)}
        sound = {int(n) for n in re.findall(r"(\d+) sound kernels", text)}
        assert (planted, sound) == ({len(DEFECTS)}, {len(SOUND)}), page.name


def test_pages_that_count_the_bounds_trials_agree() -> None:
    counts = [
        set(re.findall(r"\d+,\d+(?= (?:trials|results of))", (ROOT / page).read_text()))
        for page in ("README.md", "docs/bounds.md")
    ]
    assert counts[0] == counts[1] and len(counts[0]) == 2


def test_every_table_of_numbers_is_of_the_schema() -> None:
    assert {row["table"] for row in ROWS.values()} <= set(SCHEMAS)
