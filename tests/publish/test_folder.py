"""A report folder through races, kills and hostile places: there is a whole report at every moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.base.usage import UsageError
from audit.publish import folder as module
from audit.publish.folder import check_replaceable, in_place, report_folder

WRITER = """
import sys
from pathlib import Path
from audit.publish.folder import report_folder
for number in range(int(sys.argv[3])):
    with report_folder(Path(sys.argv[1])) as folder:
        (folder / "environment.json").write_text("whole")
        (folder / f"{sys.argv[2]}-{number}").write_text("")
"""
SLEEPER = """
import sys, time
from pathlib import Path
from audit.publish.folder import report_folder
with report_folder(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def write(out: Path, text: str = "whole") -> None:
    with report_folder(out) as folder:
        (folder / "environment.json").write_text(text)


def read(out: Path) -> str:
    return (out / "environment.json").read_text()


@pytest.fixture(params=["exchange", "two steps"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system's exchange, and as where there is none."""
    if request.param == "two steps":
        monkeypatch.setattr(module, "_exchange", lambda *_: False)
    return str(request.param)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    process = python(SLEEPER, tmp_path / "latest")
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()


def test_three_writers_lose_nothing_and_a_reader_always_finds_a_report(tmp_path: Path) -> None:
    out = tmp_path / "latest"
    write(out)
    missed, reads, done = 0, 0, threading.Event()

    def poll() -> None:
        nonlocal missed, reads
        while not done.is_set():
            reads += 1
            missed += not os.access(out / "environment.json", os.R_OK)

    reader = threading.Thread(target=poll)
    reader.start()
    writers = [python(WRITER, out, name, 100) for name in "abc"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    done.set()
    reader.join()
    assert reads > 1_000 and missed == 0
    assert len(list(out.iterdir())) == 2 and [f.name for f in tmp_path.iterdir()] == ["latest"]


def test_writers_race_where_there_is_no_exchange_and_for_the_first_report(system: str, tmp_path: Path) -> None:
    out, failed = tmp_path / "latest", []

    def work() -> None:
        try:
            for _ in range(30):
                write(out)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and read(out) == "whole" and [f.name for f in tmp_path.iterdir()] == ["latest"]


@pytest.mark.parametrize("step", [1, 2])
def test_an_interrupt_between_two_steps_puts_the_report_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    write(tmp_path / "latest", "old")
    monkeypatch.setattr(module, "_exchange", lambda *_: False)
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == step:
            moved = rename(self, target) if step == 1 else None
            raise KeyboardInterrupt(moved)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "latest", "new")
    assert read(tmp_path / "latest") == "old" and in_place() is None
    assert [f.name for f in tmp_path.iterdir()] == ["latest"]


def test_a_run_killed_between_two_steps_has_its_report_put_back_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "latest"
    write(out, "old")
    (tmp_path / ".partial").mkdir()
    out.rename(module._aside(out))
    check_replaceable(out)
    assert read(out) == "old" and [f.name for f in tmp_path.iterdir()] == ["latest"]


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_needs_is_not(sleeper, tmp_path: Path) -> None:
    process, partial = sleeper
    write(tmp_path / "latest")
    assert partial.is_dir()
    process.kill()
    process.wait()
    assert partial.is_dir()
    check_replaceable(tmp_path / "latest")
    assert [f.name for f in tmp_path.iterdir()] == ["latest"]


def test_rows_that_a_killed_run_kept_are_removed_by_the_next_and_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    out = tmp_path / "latest"
    living = module.Kept(out, "living")
    killed = living.folder.with_name("rows-0123456789abcdef")
    killed.mkdir()
    write(out)
    assert [f.name for f in (tmp_path / ".partial").iterdir()] == [living.folder.name]
    living.close()
    assert [f.name for f in tmp_path.iterdir()] == ["latest"]


def test_what_is_in_place_is_known_at_every_step(system: str, tmp_path: Path) -> None:
    out = tmp_path / "latest"
    for text in ("first", "second"):
        with report_folder(out) as folder:
            (folder / "environment.json").write_text(text)
            assert in_place() is None
        assert in_place() == out and read(out) == text


def test_a_symlink_is_followed_and_stays_one(system: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere/report", "elsewhere/dangling"):
        link = tmp_path / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write(link, "1")
        write(link, target)
        assert link.is_symlink() and read(tmp_path / target) == target
    assert {f.name for f in tmp_path.iterdir()} == {"elsewhere", "link"}


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_the_umask_is_honoured(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "latest")
    finally:
        os.umask(before)
    assert (tmp_path / "latest").stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize(
    "out",
    [".", "..", "/", "x" * 256, "x" * 250 + "/" + "é" * 200, "a\0b", "file", "file/deeper", "/proc/report", "loop"],
)
def test_a_place_that_cannot_hold_a_report_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError) as caught:
        check_replaceable(Path(out))
    assert len(str(caught.value).splitlines()) == 1
    assert {f.name for f in tmp_path.iterdir()} <= {"file", "loop", "x" * 250}


def test_a_name_of_255_bytes_is_fine(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        write(tmp_path / name, "1")
        write(tmp_path / name, "2")
        assert read(tmp_path / name) == "2"


def test_a_full_disk_is_one_line_and_leaves_the_report_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "latest", "old")
    with (
        pytest.raises(UsageError, match="cannot be written: No space left on device"),
        report_folder(tmp_path / "latest") as folder,
    ):
        (folder / "environment.json").write_text("new")
        with open("/dev/full", "w") as full:
            full.write("x")
    assert read(tmp_path / "latest") == "old" and [f.name for f in tmp_path.iterdir()] == ["latest"]
