"""Random, close, peaked and trained rows, targets given as probabilities, and what misuses and estimators run on."""

from __future__ import annotations

from functools import cache, partial
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from audit.base.formats import FORMATS
from audit.cases import Case, Rows, logarithm, normal, normals, register, uniform


def equal(seed: str, rows: int, classes: int) -> tuple[Rows, Rows]:
    logits = normal(seed, rows, classes)
    return logits, logits.copy()


def near_equal(distance: float) -> tuple[Rows, Rows]:
    """target = input + distance * noise: where every path loses its last bit."""
    name = f"near equal {distance:g} 100"
    logits = normal(f"{name} input", 16, 100)
    return logits, logits + distance * normal(f"{name} noise", 16, 100)


def random(scale: float, rows: int, classes: int) -> tuple[Rows, Rows]:
    return normals(f"random {scale:g} {rows}x{classes}", rows, classes, scale)


def peaked(gap: float) -> tuple[Rows, Rows]:
    """One class leads by `gap`, the same on both sides; the rest is random."""
    input, target = random(1.0, 16, 100)
    for logits in (input, target):
        logits[np.arange(16), np.arange(16) * 6] = gap
    return input, target


def one_hot() -> tuple[Rows, Rows]:
    """A label a row, as probabilities: KL is the cross-entropy."""
    return 3 * normal("one hot 3", 16, 100), np.eye(100)[np.arange(16) * 6]


def smoothed() -> tuple[Rows, Rows]:
    """Nearly one-hot: a label with 1 - 99/1024, every other class with 1/1024, exact in every format but bfloat16."""
    input, labels = one_hot()
    return input, np.where(labels > 0, 925 / 1024, 1 / 1024)


def unnormalised(mass: float) -> tuple[Rows, Rows]:
    """Probabilities that sum to about `mass`, taken as they are."""
    weights = uniform("unnormalised target", 16, 100)
    weights = weights / weights.sum(1, keepdims=True)
    return normal("unnormalised input", 16, 100), np.round(mass * weights * 2**30) * 2.0**-30


def log_probs_against_logits() -> tuple[Rows, Rows]:
    """Logarithms as log_softmax gives them, rounded, and in the second half of the rows every third class ruled out."""
    input, target = random(2.0, 16, 100)
    told = np.ones_like(target, bool)
    told[8:, ::3] = False
    weights = np.exp(target)
    return input, np.where(told, logarithm(weights / weights.sum(1, where=told, keepdims=True)), -np.inf)


def given(kind: str) -> tuple[Rows, Rows]:
    """Both sides given as probabilities or log-probabilities that nearly sum to 1, as they come from a file."""
    sides = []
    for side in random(2.0, 8, 50):
        weights = np.exp(side)
        p = weights / weights.sum(1, keepdims=True)
        sides.append(np.round((p if kind == "probs" else np.log(p)) * 2**20) * 2.0**-20)
    return sides[0], sides[1]


