"""docs/coverage.md and `list` are the registries', and say the same."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from audit import cases, paths
from audit.base.usage import UsageError
from audit.cases import PROFILES
from audit.explain import listing

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "coverage.md"


def test_the_page_is_made_from_the_registries() -> None:
    page = runpy.run_path(str(DOCS / "coverage.py"))["page"]
    assert PAGE.read_text() == page(), "python docs/coverage.py"


def test_every_case_path_and_profile_has_a_line_in_both() -> None:
    text = PAGE.read_text()
    for name in [*(c.name for c in cases.registered()), *(p.name for p in paths.registered()), *PROFILES]:
        assert f"| {name} |" in text
    assert [n for n, _ in listing("cases")] == sorted(c.name for c in cases.registered())
    assert sorted(n for n, _ in listing("paths")) == sorted(p.name for p in paths.registered())
    assert "cpu" in dict(listing("devices"))


def test_an_absent_path_is_listed_with_its_reason() -> None:
    lines = listing("paths")
    for path in (p for p in paths.registered() if p.absent):
        assert any(name == path.name and f"(absent: {path.absent})" in line for name, line in lines)


def test_there_is_no_list_of_anything_else() -> None:
    with pytest.raises(UsageError, match="'colours' is not one of cases, paths, devices"):
        listing("colours")
