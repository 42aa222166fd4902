"""A user's words are shown as they are: no markup, escape sequence, formula or bar of theirs takes effect anywhere."""

from __future__ import annotations

import io
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

import audit
from audit.base.text import markdown, plain
from audit.machine.plan import plan
from audit.pipeline.loop import execute
from audit.publish import terminal
from audit.publish.report import write_report
from audit.publish.tables import read_table
from audit.regress.changes import render
from audit.regress.reports import Report

HOSTILE = [
    "<script>alert(1)</script>", "</code><img src=x onerror=alert(1)>", "&lt;b&gt;", "=1+1", "+1", "-1", "@SUM(A1)",
    "'=1", "a|b|c", "**bold**", "_it_ __init__", "`code`", "```", "[text](javascript:x)", "![i](http://x.y/z)",
    "http://x.y", "www.x.y", "$x^2$", "$\\frac$", "~~gone~~", "\\|", "[red]x[/red]", "[/]", "\x1b[31mred", "\x9b31m",
    "\u202eright", "two\nlines", "a\rb", "\ttab", "\udc80", "\0", "::error::x", "%0A::error::", "é ü 漢", " spaces ",
]  # fmt: skip


class Seen(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def named(name: str):
    def kernel(input: Tensor, target: Tensor) -> Tensor:
        if len(input) == 8:
            raise ValueError(name)
        return input.sum(-1) * 0

    kernel.__name__ = kernel.__doc__ = name
    return kernel


def rendered(text: str) -> str:
    reader = pytest.importorskip("markdown_it")  # which an old rich does without
    return str(reader.MarkdownIt("gfm-like", {"linkify": False}).render(text))


@settings(max_examples=300)
@given(
    text=st.one_of(st.sampled_from(HOSTILE), st.text(alphabet=st.sampled_from("ab_*`|<>[]()!&~$\\:/.w= "), min_size=1))
)
def test_in_markdown_every_character_stands_for_itself(text: str) -> None:
    word = f"x {text} x"
    table = rendered(f"| a |\n|---|\n| {markdown(word)} |\n")
    seen = Seen(rendered(f"- **New**: {markdown(word)}\n"))
    assert seen.tags == ["ul", "li", "strong"]
    assert re.sub(" +", " ", "".join(seen.text)).strip() == re.sub(" +", " ", f"New: {plain(word)}")
    assert Seen(table).tags == ["table", "thead", "tr", "th", "tbody", "tr", "td"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A report on kernels with all those names, and what the terminal shows of it."""
    out, shown = tmp_path_factory.mktemp("names") / "latest", io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        audited = execute(plan("quick", "t*classes", [named(n) for n in HOSTILE], "float32", "cpu"))
        audited.environment["command"] = plain(f"run {HOSTILE[0]}")
        write_report(audited.tables, audited.environment, out, audited.plots)
    terminal.show(audited.tables, audited.environment, out, Console(file=shown, width=200))
    return out, shown.getvalue()


def test_no_escape_sequence_reaches_the_terminal(told: tuple[Path, str]) -> None:
    assert all(line.isprintable() for line in told[1].split("\n"))
    assert "[red]x[/red]" in told[1] and "\\x1b[31mred" in told[1]


def test_a_name_is_no_formula_in_a_csv_and_comes_back_as_it_was(told: tuple[Path, str]) -> None:
    for file in told[0].glob("*.csv"):
        cells = pd.read_csv(file, dtype=str, keep_default_na=False)
        for column in {"case", "path", "note", "cases", "reason"} & set(cells):
            assert not cells[column].str.match(r"[=+\-@\t\r]").any(), (file, column)
    errors = audit.read_errors(told[0])
    assert set(errors["path"]) == {plain(name) for name in HOSTILE} | {"log_softmax"}
    assert {f"ValueError: {plain(n.strip().partition(chr(10))[0])}".rstrip(": ") for n in HOSTILE} >= set(
        errors["note"]
    ) - {""}
    assert set(read_table(told[0], "findings")["path"]) <= set(errors["path"])


def test_the_page_holds_no_element_of_theirs(told: tuple[Path, str]) -> None:
    page = Seen((told[0] / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1 and not {"img", "b", "x"} & set(page.tags)
    assert any("<script>alert(1)</script>" in text for text in page.text)
    for plot in told[0].glob("*.svg"):
        assert "<script" not in plot.read_text(encoding="utf-8")


def test_report_md_holds_no_markup_of_theirs(told: tuple[Path, str]) -> None:
    seen = Seen(rendered((told[0] / "report.md").read_text(encoding="utf-8")))
    assert set(seen.tags) <= {"h1", "p", "br", "ul", "li", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    columns = seen.tags.count("th")
    assert seen.tags.count("td") % columns == 0


@pytest.mark.parametrize("format", ["markdown", "text", "github"])
def test_a_comparison_shows_names_as_they_are(format: str) -> None:
    row = {"worse": True, "what": "bits", "dtype": "float32", "before": 1.0, "after": 2.0, "times": 2.0, "allowed": 1.0}
    row |= dict.fromkeys(("unit", "case", "reduction", "device"), "")
    table = pd.DataFrame([row | {"path": name, "where": name} for name in HOSTILE[:20]])
    table = pd.concat([table, table.assign(path=HOSTILE[-6], where=HOSTILE[-8])])
    environment = {"torch": {"version": "2", "cpu_capability": HOSTILE[1]}, "devices": []}
    side = Report(table, table, environment, name=HOSTILE[0])
    text = render(table, side, side, format)
    assert all(line.isprintable() for line in text.split("\n"))
    if format == "markdown":
        assert not {"script", "img", "a", "em", "code", "del"} & set(Seen(rendered(text)).tags)


def test_the_threads_number_is_quoted_as_it_stands_there() -> None:
    from audit.looks.thread import QUOTES

    assert [q["quoted"] for q in QUOTES[:5]] == ["-0.019", "-0.033", "-0.036", "-0.038", "-0.040"]
