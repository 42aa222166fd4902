"""environment.json: what produced the numbers, so that another run can be compared with them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from shutil import which

import torch

import audit
from audit.machine.devices import Device

PACKAGES = ("torch", "mpmath", "pandas", "numpy", "matplotlib", "typer", "rich", "gmpy2", "python-flint", "scipy")


def describe_environment(devices: Sequence[Device], found: Sequence[Device], **run: object) -> dict[str, object]:
    """The contents of environment.json; `run` holds what the run itself knows: its profile, filters and timings."""
    return {
        "audit": audit.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "driver": _driver(),
        "packages": {name: _version(name) for name in PACKAGES},
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
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


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The version of the NVIDIA driver."""
    if (tool := which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return answer.stdout.partition("\n")[0].strip() or None
