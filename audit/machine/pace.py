"""How long a kernel takes beside torch's path."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch

from audit.machine.devices import synchronize
from audit.machine.measure import measure
from audit.paths import Path

ROWS, CLASSES, ROUNDS, SECONDS = 64, 1_000, 25, 0.5


def pace(path: Path, other: Path, device: str) -> float:
    """The other's seconds over the path's: a forward call on ROWS x CLASSES in float32, medians of calls in turn.

    Both take logits. Not a number where either gives no number.
    """
    x, y = (t.to(device) for t in torch.randn(2, ROWS, CLASSES, generator=torch.Generator().manual_seed(0)))
    if any(measure(each, x, y).note for each in (path, other)):
        return float("nan")
    taken: dict[Path, list[float]] = {path: [], other: []}
    start = perf_counter()
    with torch.no_grad():
        while len(taken[other]) < ROUNDS and perf_counter() - start < SECONDS:
            for each, seconds in taken.items():
                synchronize(device)
                begun = perf_counter()
                each.function(x, y)
                synchronize(device)
                seconds.append(perf_counter() - begun)
    return median(taken[other]) / median(taken[path])
