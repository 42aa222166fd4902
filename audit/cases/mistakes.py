"""The small cases on which the misuse paths run: one row of the table a mistake."""

from __future__ import annotations

from audit.base.formats import Format
from audit.cases import Case, Rows, register
from audit.cases.streams import normal


def apart(_: Format) -> tuple[Rows, Rows]:
    return normal("mistakes input", 4, 10), normal("mistakes target", 4, 10)


def together(_: Format) -> tuple[Rows, Rows]:
    logits = normal("mistakes input", 4, 10)
    return logits, logits.copy()


def maps(_: Format) -> tuple[Rows, Rows]:
    return normal("maps input", 3, 64), normal("maps target", 3, 64)


register(Case("maps_3x8x8", "maps of 3 channels of 8 x 8 pixels, as rows of 64 classes", maps, "quick"))
register(Case("mistakes_apart", "4 rows of 10 classes, unlike distributions", apart, "quick"))
register(Case("mistakes_together", "4 rows of 10 classes, equal distributions", together, "quick"))
