"""Every pair of numbers of a 16-bit format as the logits of two classes: the largest error there is.

The input's logits are one number and 0, the target's another and 0. With s(a) = log(1 + e^a), p = e^-s(-b) and
1 - p = e^-s(b), for a gap of a in the input and of b in the target,

    KL = p (s(-a) - s(-b)) + (1 - p) (s(a) - s(b)),    scale = 1 + p (s(-a) + s(-b)) + (1 - p) (s(a) + s(b)).

In binary64 both are good to a few 2^-53 of the scale, which is nothing beside a half's errors.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from audit.base.formats import FORMATS
from audit.explain.worst import measured
from audit.machine.devices import here
from audit.paths import Path

DTYPES = ("float16", "bfloat16")
STRIDE = 1_024  # targets, after which what is known is written


def numbers(dtype: str) -> torch.Tensor:
    """All finite numbers of a 16-bit format, in order."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(getattr(torch, dtype))
    return every[every.isfinite()].sort().values


def exhaust(
    paths: Sequence[Path], dtypes: Sequence[str], device: str, table: pathlib.Path, advance: Callable[[str], None]
) -> pd.DataFrame:
    """The worst pair of each path and dtype, as rows of references/exhaustive.csv; goes on where `table` ends.

    Of each: `targets` tried of `of`, each beside every input; `error` as scaled_error and `bound` likewise, where they
    are; and how many results are `non_finite`, though no divergence here is infinite.
    """
    exactly = {"error": float, "bound": float}  # as pandas itself does not read them
    rows = pd.read_csv(table, converters=exactly).to_dict("records") if table.is_file() else []
    known = {tuple(row[name] for name in ("path", "dtype", "device")): row for row in rows}
    for path in paths:
        for dtype in dtypes:
            every = numbers(dtype)
            start: dict[Hashable, Any] = {"path": path.name, "dtype": dtype, "device": device}
            start |= {"targets": 0, "of": len(every), "error": -1.0, "non_finite": 0}
            row = known.setdefault((path.name, dtype, device), start)
            while row["targets"] < len(every):
                reached = min(row["targets"] + STRIDE, len(every))
                error, pair, lost = _worst(path, every, range(row["targets"], reached), device)
                if error > row["error"]:
                    found = measured(path, dtype, *(np.array([[float(every[place]), 0.0]]) for place in pair))
                    row |= {n: getattr(found, n) for n in ("error", "bound", "input", "target", "versions", "when")}
                row |= {"targets": reached, "non_finite": row["non_finite"] + lost}
                pd.DataFrame(known.values()).to_csv(table, index=False, lineterminator="\n")
                advance(f"{path.name} {dtype}")
    return pd.DataFrame(known.values())


def _worst(path: Path, every: torch.Tensor, targets: range, device: str) -> tuple[float, tuple[int, int], int]:
    """The largest error beside these targets, the places of its two numbers, and how many results are not finite."""
    gaps, dtype = every.double().numpy(), str(every.dtype).removeprefix("torch.")
    above, below = np.logaddexp(0.0, gaps), np.logaddexp(0.0, -gaps)
    input = torch.stack([every, torch.zeros_like(every)], -1).to(device)
    worst, pair, lost = -1.0, (0, 0), 0
    for place in targets:
        with torch.no_grad():
            values = path.function(input.clone(), input[place].expand_as(input).contiguous())
        computed = here(values).double().numpy()
        p, rest = np.exp(-below[place]), np.exp(-above[place])
        exact = p * (below - below[place]) + rest * (above - above[place])
        scale = 1 + p * (below + below[place]) + rest * (above + above[place])
        error = np.abs(computed - exact) / (FORMATS[dtype].unit_roundoff * scale)
        finite = np.isfinite(computed)
        lost += int((~finite).sum())
        at = int(np.where(finite, error, -1.0).argmax())
        if finite[at] and error[at] > worst:
            worst, pair = float(error[at]), (at, place)
    return worst, pair, lost
