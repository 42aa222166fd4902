"""Gold: committed references that are used by digest alone, and never where they were touched."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from audit.certify import verify
from audit.pipeline import COMMITTED_GOLD, execute, plan
from audit.reference.gold import Record, read_gold, read_records, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path, read_records(COMMITTED_GOLD))
    return tmp_path


def change(folder: Path, index: int, seal: bool) -> Record:
    """Flips the last digit of a record's value, with its checksum made to fit or not."""
    records = sorted(read_records(folder), key=lambda r: len(r.value), reverse=True)
    old = records[index]
    mantissa, _, exponent = old.value.partition("e")
    flipped = mantissa[:-1] + str((int(mantissa[-1]) + 5) % 10) + ("e" + exponent if exponent else "")
    records[index] = replace(old, value=flipped)
    if seal:
        records[index] = records[index].sealed()
    write_records(folder, records)
    return old


def test_the_committed_table_holds_every_standard_reference_and_is_right() -> None:
    problems, checked = verify(COMMITTED_GOLD, everything=False)
    assert problems == []
    assert checked > 3_000


def test_a_flipped_digit_is_not_used_and_found(folder: Path) -> None:
    old = change(folder, 0, seal=False)
    gold = read_gold(folder)
    assert (old.digest, old.quantity) not in gold.values
    assert gold.damaged == [f"{old.digest[:12]}… {old.quantity}"]
    problems, _ = verify(folder, everything=True)
    assert any(p.startswith("damaged") for p in problems) and any(p.startswith("missing") for p in problems)


@pytest.mark.parametrize("index", [1500])
def test_a_flipped_digit_whose_checksum_fits_is_found_with_its_row(folder: Path, index: int) -> None:
    change(folder, index, seal=True)
    problems, _ = verify(folder, everything=True)
    assert len(problems) == 1
    assert problems[0].startswith("wrong: ") and " row " in problems[0]


def test_what_gold_does_not_hold_is_computed_and_says_so(tmp_path: Path) -> None:
    chosen = plan("quick", "random_scale1", "log_softmax", devices="cpu")
    with_gold, without = (execute(chosen, references=f).tables["errors"] for f in (COMMITTED_GOLD, tmp_path))
    assert set(with_gold["reference_source"]) == {"gold"}
    assert set(without["reference_source"]) == {"computed"}
    assert with_gold["reference"].equals(without["reference"])


def test_a_damaged_record_is_computed_anew_and_named(folder: Path) -> None:
    change(folder, 0, seal=False)
    run = execute(plan("quick", "random_scale1", "log_softmax", devices="cpu"), references=folder)
    assert len(run.damaged) == 1


def test_verify_fails_with_one_and_names_the_row(folder: Path) -> None:
    change(folder, 3, seal=True)
    command = [sys.executable, "-m", "audit", "references", "verify", "--all", "--folder", str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 1, answer.stderr
    assert "wrong: " in answer.stdout
