"""An accelerator for tests: "toy", a PrivateUse1 device in Python that computes on the CPU, with hazards to switch on.

It takes the one name that a process has for such a device, so that whoever uses it does so in a process of its own:
this file as a script plays scenarios, see `play`; TOY=1 in the environment makes the device known where it is imported.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "toy"
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
POISONED = "CUDA error: device-side assert triggered"
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"
FULL = "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 79.10 GiB"
NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
# What waits for the device: the operations that bring numbers to the CPU.
WAITING = ("equal", "_local_scalar_dense", "item")
# What needs neither memory nor a kernel, and what needs memory alone.
VIEWS = ("detach", "view", "_unsafe_view", "expand", "select", "slice", "split", "alias", "unsqueeze", "squeeze", "t")
MEMORY = ("_to_copy", "copy_", "clone", "repeat", "empty", "empty_strided", "zeros", "ones", "fill_")


@dataclass
class Hazards:
    """What goes wrong. Calls are counted over all operations that compute; 0 and "" are never."""

    devices: int = 1
    full_at: int = 0  # out of memory at this call alone
    full_from: int = 0  # and from this call on
    room: int = 0  # out of memory where what a kernel writes has more elements
    poisoned_from: int = 0  # the context is lost at this call, which raises
    poisoned_later: int = 0  # the same, but what raises is the next to wait for the device
    hangs_at: int = 0  # the kernel never ends, and whoever waits for it does not return from C
    float64: int = 1
    kernels: int = 1
    wrong: str = ""  # of this operation, the results are off by a thousandth
    default_dtype: str = ""


HAZARDS = Hazards()
CALLS: Counter[str] = Counter()
STATE = {"poisoned": False, "hung": False}


class Toy(torch.Tensor):
    """A tensor of the device: a wrapper around the CPU's `raw`."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor, index: int) -> Toy:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, index),
        )
        wrapper.raw = raw
        return wrapper

    def __repr__(self) -> str:  # type: ignore[override]
        return f"toy({self.raw})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, *args, **(kwargs or {}))


def run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation: on the CPU, its tensors wrapped again where they belong to the device."""
    name = func.overloadpacket.__name__
    ours = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Toy)]
    named = kwargs.get("device")
    there = torch.device(named) if named is not None else ours[0].device if ours else torch.device("cpu")
    brought = name in WAITING or (bool(ours) and there.type == "cpu")
    copied = name == "copy_" and not isinstance(args[0], Toy)
    _meet_hazards(name, brought or copied)
    answer = func(*tree_map(_raw, args), **tree_map(_raw, kwargs))
    if HAZARDS.wrong and name == HAZARDS.wrong:
        answer = answer * 1.001
    if func._schema.name.endswith("_") or "out" in kwargs:
        return kwargs.get("out", args[0])
    results = [t for t in tree_leaves(answer) if isinstance(t, torch.Tensor)]
    if there.type != NAME or name in WAITING:
        return answer
    if not HAZARDS.float64 and any(t.dtype == torch.float64 for t in results):
        raise TypeError(NO_FLOAT64)
    if HAZARDS.room and name not in (*VIEWS, *MEMORY) and any(t.numel() > HAZARDS.room for t in results):
        raise torch.OutOfMemoryError(FULL)
    return tree_map(lambda t: Toy(t, there.index or 0) if isinstance(t, torch.Tensor) else t, answer)


def _raw(value: Any) -> Any:
    if isinstance(value, Toy):
        return value.raw
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _meet_hazards(name: str, waits: bool) -> None:
    if name in VIEWS:
        return
    if name not in MEMORY:
        CALLS["kernels"] += 1
        if not HAZARDS.kernels:
            raise torch.AcceleratorError(NO_KERNEL)
    call = CALLS["kernels"] if name not in MEMORY else 0
    if 0 < HAZARDS.hangs_at <= call and not waits:
        STATE["hung"] = True
    if call and call in (HAZARDS.poisoned_from, HAZARDS.poisoned_later):
        STATE["poisoned"] = True
    if STATE["poisoned"] and (waits or HAZARDS.poisoned_from):
        raise torch.AcceleratorError(POISONED)
    if STATE["hung"] and waits:
        _hang()
    if (call and call == HAZARDS.full_at) or (HAZARDS.full_from and CALLS["kernels"] >= HAZARDS.full_from):
        raise torch.OutOfMemoryError(FULL)


def _hang() -> None:
    """As a call that waits in C for a kernel that never ends: no signal gets through."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGINT})
    time.sleep(3600)


