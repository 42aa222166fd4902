"""One path, once, on one device, for all rows of a problem: what it gives, and what it does wrong.

What a call of anyone's code may leave behind is undone, and said; what it raises is an Exception.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.base.formats import FORMATS
from audit.base.supervision import Ended, calling
from audit.base.text import describe
from audit.machine import devices
from audit.machine.devices import REMARKS, examine, here, lost
from audit.paths import Path

TOO_SLOW = "too slow"
# What a kernel's pace is told by: rows and classes, calls at most, and seconds.
PACED, ROUNDS, PACE_SECONDS = (64, 1_000), 25, 0.5
_TINY = 2.0**-1022
# How each is read, and how it is put back.
_STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, torch.set_default_device),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "autocast": (partial(torch.is_autocast_enabled, "cpu"), partial(torch.set_autocast_enabled, "cpu")),
    "flush to zero": (lambda: _TINY / 2 == 0, torch.set_flush_denormal),
    "random seed": (torch.initial_seed, lambda _: None),  # put back with the generator's state
    "numpy's error state": (np.geterr, lambda state: np.seterr(**state)),
    "working folder": (os.getcwd, os.chdir),
}


class Stopwatch:
    """Adds up the seconds spent in its `with` blocks."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += perf_counter() - self._start


# What this process has spent in the paths themselves, until their numbers were here; and in compiling some of them.
TORCH, COMPILING = Stopwatch(), Stopwatch()


class TooSlow(BaseException):
    """No Exception, so that a kernel that survives everything does not survive this."""


class Misbehaved(RuntimeError):
    """Says what a call did that no function may do."""


@dataclass(frozen=True)
class Result:
    """What a path gave on a device: numbers in binary64 (exact), one a row or one in all; or `note`, why none."""

    path: Path
    device: str
    computed: NDArray[np.float64]
    dtype: str = ""
    note: str = ""
    too_slow: bool = False

    @classmethod
    def none(cls, path: Path, device: str, rows: int, note: str, too_slow: bool = False) -> Result:
        computed = np.full(rows if path.reduction == "none" else 1, np.nan)
        return cls(path, device, computed, note=note, too_slow=too_slow)


def measure(path: Path, input: Tensor, target: Tensor) -> Result:
    """Runs the path on copies of two tensors of shape (rows, classes), checks what it returns, and brings that back.

    Whatever the path does wrong (raises, exits, returns another shape, dtype or device, changes its inputs or the
    process's state, takes longer than LIMIT_SECONDS) becomes the note of a result without numbers. The time limit is
    kept wherever Python has the word, in the main thread; a call that never returns from C is the user's to interrupt.
    Where a device has no room for all rows, they are computed in halves; one that is lost says so.
    """
    device = str(input.device).removesuffix(":0")  # as in the tables
    note, start, full = lost(device), perf_counter(), False
    if note:
        return Result.none(path, device, len(input), note)
    try:
        given = input.clone(), target.clone()
        called = path.name, input.dtype, device
        with torch.no_grad():
            if path.compiles:  # which takes as long as it takes
                with guarded(*called, COMPILING):
                    path.function(*given)
                start = perf_counter()
            with guarded(*called), _limited():
                output = path.function(*given)
                note = _objection(path, output, input)
                if not note:
                    # On an accelerator the numbers are there only once they are here.
                    computed = here(output)
        if not (same(given[0], input) and same(given[1], target)):
            note = "changed its inputs in place"
    except TooSlow:
        note = f"{TOO_SLOW}: took more than {devices.LIMIT_SECONDS:g} s"
    except (Exception, SystemExit) as error:
        note = str(error) if isinstance(error, Misbehaved) else describe(error)
        full = isinstance(error, torch.OutOfMemoryError)
    too_slow = perf_counter() - start > devices.LIMIT_SECONDS
    if full and len(input) > 1 and path.reduction == "none":
        return _in_halves(path, input, target)
    if note:
        examine(device)
        return Result.none(path, device, len(input), lost(device) or note, too_slow)
    return Result(path, device, computed.reshape(-1).double().numpy(), str(computed.dtype).removeprefix("torch."))


