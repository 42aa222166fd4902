"""report.html and report.md: one file each, complete, and true to the tables."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from audit.pipeline import execute, plan
from audit.publish.answer import matrix, sentences
from audit.publish.report import write_report


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return execute(plan("quick", ["near_*", "random_*", "peaked_gap20"], devices="cpu")).tables


@pytest.fixture(scope="module")
def folder(tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "latest"
    write_report(tables, {"profile": "quick", "torch": {"version": "2.13"}}, out)
    return out


def test_the_page_asks_for_nothing_from_anywhere(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    loads = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert loads and all(link.startswith(("data:", "#")) or (folder / link).is_file() for link in loads)
    assert "@import" not in page and "url(" not in page.replace("url(#", "")
    assert (folder / "report.html").stat().st_size < 2_000_000


def test_the_page_is_well_formed_with_scopes_captions_and_descriptions(folder: Path) -> None:
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.stack: list[str] = []
            self.seen: dict[str, int] = {}

        def handle_starttag(self, tag: str, attributes: list) -> None:
            self.seen[tag] = self.seen.get(tag, 0) + 1
            if tag == "th":
                assert "scope" in dict(attributes)
            if tag == "svg":
                assert dict(attributes)["aria-label"]
            if tag not in ("meta", "link", "br", "input"):
                self.stack.append(tag)

        def handle_startendtag(self, tag: str, attributes: list) -> None:
            self.seen[tag] = self.seen.get(tag, 0) + 1

        def handle_endtag(self, tag: str) -> None:
            assert self.stack.pop() == tag

    reader = Reader()
    reader.feed((folder / "report.html").read_text())
    assert reader.stack == []
    assert reader.seen["h1"] == 1 and reader.seen["svg"] >= 1
    assert reader.seen["caption"] == reader.seen["table"]


def test_every_row_of_the_summary_is_on_the_page(tables, folder: Path) -> None:
    page = (folder / "report.html").read_text()
    gated = tables["summary"][tables["summary"]["kind"].isin(["kl", "identity"])]
    body = page[page.index('<table id="summary">') :]
    assert body[: body.index("</table>")].count("<tr>") == len(gated) + 1


def test_the_sentences_say_what_the_tables_say(tables) -> None:
    first, second = sentences(tables)
    errors = tables["errors"]
    lost = errors[(errors["path"] == "softmax_log") & (errors["result_class"] != "finite")]
    assert f"no finite value in {len(lost):,} more" in first
    assert second.startswith("Nothing new is wrong.")


def test_the_matrix_has_the_medians(tables) -> None:
    row = matrix(tables["errors"]).query("path == 'log_softmax' and dtype == 'float32'").iloc[0]
    rows = tables["errors"].query("path == 'log_softmax' and dtype == 'float32'")
    assert row["results"] == len(rows)
    assert row["correct_bits"] == rows["correct_bits"].median()
    assert row["negative"] == rows["negative"].astype(float).mean()


def test_markdown_has_a_row_for_each_path_dtype_and_device(tables, folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert text.count("\n| ") == len(matrix(tables["errors"])) + 1
    assert "python -m audit run --profile quick" in text


def test_plots_stand_beside_the_tables(folder: Path) -> None:
    svg = (folder / "closeness.svg").read_text()
    assert svg.startswith("<svg") and "correct bits" in svg
