"""What a person sees."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import audit
from audit.publish import terminal
from audit.publish.matrix import grid
from audit.publish.tables import summarise, typed


@pytest.fixture(scope="module")
def errors() -> pd.DataFrame:
    return audit.run(profile="quick", cases=["identical_n1000", "random_64x81"], devices="cpu")


def shown(errors: pd.DataFrame, folder: Path) -> str:
    out = io.StringIO()
    findings = typed(pd.DataFrame(), "findings")
    terminal.show(
        {"errors": errors, "findings": findings, "summary": summarise(errors)}, {}, folder, Console(file=out, width=100)
    )
    return out.getvalue()


def test_every_gated_path_has_its_median_bits_and_negative_share(errors: pd.DataFrame, tmp_path: Path) -> None:
    text = shown(errors, tmp_path)
    columns, rows = grid(errors)
    for paths, *cells in rows:
        line = next(line for line in text.splitlines() if line.startswith(paths.split(", ")[0]))
        assert all(cell in line for cell in cells), (paths, cells)
    assert len(columns) == 4


def test_where_nothing_is_judged_no_drift_is_shown(errors: pd.DataFrame, tmp_path: Path) -> None:
    text = shown(errors.assign(kind="misuse"), tmp_path)
    assert "Correct bits" not in text and f"{len(errors):,} results" in text


def test_a_kernels_own_words_are_shown_as_they_are(errors: pd.DataFrame, tmp_path: Path) -> None:
    note = "RuntimeError: expected [rows] not [bold]"
    assert f"results: {note}" in shown(errors.assign(result_class="not_computed", note=note), tmp_path)


def test_the_bits_of_four_dtypes_fits_80_columns_uncut(errors: pd.DataFrame) -> None:
    out = io.StringIO()
    terminal.show_matrix(errors.assign(negative=True), Console(file=out, width=80))
    assert out.getvalue().count("100%") >= 4 * len(grid(errors)[1]) / 2
    assert "…" not in out.getvalue() and max(map(len, out.getvalue().splitlines())) <= 80


def test_answers_fold_between_words_and_known_limits_are_counted_in_a_line(
    errors: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latest").mkdir()
    out, path = io.StringIO(), errors["path"].iloc[0]
    known = {"status": "acknowledged", "path": path, "results": 3, "reason": "A limit. " * 40}
    findings = typed(pd.DataFrame([known | {"acknowledged_by": name} for name in ("one", "other")]), "findings")
    tables = {"errors": errors, "findings": findings, "summary": summarise(errors)}
    terminal.show(tables, {}, Path("latest"), Console(file=out, width=80))
    *text, written = out.getvalue().splitlines()
    assert max(map(len, text)) <= 80 and written.startswith("written: ")
    assert "2 known limits, listed in" in out.getvalue() and "A limit" not in out.getvalue()


@pytest.mark.parametrize(
    ("variables", "styled"), [({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False), ({}, False)]
)
def test_a_pipe_and_no_color_get_plain_text(
    errors: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], styled: bool
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **variables}.items():
        monkeypatch.setenv(name, value)
    console = terminal.console()
    with console.capture() as capture:
        terminal.show_matrix(errors, console)
    assert ("\x1b[" in capture.get()) == styled


def test_what_was_not_computed_is_counted_with_its_reason(errors: pd.DataFrame, tmp_path: Path) -> None:
    missing = errors.copy()
    missing.loc[missing.index[:3], ["result_class", "note"]] = ["not_computed", "out of memory"]
    text = shown(missing, tmp_path)
    assert "not computed: 3 results: out of memory" in text


def test_progress_names_each_step_and_is_silent_without_a_terminal() -> None:
    for terminal_there in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal_there, width=100)
        with terminal.progress(console, 2) as advance:
            advance("thread float32")
        assert ("thread float32" in out.getvalue()) == terminal_there