def width(classes: int) -> tuple[Rows, Rows]:
    """About half of the mass in the last class, where a block that does not fit ends; and in a row's first half."""
    input, target = random(2.0, 2, classes)
    target[0, -1] = 2 + 0.75 * classes.bit_length()
    input[0, -1] = target[0, -1] - 1
    target[1, : classes // 2] += 2
    return input, target


@cache
def recorded() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Real logits, epochs x images x 10, after each epoch of training the thread's CNN, and the images' labels.

    Trained on real images as the thread did; references/digits/make.py made them.
    """
    with np.load(str(files("audit.cases") / "data" / "digits.npz")) as data:
        return data["logits"], data["labels"]


def epochs() -> tuple[Rows, Rows]:
    logits = recorded()[0].astype(np.float64)
    return logits[0], logits[-1]


def labels() -> tuple[Rows, Rows]:
    logits, wanted = recorded()
    return logits[-1].astype(np.float64), np.eye(10)[wanted]


def sampled(distance: float) -> tuple[Rows, Rows]:
    """input = target + distance * noise; the class sampled from the target changes places with the first."""
    name, rows, classes = f"sampled {distance:g}", np.arange(32), 64
    target = 2 * normal(f"{name} target", 32, classes)
    input = target + distance * normal(f"{name} noise", 32, classes)
    weights = np.exp(target).cumsum(axis=1)
    tokens = (weights < uniform(f"{name} tokens", 32, 1) * weights[:, -1:]).sum(axis=1)
    for side in (input, target):
        side[rows, tokens], side[rows, 0] = side[rows, 0].copy(), side[rows, tokens].copy()
    return input, target


# The forum thread's own shapes.
_make = partial(equal, "thread identical 1000", 64, 1000)
register(Case("identical_n1000", "equal logits, 1,000 classes: KL is exactly 0", _make, "quick"))
_make = partial(normals, "thread random 64x81", 64, 81)
register(Case("random_64x81", "the shapes of the thread's answer: 64 rows of 81 classes", _make, "quick"))
for _exponent in range(1, 9):
    _distance, _profile = 10.0**-_exponent, "quick" if _exponent in (1, 4) else "standard"
    _text = f"target = input + {_distance:.0e} * noise, 100 classes"
    register(Case(f"near_{_distance:.0e}", _text, partial(near_equal, _distance), _profile))
# What blocks of 2^k classes fit, overrun by one, lack one of; and numbers between.
for _n in sorted({2**k + d for k in range(2, 17) for d in (-1, 0, 1)} | {11, 23, 48, 200, 333, 500, 700, 1_500, 3_000}):
    _dtypes = tuple(FORMATS) if _n < 130 else ("bfloat16", "float32")
    register(Case(f"width_n{_n}", f"normal logits, {_n:,} classes", partial(width, _n), dtypes=_dtypes))
for _rows, _n in ((64, 64), (127, 65)):
    _make = partial(random, 2.0, _rows, _n)
    register(Case(f"random_{_rows}x{_n}", "normal logits times 2", _make, dtypes=("float32",)))
for _rows, _n, _repeats in ((35, 3, 2_000), (17, 33, 241)):
    _text = f"{_rows} rows, each {_repeats:,} times: a batch of {_rows * _repeats:,} x {_n}"
    _make = partial(random, 2.0, _rows, _n)
    _dtypes = ("bfloat16", "float32")
    register(Case(f"batch_{_rows * _repeats}x{_n}", _text, _make, dtypes=_dtypes, repeats=_repeats))
for _scale, _profile in ((0.01, "standard"), (1.0, "quick"), (10.0, "standard"), (100.0, "standard")):
    _text = f"normal logits times {_scale:g}, 100 classes"
    register(Case(f"random_scale{_scale:g}", _text, partial(random, _scale, 16, 100), _profile))
for _gap, _profile in ((12.0, "standard"), (20.0, "quick"), (90.0, "standard")):
    register(Case(f"peaked_gap{_gap:g}", f"one class leads by {_gap:g}, 100 classes", partial(peaked, _gap), _profile))
register(Case("random_n10000", "normal logits, 10,000 classes", partial(random, 1.0, 1, 10_000)))
_text = "more rows than a block of 128 threads, normal logits times 3, 5 classes"
register(Case("random_160x5", _text, partial(random, 3.0, 160, 5), dtypes=("float32",)))
register(Case("one_hot", "a label a row as target", one_hot, "quick", "probs"))
register(Case("one_hot_smoothed", "a label a row, smoothed", smoothed, "standard", "probs"))
_text = "normal logits times 2 against log-probabilities, 100 classes"
register(Case("log_probs_n100", _text, log_probs_against_logits, "quick", "log_probs"))
for _kind in ("probs", "log_probs"):
    register(Case(f"given_{_kind}", f"both sides as {_kind}", partial(given, _kind), "full", _kind, input_kind=_kind))
for _mass, _name in ((0.5, "half"), (2.0, "double")):
    _text = f"a target of mass {_mass:g}"
    register(Case(f"unnormalised_{_name}", _text, partial(unnormalised, _mass), "standard", "probs"))
register(Case("digits_epochs", "the thread's CNN on real digits: first epoch against last", epochs, "quick"))
register(Case("digits_labels", "the thread's CNN on real digits against its one-hot labels", labels, "quick", "probs"))
# What the misuse paths run on: a row of their table a mistake.
_make = partial(normals, "maps", 3, 64)
register(Case("maps_3x8x8", "maps of 3 channels of 8 x 8 pixels, as rows of 64 classes", _make, "quick"))
_make = partial(normals, "mistakes", 4, 10)
register(Case("mistakes_apart", "4 rows of 10 classes, unlike distributions", _make, "quick"))
_make = partial(equal, "mistakes input", 4, 10)
register(Case("mistakes_together", "4 rows of 10 classes, equal distributions", _make, "quick"))
# For the estimators of RLHF code.
for _distance, _name, _profile in ((0.5, "apart", "standard"), (1e-3, "near", "quick")):
    _text = f"first class sampled from the target; the input differs by {_distance:g} a logit"
    register(Case(f"sampled_{_name}", _text, partial(sampled, _distance), _profile))
