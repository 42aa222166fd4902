"""However a run ends, its status says how, no process is left of it, and the report is whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICK = ("run", "--profile", "quick", "--device", "cpu")
LEAVE = """
import ctypes, os
def leaves(x, y):
    os._exit(0)
def crashes(x, y):
    ctypes.string_at(0)
"""


def begun(cwd: Path, *arguments: str, **given: object) -> subprocess.Popen[str]:
    """In a session of its own, so that what is left of it can be told."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "audit", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | given
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]


def left(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


def assert_all_ended(session: int) -> None:
    deadline = time.monotonic() + 10
    while left(session) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left(session) == []


@pytest.mark.parametrize(("kernel", "how"), [("leaves", "with status 0"), ("crashes", "by SIGSEGV")])
def test_a_kernel_that_ends_the_process_is_named_with_case_and_dtype(tmp_path: Path, kernel: str, how: str) -> None:
    (tmp_path / "mine.py").write_text(LEAVE)
    narrow = ("--case", "two_classes", "--dtype", "float32", "--workers", "1")
    run = begun(tmp_path, *QUICK, *narrow, "--path-file", f"mine.py:{kernel}")
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 2
    assert errors.splitlines()[-1] == (
        f"kl-audit: the run ended {how}, and without a report, while this was running: "
        f"two_classes, float32, path {kernel} on cpu"
    )
    assert not (tmp_path / "reports" / "latest").exists()


def ended(folder: Path, number: int, moment: float) -> tuple[int, str]:
    """The status and last words of a run of three processes that was sent a signal."""
    run = begun(folder, *QUICK, "--case", "random_*", "--workers", "3")
    time.sleep(moment)
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert_all_ended(run.pid)
    return run.returncode, errors.strip()


WORDS = "kl-audit: interrupted; the report in place, if any, is left as it was"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_no_process_outlives_a_run(tmp_path: Path, number: int, status: int) -> None:
    returned, words = ended(tmp_path, number, 3.0)
    assert returned == status, words
    assert "Traceback" not in words
    rest = words.removeprefix(WORDS)
    assert status < 0 or (words.startswith(WORDS) and (not rest or "resource_tracker" in rest))  # as it tidied up
    assert not (tmp_path / "reports" / ".partial").exists() or number == signal.SIGKILL


def test_an_error_that_an_import_makes_of_a_signal_ends_as_the_signal_does(tmp_path: Path) -> None:
    code = """
import os, signal, sys
import audit.cli as cli
def imports(*_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1)
    except BaseException:
        raise AttributeError("partially initialized module") from None
cli._refuse_idle = imports
sys.argv = ["kl-audit", "run"]
cli.main()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr.strip()) == (143, WORDS)


SWALLOWS = """
import os, signal
class Interrupts:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        signal.sigtimedwait([], 0)
sent = []
def swallows(x, y):
    if not sent:
        sent.append(True)
        Interrupts()
    return (y.softmax(-1) * (y.log_softmax(-1) - x.log_softmax(-1))).sum(-1)
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_whose_exception_a_finaliser_swallows_ends_the_run_all_the_same(
    tmp_path: Path, name: str, status: int
) -> None:
    (tmp_path / "mine.py").write_text(SWALLOWS.format(name=name))
    narrow = ("--case", "two_classes", "--dtype", "float32", "--workers", "1")
    run = begun(tmp_path, *QUICK, *narrow, "--path-file", "mine.py:swallows")
    _, errors = run.communicate(timeout=120)
    assert (run.returncode, errors.strip()) == (status, WORDS)
    assert not (tmp_path / "reports").exists()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_a_whole_report_and_no_process(tmp_path: Path) -> None:
    chance = random.Random(17)
    first = begun(tmp_path, *QUICK, "--case", "random_*")
    first.communicate(timeout=120)
    assert first.returncode == 0
    for _ in range(20):
        number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
        returned, words = ended(tmp_path, number, chance.uniform(0.05, 9))
        assert returned in (-number, 128 + number, 0), words
        assert "Traceback" not in words
        assert (tmp_path / "reports" / "latest" / "report.html").read_text().endswith("</html>\n")
    last = begun(tmp_path, *QUICK, "--case", "random_*")
    last.communicate(timeout=120)
    assert last.returncode == 0 and not (tmp_path / "reports" / ".partial").exists()


def status_and_words(cwd: Path, *arguments: str, shell: str = "", **given: str) -> tuple[int, str]:
    """Of a command in a shell, where its output goes as `shell` says."""
    command = f'"{sys.executable}" -m audit {" ".join(arguments)} {shell}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | given
    answer = subprocess.run(["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, timeout=300)
    return answer.returncode, answer.stderr.decode()


FULL = "kl-audit: [Errno 28] No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize(
    ("arguments", "shell", "status", "words"),
    [
        (("list", "paths"), ">/dev/full", 2, FULL),
        (("run", "--help"), ">/dev/full", 2, FULL),
        (("list", "colours"), "2>/dev/full", 2, ""),
        (("list", "paths"), ">&-", 0, ""),
        (("list", "colours"), "2>&-", 2, ""),
        (("list", "paths"), "| true; exit ${PIPESTATUS[0]}", 141, ""),
        (("run", "--help"), "| true; exit ${PIPESTATUS[0]}", 141, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_output_that_cannot_be_written_has_its_status(
    tmp_path: Path, arguments: tuple[str, ...], shell: str, status: int, words: str
) -> None:
    assert status_and_words(tmp_path, *arguments, shell=shell) == (status, words)


NARROW = (*QUICK, "--case", "two_classes", "--dtype", "float32", "--path", "log_softmax", "--workers", "1")


def test_a_file_size_limit_is_one_line_and_leaves_the_report_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "reports" / "latest"
    assert status_and_words(tmp_path, *NARROW) == (0, "")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    command = f'ulimit -f 1; "{sys.executable}" -m audit {" ".join(NARROW)}'
    answer = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert answer.returncode == 2
    assert answer.stderr.decode() == "kl-audit: reports/latest: cannot be written: File too large\n"
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert {file.name for file in (tmp_path / "reports").iterdir()} == {"latest", "history.csv", ".history.lock"}


def test_odd_encodings_change_nothing_but_what_they_cannot_show(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(x, y):\n    raise ValueError('é 漢 \\udc80')\n", encoding="utf-8")
    ascii_ = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    given = (*NARROW[:-4], "--workers", "1", "--path-file", "mine.py:f", "--acknowledgements", "é.ini")
    (tmp_path / "é.ini").write_text("[é]\npath = nothing\nreason = 漢\n", encoding="utf-8")
    assert status_and_words(tmp_path, *given, **ascii_) == (1, "")
    written = (tmp_path / "reports" / "latest" / "environment.json").read_text(encoding="utf-8")
    assert "mine.py:f" in written and json.loads(written)["schema_version"] >= 1
    assert "ValueError: é 漢 \\udc80" in (tmp_path / "reports" / "latest" / "errors.csv").read_text(encoding="utf-8")


def test_an_interrupt_after_the_report_is_in_place_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from audit import cli

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "supervise", lambda: None)
    monkeypatch.setattr("audit.publish.terminal.show", interrupted)
    monkeypatch.setattr(sys, "argv", ["kl-audit", *NARROW])
    with pytest.raises(SystemExit) as end:
        cli.main()
    latest = tmp_path / "reports" / "latest"
    assert end.value.code == 130 and (latest / "report.html").exists()
    assert capsys.readouterr().err == f"kl-audit: interrupted; the new report is in place: {latest}\n"
