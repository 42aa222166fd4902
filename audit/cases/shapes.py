"""Random, flat and peaked rows at several scales; targets given as probabilities."""

from __future__ import annotations

from functools import partial

import numpy as np

from audit.base.formats import FORMATS, Format
from audit.cases import Case, Rows, register
from audit.cases.streams import normal, uniform


def random(scale: float, rows: int, classes: int, _: Format) -> tuple[Rows, Rows]:
    name = f"random {scale:g} {rows}x{classes}"
    return scale * normal(f"{name} input", rows, classes), scale * normal(f"{name} target", rows, classes)


def peaked(gap: float, _: Format) -> tuple[Rows, Rows]:
    """One class leads by `gap`, the same on both sides; the rest is random."""
    input, target = random(1.0, 16, 100, _)
    winner = np.arange(16) * 6
    for logits in (input, target):
        logits[np.arange(16), winner] = gap
    return input, target


def one_hot(scale: float, _: Format) -> tuple[Rows, Rows]:
    """A label a row, as probabilities: KL is the cross-entropy."""
    input = scale * normal(f"one hot {scale:g}", 16, 100)
    return input, np.eye(100)[np.arange(16) * 6]


def smoothed(scale: float, _: Format) -> tuple[Rows, Rows]:
    """Nearly one-hot: a label with 1 - 99/1024, every other class with 1/1024, exact in every format but bfloat16."""
    input, labels = one_hot(scale, _)
    return input, np.where(labels > 0, 925 / 1024, 1 / 1024)


def unnormalised(mass: float, _: Format) -> tuple[Rows, Rows]:
    """Probabilities that sum to about `mass`, taken as they are."""
    weights = uniform("unnormalised target", 16, 100)
    weights = weights / weights.sum(1, keepdims=True)
    return normal("unnormalised input", 16, 100), np.round(mass * weights * 2**30) * 2.0**-30


def given(kind: str, _: Format) -> tuple[Rows, Rows]:
    """Both sides given as probabilities or log-probabilities that nearly sum to 1, as they come from a file."""
    sides = []
    for side in random(2.0, 8, 50, _):
        weights = np.exp(side)
        p = weights / weights.sum(1, keepdims=True)
        sides.append(np.round((p if kind == "probs" else np.log(p)) * 2**20) * 2.0**-20)
    return sides[0], sides[1]


def width(classes: int, _: Format) -> tuple[Rows, Rows]:
    """About half of the mass in the last class, where a block that does not fit ends; and in a row's first half."""
    input, target = random(2.0, 2, classes, _)
    target[0, -1] = 2 + 0.75 * classes.bit_length()
    input[0, -1] = target[0, -1] - 1
    target[1, : classes // 2] += 2
    return input, target


# What blocks of 2^k classes fit, overrun by one, lack one of; and numbers between.
for _n in sorted({2**k + d for k in range(2, 17) for d in (-1, 0, 1)} | {11, 23, 48, 200, 333, 500, 700, 1_500, 3_000}):
    _dtypes = tuple(FORMATS) if _n < 130 else ("bfloat16", "float32")
    register(Case(f"width_n{_n}", f"normal logits, {_n:,} classes", partial(width, _n), dtypes=_dtypes))
for _rows, _n in ((64, 64), (127, 65)):
    register(
        Case(f"random_{_rows}x{_n}", "normal logits times 2", partial(random, 2.0, _rows, _n), dtypes=("float32",))
    )
for _rows, _n, _repeats in ((35, 3, 2_000), (17, 33, 241)):
    _text = f"{_rows} rows, each {_repeats:,} times: a batch of {_rows * _repeats:,} x {_n}"
    _make = partial(random, 2.0, _rows, _n)
    _dtypes = ("bfloat16", "float32")
    register(Case(f"batch_{_rows * _repeats}x{_n}", _text, _make, dtypes=_dtypes, repeats=_repeats))
for _scale, _profile in ((0.01, "standard"), (1.0, "quick"), (10.0, "standard"), (100.0, "standard")):
    register(
        Case(
            f"random_scale{_scale:g}",
            f"normal logits times {_scale:g}, 100 classes",
            partial(random, _scale, 16, 100),
            _profile,
        )
    )
for _gap, _profile in ((12.0, "standard"), (20.0, "quick"), (90.0, "standard")):
    register(Case(f"peaked_gap{_gap:g}", f"one class leads by {_gap:g}, 100 classes", partial(peaked, _gap), _profile))
register(Case("random_n10000", "normal logits, 10,000 classes", partial(random, 1.0, 1, 10_000)))
_text = "more rows than a block of 128 threads, normal logits times 3, 5 classes"
register(Case("random_160x5", _text, partial(random, 3.0, 160, 5), dtypes=("float32",)))
register(Case("one_hot", "a label a row as target", partial(one_hot, 3.0), "quick", "probs"))
register(Case("one_hot_smoothed", "a label a row, smoothed", partial(smoothed, 3.0), "standard", "probs"))
for _kind in ("probs", "log_probs"):
    register(Case(f"given_{_kind}", f"both sides as {_kind}", partial(given, _kind), "full", _kind, input_kind=_kind))
for _mass, _name in ((0.5, "half"), (2.0, "double")):
    _text = f"a target of mass {_mass:g}"
    register(Case(f"unnormalised_{_name}", _text, partial(unnormalised, _mass), "standard", "probs"))
