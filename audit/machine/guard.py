"""What a call of anyone's code may leave behind is undone, and said; what it raises is an Exception."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from audit.base.supervision import Ended, calling
from audit.base.text import describe

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


class TooSlow(BaseException):
    """No Exception, so that a kernel that survives everything does not survive this."""


class Misbehaved(RuntimeError):
    """Says what a call did that no function may do."""


@contextmanager
def guarded(path: str, dtype: torch.dtype, device: str) -> Iterator[None]:
    """Around a call: raises Misbehaved for what is no Exception, and for state of the process that it changed.

    That state is restored: torch's, its seeds, and standard output and error where they were closed.
    """
    calling(path, str(dtype).removeprefix("torch."), device)
    before, seeds = [read() for read, _ in _STATE.values()], torch.get_rng_state()
    changed: list[str] = []
    try:
        with _open("stdout", 1, changed), _open("stderr", 2, changed):
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
