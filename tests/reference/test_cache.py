"""The cache of a user's own references: shared by runs, limited in size, and never a source of an edited value."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from audit.judge import references
from audit.judge.references import sealed
from audit.machine.plan import plan_file
from audit.pipeline.loop import execute
from audit.reference.exact import Certified, certified_rows
from audit.reference.gold import Cache, Record, default_file, versions


def record(number: int, value: str = "0.5") -> Record:
    return sealed((f"{number:064x}", "kl logits"), Certified(value, "oracle"))


def keys(*numbers: int) -> list[tuple[str, str]]:
    return [(record(n).digest, "kl logits") for n in numbers]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "references.sqlite"


def test_what_was_written_is_read(file: Path) -> None:
    Cache(file).write([record(1), record(2, "1e-400")])
    found = Cache(file).read(keys(1, 2, 3), versions())
    assert found == {keys(1)[0]: record(1), keys(2)[0]: record(2, "1e-400")}


@pytest.mark.parametrize("column", ["value", "radius", "digits", "engine", "digest"])
def test_an_edited_record_is_not_used(file: Path, column: str) -> None:
    Cache(file).write([record(1)])
    with sqlite3.connect(file) as database:
        database.execute(f"UPDATE records SET {column} = ?", (keys(2)[0][0] if column == "digest" else "0.25",))
    assert Cache(file).read(keys(1, 2), versions()) == {}


def test_records_of_other_versions_are_not_used(file: Path) -> None:
    Cache(file).write([record(1)])
    assert Cache(file).read(keys(1), versions() + " and more") == {}


def test_the_oldest_are_dropped_beyond_the_limit(file: Path) -> None:
    for number in range(30):
        Cache(file, limit=10).write([record(number)])
    assert set(Cache(file).read(keys(*range(30)), versions())) == set(keys(*range(20, 30)))


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0 cut off"])
def test_a_file_that_is_no_cache_is_no_failure(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    Cache(file).write([record(1)])
    assert Cache(file).read(keys(1), versions()) == {}


def test_a_place_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    cache = Cache(tmp_path / "occupied" / "references.sqlite")
    cache.write([record(1)])
    assert cache.read(keys(1), versions()) == {}


def test_two_processes_write_at_once_and_lose_nothing(file: Path) -> None:
    code = """
import sys
from pathlib import Path
sys.path[:0] = ["tests/reference"]
from test_cache import Cache, record
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 30):
    Cache(Path(sys.argv[1])).write([record(number)])
"""
    runs = [subprocess.Popen([sys.executable, "-c", code, str(file), str(start)]) for start in (0, 30)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    assert len(Cache(file).read(keys(*range(60)), versions())) == 60


def test_it_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_file() == tmp_path / "kl-audit" / "references.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_file() == tmp_path / ".cache" / "kl-audit" / "references.sqlite"


def test_a_second_run_on_ones_own_logits_computes_only_what_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x, y = np.random.default_rng(1).standard_normal((2, 6, 40)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", input=x, target=y)
    computed = []

    def watched(input: np.ndarray, target: np.ndarray, **kinds: str) -> list[Certified]:
        computed.append(len(input))
        return certified_rows(input, target, **kinds)

    monkeypatch.setattr(references, "certified_rows", watched)

    def run() -> list[str]:
        errors = execute(plan_file(tmp_path / "mine.npz", devices="cpu")).tables["errors"]
        assert set(errors["reference_source"]) == {"computed"}
        return list(errors["reference"])

    first = run()
    rows = sum(computed)
    assert run() == first and sum(computed) == rows
    with sqlite3.connect(default_file()) as database:
        database.execute("UPDATE records SET value = '0.1' WHERE rowid = 2")
    assert run() == first and sum(computed) == rows + 1


def test_a_cache_with_torn_bytes_is_no_failure_and_gives_no_wrong_value(file: Path) -> None:
    records = [record(number) for number in range(40)]
    Cache(file).write(records)
    whole, chance, known = file.read_bytes(), random.Random(17), dict(zip(keys(*range(40)), records, strict=True))
    for _ in range(200):
        torn = bytearray(whole)
        for _ in range(chance.choice([1, 8, 64, 1024])):
            torn[chance.randrange(len(torn))] = chance.randrange(256)
        file.write_bytes(torn[: chance.choice([len(torn), chance.randrange(len(torn))])])
        assert Cache(file).read(known, versions()).items() <= known.items()
        Cache(file).write(records[:1])


def test_text_that_is_no_utf_8_is_no_failure(file: Path) -> None:
    Cache(file).write([record(1)])
    with sqlite3.connect(file) as database:
        database.execute("UPDATE records SET value = CAST(x'80ff' AS TEXT)")
    assert Cache(file).read(keys(1), versions()) == {}


def test_who_has_no_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    Cache(default_file()).write([record(1)])
    assert Cache(default_file()).read(keys(1), versions()) == {}
