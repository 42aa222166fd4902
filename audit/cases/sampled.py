"""Rows whose first class was sampled from the target, for the estimators of RLHF code."""

from __future__ import annotations

from functools import partial

import numpy as np

from audit.base.formats import Format
from audit.cases import Case, Rows, register
from audit.cases.streams import normal, uniform

ROWS, CLASSES = 32, 64


def sampled(distance: float, _: Format) -> tuple[Rows, Rows]:
    """input = target + distance * noise; the sampled class changes places with the first, on both sides."""
    name = f"sampled {distance:g}"
    target = 2 * normal(f"{name} target", ROWS, CLASSES)
    input = target + distance * normal(f"{name} noise", ROWS, CLASSES)
    weights = np.exp(target).cumsum(axis=1)
    tokens = (weights < uniform(f"{name} tokens", ROWS, 1) * weights[:, -1:]).sum(axis=1)
    rows = np.arange(ROWS)
    for side in (input, target):
        side[rows, tokens], side[rows, 0] = side[rows, 0].copy(), side[rows, tokens].copy()
    return input, target


for _distance, _name in ((0.5, "apart"), (1e-3, "near")):
    register(
        Case(
            f"sampled_{_name}",
            f"first class sampled from the target; the input differs by {_distance:g} a logit",
            partial(sampled, _distance),
            "quick" if _name == "near" else "standard",
        )
    )
