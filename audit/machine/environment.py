"""environment.json: what produced the numbers, so that another run can be compared with them."""

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

import torch

import audit
from audit.machine import nvidia
from audit.machine.devices import Device

PACKAGES = ("torch", "mpmath", "pandas", "numpy", "matplotlib", "typer", "rich", "gmpy2", "python-flint", "scipy")


def describe_environment(devices: Sequence[Device], found: Sequence[Device], **run: object) -> dict[str, object]:
    """The contents of environment.json; `run` holds what the run itself knows: its profile, filters and timings."""
    cards = nvidia.cards()
    return {
        "audit": audit.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "driver": nvidia.driver(cards),
        "cards": cards,
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
