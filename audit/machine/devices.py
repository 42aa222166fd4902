"""Where paths run: the CPU and whatever accelerator torch offers, through torch's generic accelerator API alone."""

from __future__ import annotations

import pathlib
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from time import perf_counter, sleep
from typing import TypeVar

import torch
from torch import Tensor

from audit.base.text import describe
from audit.base.usage import UsageError, choose, several
from audit.machine.environment import visible_nvidia

# Of one path on one problem, compiling apart. The slowest of ours take a second on the widest problem.
LIMIT_SECONDS = 30.0
# Why nothing more can be had of a device in this process: its context is lost, or a kernel on it does not end.
LOST: dict[str, str] = {}
# What accelerators could not do though they are there, for a run to say.
REMARKS: set[str] = set()
Item = TypeVar("Item")
Row = TypeVar("Row")


@dataclass(frozen=True)
class Device:
    """`name` as in the tables; `model` the hardware's own name; `absent` why it cannot be used, empty if it can."""

    name: str
    model: str = ""
    absent: str = ""

    @property
    def called(self) -> tuple[str, ...]:
        """What it may be asked for as."""
        return self.name, self.name if ":" in self.name else f"{self.name}:0", self.model


def _cpu_model() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
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


def select(names: Iterable[str] | str | None) -> list[Device]:
    """The devices to audit: those named ("cuda:1", or as their hardware calls itself), or one of each model.

    Raises UsageError for a name that is not there, for a device that torch cannot compute on, and where an NVIDIA
    device is visible that torch cannot use and the CPU alone was not asked for: a GPU machine must not pass on its CPU.
    """
    devices = found()
    usable = [d for d in devices if not d.absent]
    listed = ", ".join(d.name for d in usable)
    cure = "install a torch built for it, or ask for the CPU alone with --device cpu"
    asked = [] if names is None else several(names)
    alone = len(usable) == 1 and not set(usable[0].called).intersection(asked)  # a glob does not ask for the CPU
    if alone and (evidence := visible_nvidia()):
        raise UsageError(
            f"an NVIDIA device is visible ({evidence}) but torch {torch.__version__} cannot use it: {cure}"
        )
    if names is None:
        chosen = [d for d in usable if d == next(e for e in usable if e.model == d.model)]
    else:
        for device in (d for d in devices if d.absent and d.name in asked):
            raise UsageError(f"device {device.name!r} is absent: {device.absent}; there are {listed}")
        wanted = set(choose(asked, list(dict.fromkeys(name for d in usable for name in d.called)), "device"))
        chosen = [d for d in usable if wanted.intersection(d.called)]
    for device in chosen:
        if device.name != "cpu" and (fault := _fault(device.name)):
            raise UsageError(
                f"torch {torch.__version__} cannot compute on {device.name} ({device.model}): {fault}; {cure}"
            )
    return chosen


def _fault(device: str) -> str:
    """Why a device does not add two numbers, empty where it does; one that is full may do so later."""
    try:
        here(torch.ones(2, device=device) + 1)
    except Exception as error:
        return "" if isinstance(error, torch.OutOfMemoryError) else describe(error)
    return ""


def lost(device: str) -> str:
    """Why nothing more can be had of a device; empty while it answers."""
    return LOST.get(device, "")


def examine(device: str) -> None:
    """After an error: whether the device is `lost`."""
    if device != "cpu" and not lost(device) and (fault := _fault(device)):
        LOST[device] = f"device lost: {fault}"


def lasting(
    devices: Iterable[str], items: Sequence[Item], work: Callable[[Item, str], Iterable[Row]], what: str
) -> Iterator[Row]:
    """What `work` makes of the items on each device, one after the other, as long as it lasts.

    An accelerator that fails at one, say for want of memory or of float64, leaves that out, which is remarked.
    """
    for device, item in product(devices, items):
        if lost(device):
            continue
        try:
            yield from work(item, device)
        except Exception as error:
            if device == "cpu":
                raise
            examine(device)
            REMARKS.add(f"{what} on {device}: {lost(device) or describe(error)}")


def here(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, once its device is done.

    An event is polled, as a copy that waits for a kernel that hangs would hear no time limit. Raises TimeoutError
    after LIMIT_SECONDS.
    """
    if tensor.device.type != "cpu":
        event, start = torch.Event(tensor.device), perf_counter()
        event.record()
        while not event.query():
            if (waited := perf_counter() - start) > LIMIT_SECONDS:
                raise TimeoutError(f"a kernel has not ended after {LIMIT_SECONDS:g} s")
            sleep(min(waited / 10, 1e-3))
    return tensor.detach().cpu()
