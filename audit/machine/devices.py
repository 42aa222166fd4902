"""Where paths run: the CPU and whatever accelerator torch offers, through torch's generic accelerator API alone."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from audit.base.usage import UsageError, choose
from audit.machine.nvidia import visible_nvidia


@dataclass(frozen=True)
class Device:
    """`name` as in the tables; `model` the hardware's own name; `absent` why it cannot be used, empty if it can."""

    name: str
    model: str = ""
    absent: str = ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def found() -> list[Device]:
    """The CPU, every accelerator of torch's current kind ("cuda" is the first), and "cuda" as absent where it is."""
    devices = [Device("cpu", _cpu_model())]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        kind = accelerator.type
        for index in range(torch.accelerator.device_count()):
            module = torch.get_device_module(kind)
            model = module.get_device_name(index) if hasattr(module, "get_device_name") else kind
            devices.append(Device(kind if index == 0 else f"{kind}:{index}", model))
    if accelerator is None or accelerator.type != "cuda":
        reason = "torch finds no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
        devices.append(Device("cuda", absent=reason))
    return devices


def select(names: list[str] | str | None) -> list[Device]:
    """The devices to audit: those named, or the CPU and the first accelerator.

    Raises UsageError for a name that is not there, and where an NVIDIA device is visible that torch cannot use and
    the CPU alone was not asked for: a GPU machine must not pass on its CPU.
    """
    devices = found()
    usable = [d for d in devices if not d.absent]
    if names is not None:
        for device in devices:
            if device.absent and device.name in ([names] if isinstance(names, str) else names):
                raise UsageError(
                    f"device {device.name!r} is absent: {device.absent}; there are {', '.join(d.name for d in usable)}"
                )
        chosen = choose(names, [d.name for d in usable], "device")
        return [d for d in usable if d.name in chosen]
    if len(usable) == 1 and (evidence := visible_nvidia()):
        raise UsageError(
            f"an NVIDIA device is visible ({evidence}) but torch {torch.__version__} cannot use it: install a torch "
            "built for it, or ask for the CPU alone with --device cpu"
        )
    return usable[:2]


def synchronize(device: str) -> None:
    """Waits until everything queued on `device` is done."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))
