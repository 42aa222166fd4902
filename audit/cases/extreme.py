"""At the edges of a format: offsets, underflow, infinities, subnormals, the largest numbers, one and two classes."""

from __future__ import annotations

from functools import partial

import numpy as np

from audit.base.formats import FORMATS, Format
from audit.cases import Case, Rows, normal, normals, register, uniform

ROWS, CLASSES = 8, 32


def one_ulp(format: Format) -> tuple[Rows, Rows]:
    """One class a row differs by one ulp; logits in [1, 2), where an ulp is the same for all."""
    steps = 2.0 ** (format.precision - 1)
    input = 1 + np.floor(uniform("one ulp", ROWS, CLASSES) * (steps - 1)) / steps
    target = input.copy()
    target[np.arange(ROWS), np.arange(ROWS)] += format.ulp(0)
    return input, target


def offset(size: float) -> tuple[Rows, Rows]:
    """A common offset: KL keeps its value but for the logits' own rounding at that size."""
    input, target = normals("offset", ROWS, CLASSES)
    return input + size, target - size


def offset_limit(format: Format) -> tuple[Rows, Rows]:
    """An offset of half the format's largest number, which leaves the logits few values or one: KL is 0 or all but."""
    return offset(2.0**format.maximum / 2)


def largest(format: Format) -> tuple[Rows, Rows]:
    """Logits up to the format's largest number, of both signs."""
    top = (2 - 2.0 ** (1 - format.precision)) * 2.0**format.maximum
    input, target = normals("largest", ROWS, CLASSES, 1 / 4)
    return np.clip(input, -1, 1) * top, np.clip(target, -1, 1) * top


def subnormal(format: Format) -> tuple[Rows, Rows]:
    """Logits that are subnormal numbers: all but equal distributions."""
    input, target = normals("subnormal", ROWS, CLASSES, 16)
    return np.round(input) * format.smallest_subnormal, np.round(target) * format.smallest_subnormal


def gap(size: float) -> tuple[Rows, Rows]:
    """One class leads by `size`, another one on each side: where exp(-size) leaves each format."""
    input, target = normals(f"gap {size:g}", ROWS, CLASSES)
    rows = np.arange(ROWS)
    input[rows, rows] += size
    target[rows, rows + 1] += size
    return input, target


def last_leads() -> tuple[Rows, Rows]:
    """The last class leads by 104: in the target, in the input, in both, in turn."""
    input, target = normals("last leads", ROWS, CLASSES)
    input[1::3, -1] += 104
    input[2::3, -1] += 104
    target[0::3, -1] += 104
    target[2::3, -1] += 104
    return input, target


def near_offset() -> tuple[Rows, Rows]:
    """Logits that are all but equal, on top of a common offset."""
    logits, noise = normals("near offset", ROWS, CLASSES)
    return logits + 1e4, logits + 1e4 + 0.01 * noise


def not_numbers() -> tuple[Rows, Rows]:
    """A NaN logit in the target, in the input, in both and in neither: KL is NaN but for the last."""
    input, target = normals("not numbers", ROWS, CLASSES)
    target[0::4, 5] = np.nan
    input[1::4, 6] = np.nan
    input[2::4, 7] = target[2::4, 8] = np.nan
    return input, target


def masses_apart() -> tuple[Rows, Rows]:
    """3,000 classes, the target's mass in the last 1,000 and the input's before: past what a block of 1,024 holds."""
    input, target = normals("masses apart", 2, 3_000)
    input[:, 2_000:] -= 4
    target[:, :2_000] -= 4
    return input, target


def impossible(matched: bool) -> tuple[Rows, Rows]:
    """-inf logits: the same classes on both sides (KL is finite), or also where the target has mass (+inf)."""
    input, target = normals("impossible", ROWS, CLASSES)
    input[:, ::3] = target[:, ::3] = -np.inf
    if not matched:
        input[:, 1] = -np.inf
    return input, target


def impossible_in_target() -> tuple[Rows, Rows]:
    """-inf logits of the target alone, which add nothing to KL: a teacher whose classes were cut to the likely ones."""
    input, target = normals("impossible in target", ROWS, CLASSES)
    target[:, 1::3] = -np.inf
    return input, target


def zeros_in_target() -> tuple[Rows, Rows]:
    """Probabilities in eighths, most of them 0: exact in every format."""
    target = np.zeros((ROWS, CLASSES))
    target[:, :4] = 0.5, 0.25, 0.125, 0.125
    return 3 * normal("zeros in target", ROWS, CLASSES), target


register(Case("one_ulp", "one class a row differs by one ulp", one_ulp, "quick", native=True))
for _size in (1e2, 1e4, 1e6):
    _dtypes = tuple(f.name for f in FORMATS.values() if 2 * _size < f.overflow_threshold)
    register(Case(f"offset_{_size:.0e}", f"logits around +-{_size:g}", partial(offset, _size), dtypes=_dtypes))
register(Case("offset_limit", "logits around half the format's largest number", offset_limit, native=True))
register(Case("largest", "logits up to the format's largest number", largest, native=True))
register(Case("subnormal", "logits that are subnormal numbers", subnormal, native=True))
for _gap in (12.0, 17.0, 88.0, 104.0, 745.0):
    register(Case(f"gap_{_gap:g}", f"another class leads by {_gap:g} on each side", partial(gap, _gap)))
register(Case("last_leads_104", "the last class leads by 104, on either side or both", last_leads))
_dtypes = ("float32", "float64")
register(Case("offset_near_1e+04", "all but equal logits around 1e4", near_offset, dtypes=_dtypes))
register(Case("not_numbers", "a NaN logit, where KL is NaN", not_numbers))
register(Case("masses_apart_n3000", "3,000 classes, the masses of the two sides apart", masses_apart))
register(Case("impossible_matched", "-inf logits in the same classes", partial(impossible, True), "quick"))
_text = "-inf logits of the target alone"
register(Case("impossible_in_target", _text, impossible_in_target, "quick"))
register(Case("impossible_unmatched", "-inf input where the target has mass: +inf", partial(impossible, False)))
register(Case("two_classes", "two classes", partial(normals, "two classes", ROWS, 2), "quick"))
register(Case("single_class", "one class: KL is exactly 0", partial(normals, "single class", ROWS, 1)))
register(Case("zeros_in_target", "a target with zeros, exact in every format", zeros_in_target, "quick", "probs"))
# A teacher's logits over a temperature, as distillation has them, against a student's.
register(Case("temperature_4", "logits divided by a temperature of 4", partial(normals, "temperature", ROWS, CLASSES)))
