"""Leaders at the first, a random and the last place: met early or late; rows as language models have them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from audit.base.formats import Format
from audit.cases import Case, Rows, extreme, register, shapes, vocabulary
from audit.cases.streams import logarithm, normal, uniform

TOPS = (0.5, 0.9, 0.99, 0.999)
Make = Callable[[Format], tuple[Rows, Rows]]


def placed(name: str, make: Make, format: Format) -> tuple[Rows, Rows]:
    """The first row of a case, its classes turned until the target's leader is the first, a random one, the last."""
    input, target = (side[:1] for side in make(format))
    classes, leader = target.shape[1], int(target.argmax())
    turns = [place - leader for place in (0, int(uniform(f"place {name}", 1)[0] * classes), classes - 1)]
    return np.concatenate([np.roll(input, t, 1) for t in turns]), np.concatenate([np.roll(target, t, 1) for t in turns])


def confident(tail: str, classes: int, _: Format) -> tuple[Rows, Rows]:
    """One class has each of TOPS: the first, one at a third, a random one, the last. The input is 0.05 noise away."""
    name = f"confident {tail} {classes}"
    target = 1.5 * normal(f"{name} target", len(TOPS), classes)
    if tail == "zipf":
        target = target / 3 - logarithm(np.arange(1.0, classes + 1, dtype=np.float64))
    random = int(uniform(f"{name} place", 1)[0] * classes)
    for row, (top, place) in enumerate(zip(TOPS, (0, classes // 3, random, classes - 1), strict=True)):
        others = np.exp(np.delete(target[row], place)).sum(keepdims=True)
        target[row, place] = logarithm(others * top / (1 - top))[0]
    return target + 0.05 * normal(f"{name} noise", len(TOPS), classes), target


_FAMILIES: dict[str, Make] = {f"gap_{gap:g}": partial(extreme.gap, gap) for gap in (12.0, 17.0, 104.0)}
_FAMILIES |= {f"peaked_gap{gap:g}": partial(shapes.peaked, gap) for gap in (12.0, 20.0)}
_FAMILIES |= {"one_hot": partial(shapes.one_hot, 3.0), "one_hot_smoothed": partial(shapes.smoothed, 3.0)}
for _n in (81, 1_000, 32_000, 128_256):
    _FAMILIES |= {f"peaked_n{_n}": partial(vocabulary.peaked, _n), f"wide_n{_n}": partial(vocabulary.wide, _n)}
_FAMILIES["apart_n128256"] = partial(vocabulary.apart, 128_256)
for _name, _make in _FAMILIES.items():
    _text = f"as {_name}, led by the first, a random and the last class"
    _kind = "probs" if _name.startswith("one_hot") else "logits"
    register(Case(f"{_name}_placed", _text, partial(placed, _name, _make), target_kind=_kind))
for _tail in ("gaussian", "zipf"):
    for _n in (32_000, 128_256, 151_936):
        _text = f"as a language model's: top probability 0.5 to 0.999 over a {_tail} tail, {_n:,} classes"
        register(Case(f"confident_{_tail}_n{_n}", _text, partial(confident, _tail, _n)))
