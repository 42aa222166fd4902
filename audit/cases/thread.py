"""The forum thread's own shapes."""

from __future__ import annotations

from audit.base.formats import Format
from audit.cases import Case, Rows, register
from audit.cases.streams import normal


def _identical(rows: int, classes: int, name: str) -> tuple[Rows, Rows]:
    logits = normal(name, rows, classes)
    return logits, logits.copy()


def _random(rows: int, classes: int, scale: float, name: str) -> tuple[Rows, Rows]:
    return scale * normal(f"{name} input", rows, classes), scale * normal(f"{name} target", rows, classes)


def identical_1000(_: Format) -> tuple[Rows, Rows]:
    return _identical(64, 1000, "thread identical 1000")


def random_64x81(_: Format) -> tuple[Rows, Rows]:
    return _random(64, 81, 1.0, "thread random 64x81")


register(Case("identical_n1000", "equal logits, 1,000 classes: KL is exactly 0", identical_1000, "quick"))
register(Case("random_64x81", "the shapes of the thread's answer: 64 rows of 81 classes", random_64x81, "quick"))
