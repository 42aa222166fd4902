"""What tells of an NVIDIA device where torch may not see it: the driver's files, the PCI bus, nvidia-smi."""

from __future__ import annotations

import os
import pathlib
import re
from contextlib import suppress
from shutil import which
from signal import SIGKILL
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

PCI = pathlib.Path("/sys/bus/pci/devices")
MODULE = pathlib.Path("/sys/module/nvidia/version")
VENDOR, DISPLAY = "0x10de", "0x03"  # of the PCI ID registry: NVIDIA, and the class of what displays or computes
SECONDS = 10.0
# As `nvidia-smi --help-query-gpu` names them.
STATE = ("index", "name", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit",
         "temperature.gpu", "ecc.mode.current", "mig.mode.current")  # fmt: skip


def visible_nvidia() -> str:
    """What shows that this machine has an NVIDIA device; empty where nothing does or it was hidden on purpose.

    A device whose driver is not there, or does not answer, is one nevertheless.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset") in ("", "-1"):
        return ""
    for folder, pattern in (("/proc/driver/nvidia/gpus", "*"), ("/dev", "nvidia[0-9]*")):
        for entry in sorted(pathlib.Path(folder).glob(pattern)):
            return str(entry)
    for card in sorted(PCI.glob("*")):
        if _line(card / "vendor") == VENDOR and _line(card / "class").startswith(DISPLAY):
            return f"PCI device {card.name}, without NVIDIA's driver"
    try:
        listed = _nvidia_smi("-L").partition("\n")[0]
    except TimeoutExpired:
        return f"nvidia-smi does not answer within {SECONDS:.0f} s"
    return f"nvidia-smi lists {listed}" if listed else ""


def driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none, or none that answers."""
    answer = _line(MODULE)
    with suppress(TimeoutExpired):
        answer = answer or _nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    return answer if re.fullmatch(r"[\d.]+", answer) else None


def cards() -> list[dict[str, str]]:
    """What each of NVIDIA's cards says of itself, with its units; none where nvidia-smi does not answer."""
    with suppress(TimeoutExpired):
        lines = _nvidia_smi(f"--query-gpu={','.join(STATE)}", "--format=csv,noheader").splitlines()
        return [dict(zip(STATE, line.split(", "), strict=False)) for line in lines]
    return []


def _line(file: pathlib.Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _nvidia_smi(*arguments: str) -> str:
    """What nvidia-smi answers, in lines of printable text; empty where it fails, has nothing to say or is not there.

    Raises TimeoutExpired where it hangs. It is not waited for then: what waits for a driver may not die of a signal.
    """
    if (command := which("nvidia-smi")) is None:
        return ""
    try:
        process = Popen(
            [command, *arguments], stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, errors="replace", start_new_session=True
        )
    except OSError:
        return ""
    try:
        answer, _ = process.communicate(timeout=SECONDS)
    except TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, SIGKILL)
        raise
    text = answer.strip() if process.returncode == 0 else ""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
