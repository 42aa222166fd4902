"""Whatever is typed: status 2, one line that says what was given, no traceback, and nothing written."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer

import audit
from audit import cli
from audit.base.usage import UsageError

# By hand, from the contract: what has an effect only where a file is judged, never there, and everywhere.
FILE = {"--target-logits", "--input-name", "--target-name", "--mask-name", "--classes", "--unpacked-limit"}
FILE |= {"--input-kind", "--target-kind"}
SWITCHES = {"--resume", "--all-rows"}
CASES = {"--profile", "--case"}
BOTH = {"--path", "--dtype", "--device", "--path-file", "--logits", "--acknowledgements", "--references", "--out"}
BOTH |= {"--workers", "--strict"}
FILE |= {"--resume", "--all-rows", "--scheduler"}
VALUES = {"--profile": "quick", "--case": "two_classes", "--classes": "2", "--unpacked-limit": "9"}
VALUES |= {"--input-kind": "probs", "--target-kind": "log_probs", "--mask-name": "mask"}
LONG = "x" * 300

# Each is wrong wherever it stands among what is right.
FAULTS: list[tuple[str, ...]] = [
    *(("--dtype", text) for text in ("float8", "", "FLOAT32 ", "\x1b[31m", "\udc80", LONG, "=1+1", "<b>|")),
    *(("--path", text) for text in ("log_softmx", "", "[", "*no*such", "\n\n", "-1", "path\twith\ttabs")),
    *(("--case", text) for text in ("nope", "two_classes ", "\udcff", LONG, "../x")),
    *(("--device", text) for text in ("tpu", "cuda:99", "CPU", "", "cpu:0:0")),
    *(("--workers", text) for text in ("0", "-3", "two", "1.5", "", "9" * 30 + "x")),
    *(("--profile", text) for text in ("huge", "", "QUICK", "standard\n")),
    *(("--path-file", text) for text in ("none.py:f", "none.py", ":", "", "bad.py:f", "bad.py", f"{LONG}.py:f")),
    *(("--path-file", text) for text in ("mine.py:nothing", "mine.py:NUMBER", "latin.py:f", ".:f", "exits.py:f")),
    *(("--references", text) for text in ("nonsense", "mine.py", LONG, "/dev/null")),
    *(("--acknowledgements", text) for text in ("none.ini", ".", "latin.py", "mine.py", LONG, "/dev/null/x")),
    *(("--out", text) for text in (".", "..", "/", "mine.py", "mine.py/deeper", LONG, "/proc/x", "full")),
    *((option, VALUES.get(option, "name")) for option in sorted(FILE)),
    ("--nope",),
    ("--dtype",),
    ("stray",),
]
OTHERS: list[tuple[str, ...]] = [
    ("list", "colours"), ("list",), ("list", "cases", "more"), ("bogus",), ("compare", "x"), ("compare", "x", "y"),
    ("compare", "full", "full"), ("compare", LONG, "y"), ("regress", "--report", "none"), ("regress", "--format", "x"),
    ("baseline",), ("baseline", "--reason", "  "), ("baseline", "--reason", "why", "--report", "none"),
    ("references", "burn"), ("references", "build", "--all"), ("thread", "--device", "tpu"), ("diagnose", "none.npz"),
    ("diagnose", "mine.py"), ("diagnose", "full"), ("diagnose",), ("diagnose", f"{LONG}.npz"), ("x\udc80",),
    ("--nope",),
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(cli, "supervise", lambda: None)

    def begun(folder: Path) -> None:
        raise RuntimeError("the work was begun")

    monkeypatch.setattr("audit.pipeline.loop.read_gold", begun)
    (tmp_path / "mine.py").write_text("NUMBER = 1\ndef f(x, y):\n    return x.sum(-1)\n")
    (tmp_path / "bad.py").write_text("def f(:\n")
    (tmp_path / "exits.py").write_text("raise GeneratorExit\n")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\nx = '\xe9'\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_text("")
    np.savez(tmp_path / "mine.npz", input=np.eye(3), target=np.eye(3))
    return tmp_path


@pytest.fixture
def typed(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Types a command line, in this process: the lines on standard error, after all that no fault may do."""
    files = sorted(place.rglob("*"))

    def type_(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["kl-audit", *arguments])
        monkeypatch.setattr(sys, "stdout", os.fdopen(os.dup(1), "w"))
        monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(2), "w"))
        with pytest.raises(SystemExit) as end:
            cli.main()
        sys.stderr.flush()
        said = capfd.readouterr().err
        assert end.value.code == 2, (arguments, end.value.code, said)
        assert said.count("\n") == 1 and said.startswith("kl-audit: ") and said[:-1].isprintable(), (arguments, said)
        left = [f for f in sorted(place.rglob("*")) if "__pycache__" not in f.parts]
        assert left == files, (arguments, left)
        return said.splitlines()

    return type_


def command_lines(number: int) -> list[tuple[str, ...]]:
    chance = random.Random(17)
    sound = [("--dtype", "float32"), ("--path", "log_softmax"), ("--device", "cpu"), ("--workers", "1"), ("--strict",)]
    sound += [("--path-file", "mine.py:f"), ("--out", "reports/latest"), ("--profile", "quick")]
    lines = [("run", *fault) for fault in FAULTS] + OTHERS
    while len(lines) < number:
        faults = chance.choices(FAULTS, k=chance.choice([1, 1, 2, 3]))
        named = {fault[0] for fault in faults}  # of an option given twice the last counts
        parts = [part for part in chance.sample(sound, chance.randrange(5)) if part[0] not in named] + faults
        chance.shuffle(parts)
        lines.append(("run", *(word for part in parts for word in part)))
    chance.shuffle(lines)
    return lines[:number]


def test_a_wrong_command_line_is_refused_in_one_line(typed: Callable[..., list[str]]) -> None:
    for line in command_lines(150):
        typed(*line)


@pytest.mark.slow
def test_two_thousand_wrong_command_lines_are_refused_in_one_line(typed: Callable[..., list[str]]) -> None:
    for line in command_lines(2_000):
        typed(*line)


def test_every_option_is_known_to_have_an_effect_or_is_refused(typed: Callable[..., list[str]]) -> None:
    command = typer.main.get_command(cli.app).commands["run"]  # type: ignore[attr-defined]
    flags = {option for p in command.params for option in p.opts if option not in ("--help",)}
    assert flags == FILE | CASES | BOTH | {"--isolate"}, "say where the new option has an effect"
    assert "--isolate has no effect without --path-file" in typed("run", "--isolate")[0]
    for option in sorted(FILE):
        words = [option] if option in SWITCHES else [option, VALUES.get(option, "name")]
        assert f"{option} has no effect without --logits" in typed("run", *words)[0]
    for option in sorted(CASES):
        assert f"{option} has no effect with" in typed("run", "--logits", "mine.npz", option, VALUES[option])[0]


@pytest.mark.parametrize(
    "given",
    [
        {"workers": 0}, {"workers": -3}, {"devices": {}}, {"devices": []}, {"cases": ()}, {"dtypes": set()},
        {"paths": []}, {"cases": [3]}, {"devices": {0: 1}}, {"profile": "huge"}, {"out": "/proc/x"}, {"out": "a\0b"},
    ],
    ids=str,
)  # fmt: skip
def test_run_in_python_refuses_what_has_no_effect_or_cannot_be(given: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        audit.run(**({"profile": "quick", "cases": "two_classes"} | given))  # type: ignore[arg-type]
