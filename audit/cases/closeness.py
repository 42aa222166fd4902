"""How close the two distributions are: where every path loses its last bit."""

from __future__ import annotations

from functools import partial

from audit.base.formats import Format
from audit.cases import Case, Rows, register
from audit.cases.streams import normal


def near_equal(distance: float, rows: int, classes: int, _: Format) -> tuple[Rows, Rows]:
    """target = input + distance * noise."""
    name = f"near equal {distance:g} {classes}"
    logits = normal(f"{name} input", rows, classes)
    return logits, logits + distance * normal(f"{name} noise", rows, classes)


for _exponent in range(1, 9):
    _distance = 10.0**-_exponent
    register(
        Case(
            f"near_{_distance:.0e}",
            f"target = input + {_distance:.0e} * noise, 100 classes",
            partial(near_equal, _distance, 16, 100),
            "quick" if _exponent in (1, 4) else "standard",
        )
    )
