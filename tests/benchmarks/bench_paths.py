"""Speed and accuracy of the paths side by side, forward and backward.

Time is pytest-benchmark's own; its ratio to a plain operation timed in turn, and the accuracy, are in extra_info.
The CPU's is CPU time on one thread: what others do on the machine, and how many cores they leave, does not count. An
accelerator's inputs are there before, and its events say when a call began and ended. Beside the time is how much of
the inputs is read in a second, and what a plain copy moves. BENCH names the set: short, for every night, or full.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from audit.base.formats import FORMATS
from audit.cases import normal
from audit.judge.bounds import Exact
from audit.judge.errors import error_columns
from audit.machine.devices import select
from audit.paths import Path, registered
from audit.reference.exact import row_references

KL = [
    p
    for p in registered()
    if p.kind == "kl" and p.reduction == "none" and {p.input_kind, p.target_kind} == {"logits"} and not p.absent
]
PATHS = {(p.name, where): p for p in KL for where in ("cpu", "accelerator") if p.runs_on(where)}
# A loop over the classes, and a compilation for every shape: minutes each.
LEFT_OUT = ("thread_era", "compiled")
NAMES = list(dict.fromkeys(p.name for p in KL))
SHORT = [name for name in NAMES if name not in LEFT_OUT]
SETS = {
    "short": (SHORT, ((64, 10), (64, 1_000), (16, 32_000), (2, 262_144))),
    "full": (
        NAMES,
        ((64, 10), (4_096, 10), (64, 1_000), (1, 32_000), (128, 32_000), (32, 128_256), (8, 262_144)),
    ),
}
DIRECTIONS = ("forward", "backward")
# Seconds of calls, and rounds, of one benchmark: enough for a median, and for 10 minutes in all.
BUDGET, FEWEST, MOST, WARM_UP = 0.1, 5, 60, 2
TIMERS = {"cpu": process_time}


class Point(NamedTuple):
    """One benchmark; its fields are the parameters in bench.json."""

    path: str
    dtype: str
    device: str
    rows: int
    classes: int
    direction: str


def path_on(name: str, device: str) -> Path | None:
    """The path of this name that runs on a device, if there is one."""
    return PATHS.get((name, "cpu" if device == "cpu" else "accelerator"))


def points() -> list[Point]:
    name = os.environ.get("BENCH") or "short"
    if name not in SETS:
        raise pytest.UsageError(f"BENCH={name} is not one of {', '.join(SETS)}")
    paths, sizes = SETS[name]
    return [
        Point(path, dtype, device.name, rows, classes, direction)
        for rows, classes in sizes
        for dtype in FORMATS
        for device in select(None)
        for direction in DIRECTIONS
        for path in paths
        if (here := path_on(path, device.name)) is not None
        and dtype in here.dtypes
        and not (path.startswith("scipy") and direction == "backward")
    ]


class Problem(NamedTuple):
    """Logits on the CPU, the exact KL of each row as text, the scale of its terms, and its exact gradient."""

    input: Tensor
    target: Tensor
    reference: list[str]
    scale: np.ndarray
    gradient: np.ndarray
    mass: np.ndarray


@lru_cache(maxsize=1)
def problem(rows: int, classes: int, dtype: str) -> Problem:
    x, y = (torch.from_numpy(normal(f"bench {side}", rows, classes)) for side in ("input", "target"))
    input, target = (t.to(getattr(torch, dtype)) for t in (x, x + 0.1 * y))
    numbers = input.double().numpy(), target.double().numpy()
    # Ten bits beyond binary64 where the machine has them: these rows are neither peaked nor equal.
    log_q, log_p = (_log_softmax(n.astype(np.longdouble)) for n in numbers)
    p = np.exp(log_p)
    gradient = p * np.expm1(log_q - log_p)
    return Problem(
        input,
        target,
        row_references(*numbers, "logits"),
        Exact.of(*numbers, "logits").scale,
        gradient,
        2 * p + gradient,
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def accuracy_of_values(value: Tensor, exact: Problem) -> pd.DataFrame:
    return error_columns(
        pd.DataFrame(
            {
                "computed": value.detach().double().cpu().numpy(),
                "result_dtype": str(value.dtype).removeprefix("torch."),
                "result_class": "",
                "reference": exact.reference,
                "scale": exact.scale,
            }
        )
    )


def accuracy_of_gradients(gradient: Tensor, exact: Problem) -> pd.DataFrame:
    """A row's gradient as a whole: its largest error, against its largest element and against max(p + q) in u."""
    format = FORMATS[str(gradient.dtype).removeprefix("torch.")]
    if np.finfo(np.longdouble).nmant < format.precision + 8:
        return pd.DataFrame({"correct_bits": [], "scaled_error": []})
    error = np.abs(gradient.double().cpu().numpy() - exact.gradient).max(axis=1)
    with np.errstate(divide="ignore"):
        bits = -np.log2(error / np.abs(exact.gradient).max(axis=1))
    scaled = error / (format.unit_roundoff * exact.mass.max(axis=1))
    return pd.DataFrame({"correct_bits": np.minimum(format.precision, bits), "scaled_error": scaled})


