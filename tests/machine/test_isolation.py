"""A kernel in a process of its own gives what it gives here, and what ends or holds it up costs its own results."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from audit.base.usage import UsageError
from audit.machine import devices
from audit.machine.isolation import isolated, load
from audit.machine.measure import TOO_SLOW, Misbehaved, measure
from audit.paths import own_path

KERNELS = """
import os, time, torch

def plain(x, y):
    return (y.softmax(-1) * (y.log_softmax(-1) - x.log_softmax(-1))).sum(-1)

def detached(x, y):
    return plain(x, y).detach()

def exits(x, y):
    return os._exit(3) if len(x) == 2 else plain(x, y)

def aborts(x, y):
    return os.abort() if len(x) == 2 else plain(x, y)

def raises(x, y):
    raise ValueError("not for these")

def hangs(x, y):
    while len(x) == 2:
        time.sleep(0.1)
    return plain(x, y)

def writes(x, y):
    x.zero_()
    return plain(x, y)
"""


@pytest.fixture
def kernel(tmp_path: Path):
    file = tmp_path / "kernels.py"
    file.write_text(KERNELS)

    def of(name: str):
        text = f"{file}:{name}"
        return isolated(load(text), text)

    return of


def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randn(2, count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, y


def test_values_and_gradients_are_those_of_the_kernel_itself(kernel) -> None:
    plain = kernel("plain")
    x, y = (t.requires_grad_() for t in rows(3))
    log_q, log_p = x.log_softmax(-1), y.log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(plain(x, y), expected)
    for found, right in zip(
        torch.autograd.grad(plain(x, y).sum(), (x, y)), torch.autograd.grad(expected.sum(), (x, y)), strict=True
    ):
        torch.testing.assert_close(found, right)
    none = torch.autograd.grad(kernel("detached")(x, y).sum(), (x, y), allow_unused=True)
    assert none == (None, None)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("exits", "ended its process with status 3"),
        ("aborts", "ended its process by SIGABRT"),
        ("raises", "ValueError: not for these"),
        ("writes", "changed its inputs in place"),
    ],
)
def test_what_goes_wrong_there_is_said_here_and_the_next_call_is_answered(kernel, name: str, note: str) -> None:
    function = kernel(name)
    with pytest.raises(Misbehaved, match=note):
        function(*rows(2))
    if name in ("exits", "aborts"):
        assert function(*rows(3)).shape == (3,)


def test_a_kernel_that_does_not_end_is_stopped_with_its_process(kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_path(kernel("hangs"))
    assert not measure(path, *rows(3)).note  # its process is there
    monkeypatch.setattr(devices, "LIMIT_SECONDS", 1.0)
    start = time.monotonic()
    assert TOO_SLOW in measure(path, *rows(2)).note
    assert time.monotonic() - start < 20
    monkeypatch.undo()
    assert not measure(path, *rows(3)).note


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="file that exists"):
        load("nowhere.py:kernel")
