"""Gold: committed references that are used by digest alone, and never where they were touched."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from audit.cases import build, registered
from audit.judge import references
from audit.judge.references import reference_keys, sealed
from audit.machine.plan import plan
from audit.pipeline.certify import verify
from audit.pipeline.loop import execute
from audit.reference import enclosure, gold
from audit.reference.exact import Certified, row_references
from audit.reference.gold import COMMITTED_GOLD, Record, read_gold, read_records, write_records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path, read_records(COMMITTED_GOLD))
    return tmp_path


def flip(text: str) -> str:
    """The text with another digit at its end, or before its exponent."""
    mantissa, e, exponent = text.partition("e") if "." in text else (text, "", "")
    return mantissa[:-1] + ("2" if mantissa[-1] == "1" else "1") + e + exponent


CASE = "random_scale1"


def change(folder: Path, seal: bool, field: str = "value", row: int = 3) -> Record:
    """Flips a digit of a field of the record of a row of CASE, with its checksum made to fit or not."""
    problem = build(next(c for c in registered() if c.name == CASE), "float32")
    records = {r.key: r for r in read_records(folder)}
    key = reference_keys(problem, "kl")[row]
    old = records.pop(key)
    changed = old._replace(**{field: flip(getattr(old, field))})
    write_records(folder, [*records.values(), changed.sealed() if seal else changed])
    return old


@pytest.mark.slow
def test_the_committed_table_holds_every_standard_reference_and_is_right() -> None:
    problems, checked = verify(COMMITTED_GOLD, everything=True)
    assert problems == []
    assert checked > 3_000


@pytest.mark.parametrize("cases", ["flat_n128256", "mistakes_together", "impossible_*", "near_1e-0[48]", "gap_745"])
def test_the_committed_references_are_right(cases: str) -> None:
    problems, checked = verify(COMMITTED_GOLD, everything=True, cases=cases)
    assert problems == []
    assert checked > 3


def test_the_second_way_without_arb_is_mpmath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enclosure, "HAS_ARB", False)
    assert verify(COMMITTED_GOLD, everything=True, cases=CASE)[0] == []


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
    old = change(folder, seal=False, field=field)
    gold = read_gold(folder)
    assert old.key not in gold.values
    assert len(gold.damaged) == 1
    problems, _ = verify(folder, everything=False, cases=CASE)
    assert problems == [f"damaged: {CASE} row 3 float32 kl"]


@pytest.mark.parametrize("field", ["value", "radius", "digits", "digest"])
def test_a_flipped_digit_whose_checksum_fits_is_found_with_its_row(folder: Path, field: str) -> None:
    change(folder, seal=True, field=field)
    problems, _ = verify(folder, everything=True, cases=CASE)
    assert len(problems) == 1
    assert problems[0].startswith(f"{'missing' if field == 'digest' else 'wrong'}: {CASE} row 3 float32 kl")


def test_a_damaged_table_still_gives_the_right_references(folder: Path) -> None:
    chosen = plan("quick", CASE, "log_softmax", devices="cpu")
    change(folder, seal=False)
    run, sound = (execute(chosen, references=f) for f in (folder, COMMITTED_GOLD))
    assert len(run.damaged) == 1
    assert run.tables["errors"]["reference"].equals(sound.tables["errors"]["reference"])


@pytest.mark.skipif(not enclosure.HAS_ARB, reason="python-flint is not installed")
@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs"])
def test_arb_takes_a_target_of_each_kind_as_it_is(kind: str) -> None:
    x, y = np.random.default_rng(3).normal(size=(2, 6))
    target = {"logits": y, "log_probs": y - 3, "probs": np.exp(y)}[kind]  # which sum to no 1
    target[2] = 0 if kind == "probs" else -np.inf
    (value,) = row_references(x[None], target[None], kind, 60)
    assert enclosure.agrees(x, target, kind, value, 60)
    assert not enclosure.agrees(x, target, kind, value[:40] + str((int(value[40]) + 5) % 10) + value[41:], 60)


def test_what_gold_does_not_hold_is_computed_and_says_so(tmp_path: Path) -> None:
    chosen = plan("quick", "random_scale1", "log_softmax", devices="cpu")
    with_gold, without = (execute(chosen, references=f).tables["errors"] for f in (COMMITTED_GOLD, tmp_path))
    assert set(with_gold["reference_source"]) == {"gold"}
    assert set(without["reference_source"]) == {"computed"}
    assert with_gold["reference"].equals(without["reference"])


@pytest.mark.slow
def test_verify_fails_with_one_and_names_what_is_wrong(folder: Path) -> None:
    change(folder, seal=True)
    stray = sealed(("0" * 64, "kl logits"), Certified("1.5", "oracle"))
    write_records(folder, [*read_records(folder), stray])
    command = [sys.executable, "-m", "audit", "references", "verify", "--folder", str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 1, answer.stderr
    assert f"wrong: {CASE} row 3 float32 kl: " in answer.stdout
    assert "stale: record 000000000000… kl logits, of no standard row" in answer.stdout


def test_a_table_whose_lines_ran_together_is_damaged_and_no_traceback(tmp_path) -> None:
    (tmp_path / "gold.csv").write_text('digest\n"' + "a,b\n" * 50_000)
    assert gold.read_gold(tmp_path).damaged


def test_exponents_beyond_a_million_are_published() -> None:
    (value,) = row_references(np.array([[0.0, -3e6]]), np.array([[0.0, -2.9e6]]), "logits")
    assert references.published(value).endswith("e-1259449") and value.startswith(references.published(value)[:40])
    assert Decimal(references.reduced([value], "batchmean", 2)) == Decimal(references.published(value))
