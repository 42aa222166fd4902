"""How the worst error of a path grows with the number of classes, led by the first, a random and the last of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch

from audit.base.formats import FORMATS
from audit.base.workers import Later, Submit, later
from audit.cases import Rows, logarithm, normal, uniform
from audit.judge.bounds import Exact
from audit.judge.errors import exact_error
from audit.judge.limits import scale
from audit.looks import Look, Run, together
from audit.machine.devices import lasting
from audit.machine.measure import measure
from audit.paths import Path
from audit.reference.exact import row_references

WIDTHS = [2**k for k in range(1, 19)]
PLACES = ("first", "random", "last")
TOP = 0.9  # the leader's probability
LEAST = 0.25  # roundoffs: below that an error is none, however it grows
Begun = tuple[torch.Tensor, torch.Tensor, Later[tuple[str, float]]]


def begin(run: Run) -> Later[pd.DataFrame]:
    """The exact values; the same for each place, as the order of the classes changes none."""
    plan = run.plan
    kl = [p for p in plan.paths if p.kind == "kl" and p.reduction == "none" and not (p.compiles or p.cases)]
    # The emulated kernels of 2017 go class by class, which takes longer than all others together.
    paths = [p for p in kl if p.input_kind == p.target_kind == "logits" and p.name != "thread_era"]
    measured = [measure_growth(paths, plan.dtypes, device, run.submit) for device in run.devices]
    return lambda: together(part() for part in measured)


LOOK = Look("growth", ("whole", "kernel"), begin)


def measure_growth(
    paths: Sequence[Path], dtypes: Sequence[str], device: str, submit: Submit = later
) -> Later[pd.DataFrame]:
    """Begins the rows of growth.csv of one device, and waits for them when called."""
    begun = {(dtype, classes): _begun(dtype, classes, submit) for classes, dtype in product(WIDTHS, dtypes)}

    def wait() -> pd.DataFrame:
        rows = pd.DataFrame(lasting(device, begun, lambda key: _measured(*key, begun[key], paths, device), "growth"))
        if rows.empty:
            return rows
        worst = rows[list(PLACES)].max(axis=1)
        groups = worst.groupby([rows["path"], rows["dtype"]])
        return rows.assign(growth=groups.transform(lambda errors: law(rows.loc[errors.index, "classes"], errors)))

    return wait


@lru_cache(maxsize=1)
def _led(classes: int) -> tuple[Rows, Rows]:
    """Input and target of one row, led by the first class."""
    target = normal(f"growth {classes} target", 1, classes)
    target[0, 0] = logarithm(np.exp(target[0, 1:]).sum(keepdims=True) * TOP / (1 - TOP))[0]
    return target + 0.05 * normal(f"growth {classes} noise", 1, classes), target


def _begun(dtype: str, classes: int, submit: Submit) -> Begun:
    """Three rows, alike but for the leader's place, and what their error is measured by."""
    x, y = (torch.from_numpy(side).to(getattr(torch, dtype)) for side in _led(classes))
    turns = (0, int(uniform(f"growth {classes}", 1)[0] * classes), classes - 1)
    placed = [torch.cat([side.roll(turn, 1) for turn in turns]) for side in (x, y)]
    return placed[0], placed[1], submit(_exact, x.double().numpy(), y.double().numpy())


def _exact(input: Rows, target: Rows) -> tuple[str, float]:
    return row_references(input, target, "logits")[0], float(scale(Exact.of(input, target, "logits"))[0])


def _measured(dtype: str, classes: int, begun: Begun, paths: Sequence[Path], device: str) -> Iterator[dict[str, Any]]:
    x, y, exact = begun
    reference, size = exact()
    x, y = x.to(device), y.to(device)
    for path in (p for p in paths if p.runs_on(device) and dtype in p.dtypes):
        result = measure(path, x, y)
        if not result.note:
            unit = FORMATS[result.dtype].unit_roundoff * size
            errors = [exact_error(value, reference, result.dtype) / unit for value in result.computed]
            row = {"path": path.name, "dtype": dtype, "device": device, "classes": classes}
            yield row | dict(zip(PLACES, errors, strict=True))


def law(classes: pd.Series, errors: pd.Series) -> str:
    """Which of the laws is nearest, in the mean square of logarithms, from 16 classes on; "" without three errors."""
    known = errors.notna() & (classes >= 16)
    n, logs = classes[known].to_numpy(np.float64), np.log2(errors[known].clip(lower=LEAST).to_numpy(np.float64))
    if len(n) < 3:
        return ""
    laws = {"flat": 0 * n, "log n": np.log2(np.log2(n)), "sqrt n": np.log2(n) / 2, "n": np.log2(n)}
    return min(laws, key=lambda name: float(np.var(logs - laws[name])))
