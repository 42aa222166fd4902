"""Gold: committed references that are used by digest alone, and never where they were touched."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from audit.certify import verify
from audit.judge.references import sealed
from audit.pipeline import COMMITTED_GOLD, execute, plan
from audit.reference.exact import Certified
from audit.reference.gold import Record, read_gold, read_records, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path, read_records(COMMITTED_GOLD))
    return tmp_path


def flip(text: str) -> str:
    """The text with another digit at its end, or before its exponent."""
    mantissa, e, exponent = text.partition("e")
    return mantissa[:-1] + ("0123456789abcdef" * 2)["0123456789abcdef".index(mantissa[-1]) + 5] + e + exponent


def change(folder: Path, index: int, seal: bool, field: str = "value") -> Record:
    """Flips a digit of a record's field, with its checksum made to fit or not."""
    records = sorted(read_records(folder), key=lambda r: (-len(r.value), r.digest))
    old = records[index]
    records[index] = replace(old, **{field: flip(getattr(old, field))})
    if seal:
        records[index] = records[index].sealed()
    write_records(folder, records)
    return old


def test_the_committed_table_holds_every_standard_reference_and_is_right() -> None:
    problems, checked = verify(COMMITTED_GOLD, everything=False)
    assert problems == []
    assert checked > 3_000


def test_the_radius_is_just_above_half_a_unit_of_the_last_digit() -> None:
    for record in read_records(COMMITTED_GOLD):
        value, radius = Decimal(record.value), Decimal(record.radius)
        if not value.is_finite() or not value:
            assert radius == 0
        else:
            unit = Decimal(1).scaleb(value.adjusted() + 1 - int(record.digits))
            assert Decimal("0.5") * unit < radius < Decimal("0.52") * unit


@pytest.mark.parametrize("field", ["value", "radius", "digest", "checksum"])
def test_a_flipped_digit_is_not_used_and_found(folder: Path, field: str) -> None:
    old = change(folder, 0, seal=False, field=field)
    gold = read_gold(folder)
    assert (old.digest, old.quantity) not in gold.values
    assert len(gold.damaged) == 1
    problems, _ = verify(folder, everything=False)
    named = [p for p in problems if p.startswith("missing: " if field == "digest" else "damaged: ")]
    assert any(re.search(r": \w+ row \d+ \w+ ", p) for p in named)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1500, 4500])
@pytest.mark.parametrize("field", ["value", "radius", "digest"])
def test_a_flipped_digit_whose_checksum_fits_is_found_with_its_row(folder: Path, field: str, index: int) -> None:
    change(folder, index, seal=True, field=field)
    problems, _ = verify(folder, everything=True)
    assert any(re.search(r"^(wrong|missing): \w+ row \d+ \w+ ", p) for p in problems)
    assert len(problems) == (2 if field == "digest" else 1)


def test_a_record_of_no_standard_row_is_named(folder: Path) -> None:
    write_records(folder, [*read_records(folder), sealed(("0" * 64, "kl logits"), Certified("1.5", "oracle"))])
    problems, _ = verify(folder, everything=False)
    assert problems == ["stale: record 000000000000… kl logits, of no standard row"]


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
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 1, answer.stderr
    assert "wrong: " in answer.stdout
