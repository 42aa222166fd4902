"""Whatever is typed: status 2, one line that says what was given, no traceback, and nothing written."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

import audit
from audit import cli
from audit.base.usage import UsageError
from audit.paths import registered

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
    for option in sorted((FILE | CASES | BOTH) - SWITCHES - {"--strict"}):
        for empty in ([option, ""], [f"{option}="]):
            assert f"{option}: expected a value, got an empty one" in typed("run", *empty)[0]
        if option not in {"--case", "--path", "--dtype", "--device", "--path-file", "--acknowledgements"}:
            assert f"{option} takes one value and is given 2 times" in typed("run", option, "1", f"{option}=2")[0]
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


def kernel(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return input.sum(-1) - target.sum(-1)


LOGITS = torch.zeros(2, 3)
PATHS = {(p.name, p.reduction, p.input_kind, p.target_kind, p.where): p for p in registered()}
# What a person may give in the place of something else.
THINGS: list[object] = [5, -1, 1.5, float("nan"), True, b"x", "nonsense", object(), [], [5], {}, int, torch.zeros(2)]
# A function, and each of its arguments that is a word, a number or a list of those.
TAKEN: dict[Callable[..., object], tuple[str, ...]] = {
    partial(audit.run, cases="two_classes"): ("profile", "cases", "paths", "dtypes", "devices", "workers"),
    partial(audit.check, kernel): ("profile", "dtypes", "devices", "rounding", "temperature", "reduction", "workers"),
    audit.check: ("kernel",),
    audit.assert_sound: ("kernel",),
    audit.Rounding: ("target", "input", "storage", "compute", "result", "temperature", "exp_slope"),
    lambda **given: audit.path(**{"name": "mine"} | given)(kernel): (
        "name", "summary", "kind", "reduction", "input_kind", "target_kind", "dtypes", "quantity", "cases", "rounding",
        "where", "nothing",
    ),
    lambda fn: audit.path("mine")(fn): ("fn",),
    partial(audit.diagnose, LOGITS, LOGITS): ("reduction", "dim", "mask"),
    partial(audit.diagnose_tokens, LOGITS, LOGITS): ("mask",),
    partial(audit.kl_div_from_logits, LOGITS, LOGITS): ("reduction", "dim", "mask", "temperature"),
    partial(audit.exact_kl, LOGITS, LOGITS): ("reduction", "input_kind", "target_kind", "digits"),
    partial(audit.read_table, "reports"): ("name",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("function", "argument"), [(function, name) for function, names in TAKEN.items() for name in names]
)
def test_what_is_no_argument_is_refused_in_python_as_wrong_usage(
    function: Callable[..., object], argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it is one: nothing else comes of it than the work that was asked for."""

    class Begun(Exception):
        pass

    def begin(*_: object, **__: object) -> None:
        raise Begun

    for module in ("audit.pipeline.loop", "audit.pipeline.verdict"):
        monkeypatch.setattr(f"{module}.execute", begin)
    monkeypatch.setattr("audit.base.workers.ProcessPoolExecutor", begin)
    for thing in THINGS:
        monkeypatch.setattr("audit.paths.PATHS", PATHS.copy())
        with suppress(UsageError, Begun):
            function(**{argument: thing})


@pytest.mark.parametrize(
    "call",
    [
        lambda: audit.check("log_softmax"),
        lambda: audit.check([]),
        lambda: audit.check(kernel, rounding="fused"),
        lambda: audit.Rounding(storage="foo"),
        lambda: audit.path("mine", foo=1)(kernel),
        lambda: audit.path("mine", rounding="x")(kernel),
        lambda: audit.path("mine", quantity="kl2")(kernel),
    ],
)
def test_a_word_that_is_none_is_refused_before_anything_is_computed(call: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        call()


def test_dtypes_and_devices_may_be_torchs_own() -> None:
    errors = audit.run(
        cases="two_classes", paths="log_softmax", dtypes=[torch.float32, "float64"], devices=torch.device("cpu")
    )
    assert set(errors["dtype"]) == {"float32", "float64"} and set(errors["device"]) == {"cpu"}
