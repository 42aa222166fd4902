"""The reference engine against others: one pair of rows of 131,072 classes, CPU time, one core.

A BLAS that works on several cores counts the time of all: OPENBLAS_NUM_THREADS=1 keeps it to one.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from mpmath import mp

from audit.base.formats import FORMATS
from audit.cases import normal
from audit.reference import enclosure, engine
from audit.reference.fixedpoint import tables

CLASSES = 131_072


def cpu_time(function: Callable[[], object], rounds: int) -> float:
    function()
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def row(dtype: str, side: str) -> np.ndarray:
    return torch.from_numpy(normal(f"engine {side}", 1, CLASSES)[0]).to(getattr(torch, dtype)).double().numpy()


def naive(x: np.ndarray, y: np.ndarray) -> object:
    """softmax, log and sum in mpf at 50 digits."""
    with mp.workdps(50):

        def softmax(row: np.ndarray) -> list:
            weights = [mp.exp(mp.mpf(v)) for v in row.tolist()]
            total = mp.fsum(weights)
            return [w / total for w in weights]

        return mp.fsum(p * mp.log(p / q) for p, q in zip(softmax(y), softmax(x), strict=True))


def quad(x: np.ndarray, y: np.ndarray) -> object:
    """The engine's formula in 113 bits, about 33 digits, uncertified."""
    from numpy_quaddtype import QuadPrecDType

    x, y = (row.astype(QuadPrecDType()) for row in (x, y))
    weights, others = np.exp(y - y.max()), np.exp(x - x.max())
    return (weights * (y - x)).sum() / weights.sum() + np.log(others.sum() / weights.sum()) + x.max() - y.max()


@pytest.mark.parametrize("dtype", FORMATS)
def bench_engine_against_others(dtype: str, capsys) -> None:
    x, y = row(dtype, "input"), row(dtype, "target")
    own = cpu_time(lambda: engine.kl_row(x, y, 50), 15)
    lines = [f"{dtype}: engine {own:.4f} s; naive mpmath {cpu_time(lambda: naive(x, y), 1) / own:.0f} times"]
    if enclosure.HAS_ARB:
        lines.append(f"Arb {cpu_time(lambda: enclosure._arb(x, y, 'logits', 400), 1) / own:.0f} times")
    if find_spec("numpy_quaddtype"):
        lines.append(f"numpy-quaddtype {cpu_time(lambda: quad(x, y), 3) / own:.1f} times")
    with capsys.disabled():
        print("\n" + ", ".join(lines))


def bench_memory_of_a_row_of_262144_classes(capsys) -> None:
    x, y = (normal(f"memory {side}", 1, 262_144)[0] for side in ("input", "target"))
    tables.cache_clear()
    gc.collect()
    tracemalloc.start()
    engine.kl_row(x, y, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with capsys.disabled():
        print(f"\npeak memory of a row of 262,144 classes, its tables made anew: {peak / 1e6:.0f} MB")
    assert peak < 200e6