def _in_halves(path: Path, input: Tensor, target: Tensor) -> Result:
    """The first half of the rows, then the second; no numbers where either has none."""
    half = len(input) // 2
    first = measure(path, input[:half], target[:half])
    second = first if first.note else measure(path, input[half:], target[half:])
    if second.note:
        return Result.none(path, second.device, len(input), second.note, first.too_slow or second.too_slow)
    REMARKS.add(f"{path.name} on {input.device.type}: out of memory, computed in halves")
    return replace(second, computed=np.concatenate((first.computed, second.computed)))


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes as integers, one a number: what tells -0.0 from 0.0, and a NaN from another."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same(tensor: Tensor, original: Tensor) -> bool:
    """Whether shape and bytes are the same: NaN is unlike itself, and torch counts no write through .data."""
    if (tensor.shape, tensor.dtype, tensor.device) != (original.shape, original.dtype, original.device):
        return False
    if tensor.device.type == "cpu":  # numpy compares halves nine times as fast
        return np.array_equal(bits(tensor).numpy(), bits(original).numpy())
    return torch.equal(bits(tensor), bits(original))


def _objection(path: Path, output: object, input: Tensor) -> str:
    if not isinstance(output, Tensor):
        return f"returned {type(output).__name__}, expected a tensor"
    if path.reduction == "none" and tuple(output.shape) != (len(input),):
        return f"returned shape {tuple(output.shape)}, expected one value a row: ({len(input)},)"
    if path.reduction != "none" and output.numel() != 1:
        return f"returned shape {tuple(output.shape)}, expected one value"
    if str(output.dtype).removeprefix("torch.") not in FORMATS:
        return f"returned {output.dtype}, expected one of {', '.join(FORMATS)}"
    if output.device != input.device:
        return f"returned a tensor on {output.device}, expected {input.device}"
    return ""


def pace(path: Path, other: Path, device: str) -> float:
    """The other's seconds over the path's: a forward call on rows in float32, medians of calls in turn.

    Both take logits. Not a number where either gives no number.
    """
    x, y = (t.to(device) for t in torch.randn(2, *PACED, generator=torch.Generator().manual_seed(0)))
    if any(measure(each, x, y).note for each in (path, other)):
        return float("nan")
    taken: dict[Path, list[float]] = {path: [], other: []}
    start = perf_counter()
    with torch.no_grad():
        while len(taken[other]) < ROUNDS and perf_counter() - start < PACE_SECONDS:
            for each, seconds in taken.items():
                begun = perf_counter()
                here(each.function(x, y))
                seconds.append(perf_counter() - begun)
    return median(taken[other]) / median(taken[path])


@contextmanager
def guarded(path: str, dtype: torch.dtype, device: str, stopwatch: Stopwatch = TORCH) -> Iterator[None]:
    """Around a call: raises Misbehaved for what is no Exception, and for state of the process that it changed.

    That state is restored: torch's, its seeds, and standard output and error where they were closed. Whoever wrote the
    call may need torch's warnings; a table made of it does not.
    """
    calling(path, str(dtype).removeprefix("torch."), device)
    before, seeds = [read() for read, _ in _STATE.values()], torch.get_rng_state()
    changed: list[str] = []
    try:
        with stopwatch, warnings.catch_warnings(), _open("stdout", 1, changed), _open("stderr", 2, changed):
            warnings.simplefilter("ignore")
            yield
    except (Exception, TooSlow, Ended):
        raise
    except BaseException as error:
        # Under `supervise` who presses Ctrl-C raises Ended.
        if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            raise
        raise Misbehaved(describe(error)) from error
    finally:
        for (name, (read, restore)), value in zip(_STATE.items(), before, strict=True):
            if read() != value:
                restore(value)
                changed.append(name)
        torch.set_rng_state(seeds)
    if changed:
        raise Misbehaved(f"changed the {', the '.join(changed)}")


@contextmanager
def _open(name: str, number: int, changed: list[str]) -> Iterator[None]:
    """A standard stream that is there afterwards too."""
    stream = getattr(sys, name)
    spare = os.dup(number)
    try:
        yield
    finally:
        os.dup2(spare, number)
        if stream.closed:
            stream = open(number, "w", encoding=stream.encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
            changed.append(name)
        setattr(sys, name, stream)
        os.close(spare)


@contextmanager
def _limited() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    handler = signal.signal(signal.SIGALRM, stop)
    # Again every second: Python swallows what is raised in a callback of its garbage collector.
    others = signal.setitimer(signal.ITIMER_REAL, devices.LIMIT_SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *others)
        signal.signal(signal.SIGALRM, handler)
