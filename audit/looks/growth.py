"""How the worst error of a path grows with the number of classes, led by the first, a random and the last of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from audit.base.formats import FORMATS
from audit.base.workers import Later, Submit, later
from audit.cases import Rows, logarithm, normal, uniform
from audit.judge.bounds import Exact
from audit.judge.errors import exact_error
from audit.looks import Look, Run
from audit.machine.devices import lasting
from audit.machine.measure import measure
from audit.paths import Path
from audit.reference.exact import row_references

WIDTHS = [2**k for k in range(1, 19)]
PLACES = ("first", "random", "last")
TOP = 0.9  # the leader's probability
LEAST = 0.25  # roundoffs: below that an error is none, however it grows


@dataclass(frozen=True)
class Led:
    """Three rows, alike but for the leader's place, and when it is there their exact value and scale."""

    dtype: str
    input: Tensor
    target: Tensor
    exact: Later[tuple[str, float]]


def begin(run: Run) -> Later[pd.DataFrame]:
    """The exact values; the same for each place, as the order of the classes changes none."""
    plan = run.plan
    kl = [p for p in plan.paths if p.kind == "kl" and p.reduction == "none" and not (p.compiles or p.cases)]
    # The emulated kernels of 2017 go class by class, which takes longer than all others together.
    paths = [p for p in kl if p.input_kind == p.target_kind == "logits" and p.name != "thread_era"]
    begun = begin_rows(plan.dtypes, run.submit)
    return lambda: measure_growth(begun, paths, run.devices)


LOOK = Look("growth", ("whole", "kernel"), begin)


def begin_rows(dtypes: Sequence[str], submit: Submit = later) -> list[Led]:
    """Of each width, in each dtype."""
    begun = []
    for classes in WIDTHS:
        target = normal(f"growth {classes} target", 1, classes)
        target[0, 0] = logarithm(np.exp(target[0, 1:]).sum(keepdims=True) * TOP / (1 - TOP))[0]
        input = target + 0.05 * normal(f"growth {classes} noise", 1, classes)
        turns = (0, int(uniform(f"growth {classes}", 1)[0] * classes), classes - 1)
        for dtype in dtypes:
            x, y = (torch.from_numpy(side).to(getattr(torch, dtype)) for side in (input, target))
            exact = submit(_exact, x.double().numpy(), y.double().numpy())
            x, y = (torch.cat([side.roll(turn, 1) for turn in turns]) for side in (x, y))
            begun.append(Led(dtype, x, y, exact))
    return begun


def _exact(input: Rows, target: Rows) -> tuple[str, float]:
    return row_references(input, target, "logits")[0], float(Exact.of(input, target, "logits").scale[0])


def measure_growth(begun: Sequence[Led], paths: Sequence[Path], devices: Sequence[str]) -> pd.DataFrame:
    """The rows of growth.csv."""
    rows = pd.DataFrame(lasting(devices, begun, partial(_measured, paths), "growth"))
    if rows.empty:
        return rows
    groups = rows[list(PLACES)].max(axis=1).groupby([rows["path"], rows["dtype"], rows["device"]])
    return rows.assign(growth=groups.transform(lambda errors: law(rows.loc[errors.index, "classes"], errors)))


def _measured(paths: Sequence[Path], led: Led, device: str) -> Iterator[dict[str, object]]:
    reference, size = led.exact()
    x, y = led.input.to(device), led.target.to(device)
    for path in (p for p in paths if p.runs_on(device) and led.dtype in p.dtypes):
        result = measure(path, x, y)
        if not result.note:
            unit = FORMATS[result.dtype].unit_roundoff * size
            errors = [exact_error(value, reference, result.dtype) / unit for value in result.computed]
            key = {"path": path.name, "dtype": led.dtype, "device": device, "classes": x.shape[1]}
            yield key | dict(zip(PLACES, errors, strict=True))


def law(classes: pd.Series, errors: pd.Series) -> str:
    """Which of the laws is nearest, in the mean square of logarithms, from 16 classes on; "" without three errors."""
    known = errors.notna() & (classes >= 16)
    n, logs = classes[known].to_numpy(np.float64), np.log2(errors[known].clip(lower=LEAST).to_numpy(np.float64))
    if len(n) < 3:
        return ""
    laws = {"flat": 0 * n, "log n": np.log2(np.log2(n)), "sqrt n": np.log2(n) / 2, "n": np.log2(n)}
    return min(laws, key=lambda name: float(np.var(logs - laws[name])))
