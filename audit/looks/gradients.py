"""Autograd's gradients of every path, and the gap between two classes at which they break."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import torch

from audit.base.formats import FORMATS
from audit.base.supervision import on_case
from audit.base.workers import Later
from audit.cases import Problem
from audit.judge.gradients import BACKWARDS, SIDES, Gradient, Truth, autograd
from audit.looks import CLOSER, Look, Run
from audit.machine.devices import examine, lost
from audit.paths import Path

# Every half up to 130 and around 745, where float32 and float64 run out of exponents, and a few between and beyond.
GAPS = np.concatenate([np.arange(0.5, 130, 0.5), np.arange(136, 700, 8), np.arange(700, 760, 0.5), [1e3, 1e4, 3e4]])
HARDER = ("impossible_matched", "gap_104", "masses_apart_n3000")  # classes ruled out, underflow, more than a block
# For a kernel of the user's own: an odd number of classes, targets given as probabilities.
OWN = ("random_64x81", "one_hot", "one_hot_smoothed", "unnormalised_half")


def breaking_gaps(path: Path, dtype: str, device: str) -> list[float]:
    """Of two classes, one leading by a gap on one side: the first of GAPS where that side's gradient is not finite.

    NaN where every one is. One for each side.
    """
    gaps = torch.tensor(GAPS).to(getattr(torch, dtype))
    leading, level = torch.stack([gaps, 0 * gaps], 1), torch.zeros(len(gaps), 2, dtype=gaps.dtype)
    found = []
    for place, pair in enumerate(((leading, level), (level, leading))):
        grad = autograd(path, *pair, device)[place]
        broken = np.zeros(len(gaps), bool) if grad is None else ~np.isfinite(grad).all(1)
        found.append(float(gaps[int(np.argmax(broken))]) if broken.any() else np.nan)
    return found


def takes_gradients(path: Path, problem: Problem) -> bool:
    """Whether a path means to compute the divergence of this problem's logits, at its temperature or at 1."""
    logits = path.input_kind == path.target_kind == "logits"
    given = (path.input_kind, path.target_kind, path.rounding.temperature) == ("logits", "probs", 1)
    means = (given and path.kind == "kl") or (logits and (path.kind == "kl" or path.rounding.temperature != 1))
    return means and path.takes(problem.case.name, problem.dtype, *problem.case.kinds)


def begin(run: Run) -> Later[pd.DataFrame]:
    """The exact gradients of some problems' first and last rows, and of a row between for a kernel of the user's own.

    Then autograd's, of every path that computed all it was given; a path that it cannot differentiate has none. What
    torch's path shares is no fault of a kernel, so that both are judged.
    """
    plan = run.plan
    begun = []
    for problem in (trial.problem for trial in run.some((*CLOSER, *HARDER, *(OWN if plan.own else ())))):
        some = sorted({0, len(problem.input) // 2 if plan.own else 0, len(problem.input) - 1})
        begun.append((problem, Truth(problem.input, problem.target, some, run.submit, problem.case.target_kind)))
    begun.sort(key=lambda pair: plan.dtypes.index(pair[0].dtype))

    def rows() -> pd.DataFrame:
        errors = run.tables["errors"]
        failed = errors.loc[errors["result_class"] == "not_computed", ["path", "dtype", "device"]]
        lacking = set(failed.itertuples(index=False, name=None))
        gaps = cache(breaking_gaps)
        found: list[dict[str, object]] = []
        for device, (problem, truth), path in product(run.devices, begun, plan.paths):
            able = takes_gradients(path, problem) and path.runs_on(device) and not path.compiles
            if not able or lost(device) or (path.name, problem.dtype, device) in lacking:
                continue
            on_case(problem.case.name)
            # A path of a few cases is not meant for two classes: it compiles for each shape, or takes a temperature.
            gapped = not path.cases and path.target_kind == "logits"
            try:
                for way, gradient in _furthest(truth, path, device, path.name in plan.own):
                    key = {"case": problem.case.name, "path": path.name, "reduction": path.reduction}
                    key |= {"dtype": problem.dtype, "device": device, "side": gradient.side, "backward": way}
                    gap = gaps(path, problem.dtype, device)[SIDES.index(gradient.side)] if gapped else np.nan
                    found.append(key | _measured(gradient, problem.dtype, truth.rows) | {"breaks_at_gap": gap})
            except Exception:
                examine(device)
        return pd.DataFrame(found)

    return rows


LOOK = Look("gradients", ("whole", "kernel"), begin)


def _furthest(truth: Truth, path: Path, device: str, every: bool) -> Iterator[tuple[str, Gradient]]:
    """Of each side the plain gradient, or the first that is wrong of those asked for in `every` way of BACKWARDS."""
    found = {gradient.side: ("", gradient) for gradient in truth.gradients(path, device)}
    for way in BACKWARDS if every and found else ():
        for gradient in truth.gradients(path, device, way):
            if gradient.symptom and not found[gradient.side][1].symptom:
                found[gradient.side] = way, gradient
    yield from found.values()


def _measured(gradient: Gradient, dtype: str, rows: Sequence[int]) -> dict[str, object]:
    computed, exact, finite = gradient.computed, gradient.exact, np.isfinite(gradient.computed)
    with np.errstate(invalid="ignore"):
        largest = np.fmax.reduce(np.where(finite, np.abs(computed - exact), np.nan), axis=None)
    size = np.abs(exact).max()
    worst = np.unravel_index(int(np.argmax(gradient.ratio)), computed.shape)
    return {
        "classes": computed.shape[1],
        "elements": computed.size,
        "worst_in_u": largest / FORMATS[dtype].unit_roundoff,
        "worst_relative": largest / size if size else np.nan,
        "worst_of_bound": np.fmax.reduce(np.where(finite, gradient.ratio, np.nan), axis=None),
        "within_bound": not gradient.symptom,
        "symptom": gradient.symptom,
        "not_a_number": np.isnan(computed).sum(),
        "infinite": np.isinf(computed).sum(),
        "row": rows[int(worst[0])],
        "class": worst[1],
        "reference": exact[worst],
        "computed": computed[worst],
        "bound": gradient.bound[worst],
    }
