"""An NVIDIA device without a driver that works is told apart from no device, in bounded time."""

import time
from pathlib import Path

import pytest

from audit.machine import environment
from audit.machine.environment import STATE, cards, driver, visible_nvidia

pytestmark = pytest.mark.skipif(
    any(Path("/dev").glob("nvidia[0-9]*")) or Path("/proc/driver/nvidia/gpus").exists(), reason="a device of its own"
)
FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
CARD = "580.95.05, " + ", ".join(STATE[1:])


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine whose nvidia-smi is this shell script, with these (vendor, class) on its PCI bus."""

    def make(script: str | None = None, *cards: tuple[str, str]) -> None:
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(environment, "PCI", tmp_path / "pci")
        monkeypatch.setattr(environment, "MODULE", tmp_path / "version")
        if script is not None:
            (tmp_path / "nvidia-smi").write_bytes(b"#!/bin/sh\n" + script.encode())
            (tmp_path / "nvidia-smi").chmod(0o755)
        for index, card in enumerate(cards):
            folder = tmp_path / "pci" / f"0000:0{index}:00.0"
            folder.mkdir(parents=True)
            for name, text in zip(("vendor", "class"), card, strict=True):
                (folder / name).write_text(text + "\n")

    return make


@pytest.mark.parametrize(
    ("script", "seen", "version"),
    [
        (None, "", None),
        ("echo 'GPU 0: A'", "nvidia-smi lists GPU 0: A", None),
        (f"echo '{CARD}'", f"nvidia-smi lists {CARD}", "580.95.05"),
        ("true", "", None),
        (f'echo "{FAILED}"; exit 9', "", None),
        (r"printf 'GPU \377\376\033[31m\n'", "nvidia-smi lists GPU \ufffd\ufffd\\x1b[31m", None),
        ("exit 1", "", None),
        ("kill -SEGV $$", "", None),
        (r"printf '\377\376'; exit 3", "", None),
    ],
)
def test_nvidia_smi_is_evidence_only_where_it_lists_a_device(machine, script, seen, version) -> None:
    machine(script)
    assert visible_nvidia() == seen
    assert driver(cards()) == version


def test_nvidia_smi_that_is_no_program_is_no_evidence(machine, tmp_path: Path) -> None:
    machine("")
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF")
    assert (visible_nvidia(), driver(cards())) == ("", None)


def test_nvidia_smi_that_hangs_tells_of_a_device_and_is_ended(machine, tmp_path: Path, monkeypatch) -> None:
    machine(f"sleep 30 & echo $! > {tmp_path}/child; wait")
    monkeypatch.setattr(environment, "SECONDS", 0.5)
    start = time.monotonic()
    assert "does not answer" in visible_nvidia()
    assert driver(cards()) is None
    assert time.monotonic() - start < 5
    child = Path("/proc") / (tmp_path / "child").read_text().strip()
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2]:
        assert time.monotonic() - start < 10, "what it began lives on"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("card", "seen"),
    [
        (("0x10de", "0x030200"), True),
        (("0x10de", "0x030000"), True),
        (("0x10de", "0x040300"), False),  # the sound of a card
        (("0x8086", "0x030000"), False),
    ],
)
def test_a_card_whose_driver_is_not_there_is_a_device(machine, card: tuple[str, str], seen: bool) -> None:
    machine(f'echo "{FAILED}"; exit 9', ("0x8086", "0x060000"), card)
    assert bool(visible_nvidia()) == seen
    if seen:
        assert "0000:01:00.0" in visible_nvidia()


def test_the_driver_is_asked_of_the_kernel_first(machine, tmp_path: Path) -> None:
    machine("echo 1.0")
    (tmp_path / "version").write_text("570.1\n")
    assert driver(cards()) == "570.1"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_what_is_hidden_on_purpose_is_not_seen(machine, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    machine("echo 'GPU 0: A'", ("0x10de", "0x030200"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not visible_nvidia()