def numbers(errors: pd.DataFrame) -> dict[str, float]:
    """Medians over rows that JSON has: one that is not finite is left out."""
    medians = errors[["correct_bits", "scaled_error"]].astype("float64").median()
    return {name: float(value) for name, value in medians.items() if np.isfinite(value)}


def marked(point: Point) -> object:
    timer = TIMERS.get(point.device, perf_counter)
    return pytest.param(*point, id="-".join(map(str, point)), marks=pytest.mark.benchmark(timer=timer))


def synchronize(device: str) -> None:
    """Waits until everything queued on `device` is done."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))


def device_seconds(work: Callable[[], object], device: str) -> float:
    """From the first kernel's start to the last one's end, by the device's own events."""
    start, stop = (torch.Event(device, enable_timing=True) for _ in range(2))
    start.record()
    work()
    stop.record()
    synchronize(device)
    return start.elapsed_time(stop) / 1e3


@lru_cache
def copying(device: str) -> float:
    """Bytes a second that a copy of 256 MB reads and writes: what no path on numbers beyond the caches exceeds."""
    numbers = torch.zeros(2**26, device=device)
    copy = torch.empty_like(numbers)

    def seconds() -> float:
        if device != "cpu":
            return device_seconds(lambda: copy.copy_(numbers), device)
        start = perf_counter()
        copy.copy_(numbers)
        return perf_counter() - start

    return 2 * numbers.nbytes / median([seconds() for _ in range(WARM_UP + FEWEST)][WARM_UP:])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(Point._fields, [marked(point) for point in points()])
def bench_path(benchmark, path: str, dtype: str, device: str, rows: int, classes: int, direction: str) -> None:
    exact, timer = problem(rows, classes, dtype), TIMERS.get(device, perf_counter)
    function = path_on(path, device).function
    x, y = (t.to(device, copy=True) for t in (exact.input, exact.target))
    plain = x.clone()
    if direction == "backward":
        x.requires_grad_()
        total = function(x, y).sum()

    def work() -> Tensor:
        return torch.autograd.grad(total, x, retain_graph=True)[0] if direction == "backward" else function(x, y)

    def call() -> None:
        work()
        synchronize(device)

    def calibrate(times: int) -> float:
        start = timer()
        for _ in range(times):
            plain.exp().sum(-1)
            synchronize(device)
        return timer() - start

    benchmark.group = f"{direction} {rows}x{classes} {dtype} {device}"
    accuracy = accuracy_of_gradients if direction == "backward" else accuracy_of_values
    benchmark.extra_info.update(numbers(accuracy(work(), exact)))
    calibrate(1)
    start = timer()
    call()
    seconds = timer() - start
    # As long as a call, and in turn with the calls: whatever slows the machine for a while slows both.
    times = max(1, round(seconds / calibrate(1)))
    calibrations: list[float] = []
    benchmark.pedantic(
        call,
        setup=lambda: calibrations.append(calibrate(times) / times),
        warmup_rounds=WARM_UP,
        rounds=int(np.clip(BUDGET / seconds, FEWEST, MOST)),
    )
    rounds = zip(benchmark.stats.stats.data, calibrations[WARM_UP:], strict=True)
    benchmark.extra_info["ratio"] = median(call / calibration for call, calibration in rounds)
    seconds = benchmark.stats.stats.median
    if device != "cpu":  # without what launching and waiting cost
        seconds = median(device_seconds(work, device) for _ in benchmark.stats.stats.data)
        benchmark.extra_info["seconds"] = seconds
    # Both sides are read; backward writes one.
    moved = x.nbytes * (3 if direction == "backward" else 2)
    benchmark.extra_info["gigabytes_per_second"] = moved / seconds / 1e9
    benchmark.extra_info["copy_gigabytes_per_second"] = copying(device) / 1e9
