"""The same call, executed otherwise: alone, in another order, strided, on one thread, compiled."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from shutil import which

import torch
from torch import Tensor

from audit.paths import path
from audit.paths.functional import PLAIN, log_softmax
from audit.paths.rounding import Rounding

Function = Callable[[Tensor, Tensor], Tensor]


def again(f: Function, x: Tensor, y: Tensor) -> Tensor:
    return f(x, y)


def row_alone(f: Function, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([f(a.clone(), b.clone()) for a, b in zip(torch.split(x, 1), torch.split(y, 1), strict=True)])


def permuted(f: Function, x: Tensor, y: Tensor) -> Tensor:
    return f(x.flip(-1), y.flip(-1))


def constant(f: Function, x: Tensor, y: Tensor) -> Tensor:
    """Adds 1 to the rows whose logits all stay exact."""
    shifted = x + 1
    exact = ((shifted - 1) == x).all(-1)
    return torch.where(exact, f(shifted, y), f(x, y))


def padded(f: Function, x: Tensor, y: Tensor) -> Tensor:
    return f(*(torch.nn.functional.pad(t, (0, 3), value=-torch.inf) for t in (x, y)))


def one_thread(f: Function, x: Tensor, y: Tensor) -> Tensor:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return f(x, y)
    finally:
        torch.set_num_threads(threads)


def strided(f: Function, x: Tensor, y: Tensor) -> Tensor:
    return f(*(torch.stack((t, t), -1).select(-1, 0) for t in (x, y)))


EXECUTIONS: dict[str, Callable[[Function, Tensor, Tensor], Tensor]] = {
    "run to run": again,
    "row alone": row_alone,
    "classes reversed": permuted,
    "constant added": constant,
    "padded with -inf": padded,
    "one thread": one_thread,
    "strided": strided,
}

# Vectors may not line up with a row's beginning, so that only the form is promised, not the order of the sums.
ANY_ORDER = Rounding("softmax", "log_softmax", separate=False, exp_slope=0.0)
for _name, _execution, _rounding, _summary in (
    ("row_alone", row_alone, PLAIN, "each row in a batch of its own"),
    ("one_thread", one_thread, PLAIN, "on one thread"),
    ("strided", strided, ANY_ORDER, "on logits that are two elements apart in memory"),
):
    path(_name, summary=f"the log_softmax path, {_summary}", rounding=_rounding)(partial(_execution, log_softmax))


@cache
def _compiled() -> Function:
    function: Function = torch.compile(log_softmax, dynamic=True)
    return function


@path(
    "compiled",
    # A few shapes and no more: they show what fusing changes, and compiling takes seconds a dtype.
    cases=("random_scale10", "near_1e-02", "peaked_gap12", "zipf_n32000"),
    absent="" if which(os.environ.get("CXX", "c++")) else "torch.compile needs a C++ compiler, and there is none",
)
def compiled(input: Tensor, target: Tensor) -> Tensor:
    """torch.compile of the log_softmax path."""
    return _compiled()(input, target)
