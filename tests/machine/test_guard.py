"""Whatever a kernel raises or changes is a note on its rows, and nothing of it is left for the next path."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.machine.measure import _STATE, measure
from audit.paths import Path


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def raised(error: BaseException) -> Callable[[Tensor, Tensor], Tensor]:
    def kernel(input: Tensor, target: Tensor) -> Tensor:
        raise error

    return kernel


def after(change: Callable[[], object]) -> Callable[[Tensor, Tensor], Tensor]:
    def kernel(input: Tensor, target: Tensor) -> Tensor:
        change()
        return (input - target).float().sum(-1)

    return kernel


def result(kernel: Callable[[Tensor, Tensor], Tensor]):
    return measure(Path("mine", kernel, ""), torch.ones(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (asyncio.CancelledError(), "CancelledError"),
        (GeneratorExit(), "GeneratorExit"),
        (StopIteration(1), "StopIteration: 1"),
        (SystemExit(0), "SystemExit: 0"),
        (Unspeakable(), "Unspeakable: its text raises ValueError"),
        (ValueError("\udc80 \x1b[31mred\x07\u202e"), "ValueError: \\udc80 \\x1b[31mred\\x07\\u202e"),
        (ValueError("first\rsecond\nthird"), "ValueError: first\\rsecond"),
        (ValueError("x" * 10**6), "ValueError: " + "x" * 500),
        (BaseException("é = 1 | <b>"), "BaseException: é = 1 | <b>"),
    ],
)
def test_what_a_kernel_raises_is_one_plain_line(error: BaseException, note: str) -> None:
    assert result(raised(error)).note == note
    assert result(after(int)).note == ""


CHANGES: dict[str, Callable[[], object]] = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "gradient mode": lambda: torch.set_grad_enabled(True),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "flush to zero": lambda: torch.set_flush_denormal(True),
    "random seed": lambda: torch.manual_seed(torch.initial_seed() + 1),
    "numpy's error state": lambda: np.seterr(all="raise"),
    "working folder": lambda: os.chdir("/"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_state_of_the_process_is_put_back_and_named(name: str) -> None:
    assert set(CHANGES) == set(_STATE)
    before = [read() for read, _ in _STATE.values()]
    if name == "flush to zero" and not torch.set_flush_denormal(False):
        pytest.skip("this processor flushes nothing")
    assert name in result(after(CHANGES[name])).note
    assert [read() for read, _ in _STATE.values()] == before


def test_random_numbers_are_no_change_and_the_next_call_gets_the_same() -> None:
    def noise(input: Tensor, target: Tensor) -> Tensor:
        return torch.rand(len(input))

    first, second = result(noise), result(noise)
    assert first.note == "" and (first.computed == second.computed).all()


def test_a_closed_stream_is_open_again(capfd: pytest.CaptureFixture[str]) -> None:
    out = sys.stdout
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    try:
        assert result(after(lambda: os.close(1))).note == ""
        assert result(after(lambda: sys.stdout.close())).note == "changed the stdout"
        print("still here", flush=True)
    finally:
        sys.stdout = out
    assert "still here" in capfd.readouterr().out
