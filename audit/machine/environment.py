"""What produced the numbers, so that another run can be compared with them: environment.json.

And what tells of an NVIDIA device where torch may not see it: the driver's files, the PCI bus, nvidia-smi.
"""

from __future__ import annotations

import os
import pathlib
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from inspect import getfile, unwrap
from signal import SIGKILL
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import TYPE_CHECKING, Any

import torch

import audit
from audit.base.text import plain

if TYPE_CHECKING:
    from audit.machine.devices import Device

PACKAGES = ("torch", "mpmath", "pandas", "numpy", "matplotlib", "typer", "rich", "gmpy2", "python-flint", "scipy")
PCI = pathlib.Path("/sys/bus/pci/devices")
MODULE = pathlib.Path("/sys/module/nvidia/version")
VENDOR, DISPLAY = "0x10de", "0x03"  # of the PCI ID registry: NVIDIA, and the class of what displays or computes
SECONDS = 10.0
# As `nvidia-smi --help-query-gpu` names them.
STATE = ("driver_version", "index", "name", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw",
         "power.limit", "temperature.gpu", "ecc.mode.current", "mig.mode.current")  # fmt: skip


def describe_environment(devices: Sequence[Device], found: Sequence[Device], **run: object) -> dict[str, Any]:
    """The contents of environment.json; `run` holds what the run itself knows: its profile, filters and timings."""
    known = cards()
    return {
        "audit": audit.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "driver": driver(known),
        "cards": known,
        "packages": {name: _version(name) for name in PACKAGES},
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "hip": torch.version.hip,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        },
        "devices": [
            {
                "name": device.name,
                "model": device.model,
                "status": "absent" if device.absent else "audited" if device in devices else "not asked for",
                "reason": device.absent,
            }
            for device in found
        ],
        **run,
    }


def source_digest(function: Callable[..., object]) -> str:
    """Of the file that holds a kernel; empty where none does."""
    with suppress(TypeError, OSError):
        return sha256(pathlib.Path(getfile(unwrap(function))).read_bytes()).hexdigest()[:12]
    return ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


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
    return f"nvidia-smi lists {plain(listed)}" if listed else ""


def cards() -> list[dict[str, str]]:
    """What each of NVIDIA's cards says of itself, with its units; none where nvidia-smi does not answer so."""
    try:
        answer = _nvidia_smi(f"--query-gpu={','.join(STATE)}", "--format=csv,noheader")
    except TimeoutExpired:
        return []
    said = [line.split(", ") for line in answer.splitlines()]
    return [dict(zip(STATE, fields, strict=True)) for fields in said if len(fields) == len(STATE)]


def driver(cards: list[dict[str, str]]) -> str | None:
    """The version of NVIDIA's driver, as the kernel or a card says it; None where neither does."""
    return _line(MODULE) or next((card["driver_version"] for card in cards), None)


def _line(file: pathlib.Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _nvidia_smi(*arguments: str) -> str:
    """What nvidia-smi answers; empty where it fails, has nothing to say or is not there.

    Raises TimeoutExpired where it hangs. It is not waited for then: what waits for a driver may not die of a signal.
    """
    command = ["nvidia-smi", *arguments]
    try:
        process = Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, errors="replace", start_new_session=True)
    except OSError:
        return ""
    try:
        answer, _ = process.communicate(timeout=SECONDS)
    except TimeoutExpired:
        os.killpg(process.pid, SIGKILL)
        raise
    return answer.strip() if process.returncode == 0 else ""