class Event:
    """torch.Event of the device."""

    def __init__(self, device: Any = None, *, enable_timing: bool = False, **_: object) -> None:
        self.time = 0.0

    def record(self, stream: Any = None) -> None:
        if STATE["poisoned"]:
            raise torch.AcceleratorError(POISONED)
        self.time = time.perf_counter()

    def query(self) -> bool:
        return not STATE["hung"]

    def synchronize(self) -> None:
        if STATE["hung"]:
            _hang()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.time - self.time)


def _setup() -> None:
    """Makes the device known to torch, once a process."""

    class Module(backend_registration._DummyBackendModule):
        def device_count(self) -> int:
            return HAZARDS.devices

        def get_device_name(self, index: object = 0) -> str:
            return "An accelerator that computes on the CPU"

        def synchronize(self, device: object = None) -> None:
            Event().synchronize()

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library = torch.library.Library("_", "IMPL", "PrivateUse1")
    library.fallback(run)
    casts = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
    for name in ("softmax.int", "log_softmax.int"):
        casts.impl(name, _in_float32(getattr(torch.ops.aten, name.split(".")[0]).int))
    casts.impl("kl_div", _kl_div_in_float32)
    fallthrough = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    fallthrough.fallback(torch.library.fallthrough_kernel)
    KEPT.extend((library, casts, fallthrough))
    torch.Event = Event  # type: ignore[misc,assignment]
    torch.accelerator.synchronize = Module().synchronize  # type: ignore[assignment]


KEPT: list[object] = []
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _in_float32(operation: Any) -> Any:
    """softmax and log_softmax under autocast, as torch lists them for its accelerators: in float32."""

    def cast(input: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            wide = torch.float32 if dtype is None and input.dtype != torch.float64 else dtype
            return operation(input, dim, dtype=wide)

    return cast


def _kl_div_in_float32(input: torch.Tensor, target: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        return torch.ops.aten.kl_div(input.float(), target.float(), *args, **kwargs)


def _reset(hazards: Hazards) -> None:
    """The device as new."""
    from audit.machine import devices

    HAZARDS.__dict__.update(hazards.__dict__)
    CALLS.clear()
    STATE.update(poisoned=False, hung=False)
    devices.LOST.clear()
    torch.set_default_dtype(getattr(torch, hazards.default_dtype or "float32"))


def play(scenarios: list[dict[str, Any]], folder: Path) -> list[dict[str, object]]:
    """Runs kl-audit in this process for each scenario: its name, hazards, arguments, and the seconds of its time limit.

    Its report is in a folder of its name; what it printed, and its exit status, are returned.
    """
    from audit.cli import app
    from audit.machine import devices

    _setup()
    played = []
    for scenario in scenarios:
        _reset(Hazards(**scenario["hazards"]))
        devices.LIMIT_SECONDS = scenario.get("limit", 30.0)
        out, error, status = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(error):
            try:
                app([*scenario["arguments"], "--out", str(folder / scenario["name"])])
            except SystemExit as end:
                status = end.code
            except BaseException:
                traceback.print_exc()
                status = -1
        played.append({"name": scenario["name"], "status": status, "out": out.getvalue(), "error": error.getvalue()})
    return played


def whole(out: Path) -> None:
    """The whole quick profile, every look taken, on the CPU and the device."""
    from audit.machine.plan import plan
    from audit.pipeline.loop import execute
    from audit.publish.report import write_report

    _reset(Hazards())
    audit = execute(plan("quick"))
    write_report(audit.tables, audit.environment, out, audit.plots)


if __name__ == "__main__":
    answer = play(json.loads(sys.argv[1]), Path(sys.argv[2]))
    Path(sys.argv[2], "played.json").write_text(json.dumps(answer))
    whole(Path(sys.argv[2], "whole"))
elif "TOY" in os.environ:
    _setup()
