"""Rows as wide as language models' vocabularies, and leaders at the first, a random and the last place."""

from __future__ import annotations

from functools import partial

import numpy as np

from audit.cases import CASES, Case, Rows, logarithm, normal, normals, register, uniform

SIZES = (10, 81, 1_000, 32_000, 50_257, 128_256, 151_936, 262_144)
TOPS = {"gaussian": (0.5, 0.99), "zipf": (0.9, 0.999)}  # a tail's leaders, at the first and at a random class


def flat(classes: int) -> tuple[Rows, Rows]:
    return normals(f"flat {classes}", 1, classes, 0.1)


def peaked(classes: int) -> tuple[Rows, Rows]:
    """The last class leads by 15, as a confident model's does; the rest is random."""
    input, target = normals(f"peaked {classes}", 1, classes)
    input[0, -1], target[0, -1] = 15.0, 16.0
    return input, target


def zipf(classes: int) -> tuple[Rows, Rows]:
    """-log(rank) and noise, which is what a language model's head gives."""
    input = 0.5 * normal(f"zipf {classes} input", 1, classes) - logarithm(np.arange(1.0, classes + 1, dtype=np.float64))
    return input, input + 0.5 * normal(f"zipf {classes} noise", 1, classes)


def wide(classes: int) -> tuple[Rows, Rows]:
    """Logits spread over more than 104, so that float32's exp underflows for most; the last class leads."""
    input = np.round(np.linspace(-120, 0, classes)[None, :] * 2**20) * 2.0**-20
    return input, input + 0.25 * normal(f"wide {classes}", 1, classes)


def apart(classes: int) -> tuple[Rows, Rows]:
    """Led by the last class in the target, by the first in the input: nearly all of the divergence is its last term."""
    input, target = normals(f"apart {classes}", 1, classes)
    input[0, 0], target[0, -1] = 20.0, 20.0
    return input, target


def scattered(classes: int) -> tuple[Rows, Rows]:
    """Two unlike rows that scatter by 3: eight nats, made by thousands of classes of which none stands out."""
    return normals(f"scattered {classes}", 2, classes, 3)


def placed(case: Case) -> tuple[Rows, Rows]:
    """The first row of a case, its classes turned until the target's leader is the first, a random one, the last."""
    input, target = (side[:1] for side in case.make())
    classes, leader = target.shape[1], int(target.argmax())
    turns = [place - leader for place in (0, int(uniform(f"place {case.name}", 1)[0] * classes), classes - 1)]
    return np.concatenate([np.roll(input, t, 1) for t in turns]), np.concatenate([np.roll(target, t, 1) for t in turns])


def confident(tail: str, classes: int) -> tuple[Rows, Rows]:
    """The first class, and in the second row a random one, has a probability of TOPS. The input is 0.05 noise away."""
    name, tops = f"confident {tail} {classes}", TOPS[tail]
    target = 1.5 * normal(f"{name} target", len(tops), classes)
    if tail == "zipf":
        target = target / 3 - logarithm(np.arange(1.0, classes + 1, dtype=np.float64))
    for row, place in enumerate((0, int(uniform(f"{name} place", 1)[0] * classes))):
        others = np.exp(np.delete(target[row], place)).sum(keepdims=True)
        target[row, place] = logarithm(others * tops[row] / (1 - tops[row]))[0]
    return target + 0.05 * normal(f"{name} noise", len(tops), classes), target


for _name, _make, _text, _sizes in (
    ("scattered", scattered, "two unlike rows that scatter by 3", (32_000, 128_256, 262_144)),
    ("apart", apart, "led by the last class in the target, by the first in the input", (128_256, 262_144)),
):
    for _n in _sizes:
        _profile = "full" if _n == 262_144 else "standard"
        register(Case(f"{_name}_n{_n}", f"{_text}, {_n:,} classes", partial(_make, _n), _profile))
for _n in SIZES:
    _profile = "full" if _n in (50_257, 151_936, 262_144) else "standard"
    for _name, _make, _text in (
        ("flat", flat, "nearly flat"),
        ("peaked", peaked, "led by 15 and more by the last class"),
        ("zipf", zipf, "-log(rank) and noise"),
        ("wide", wide, "spread over more than 104, led by the last class"),
    ):
        register(Case(f"{_name}_n{_n}", f"{_text}, {_n:,} classes", partial(_make, _n), _profile))
_LED = ["gap_12", "gap_17", "gap_104", "peaked_gap12", "peaked_gap20", "one_hot", "one_hot_smoothed"]
_LED += [f"{family}_n{n}" for n in (81, 1_000, 32_000, 128_256) for family in ("peaked", "wide")] + ["apart_n128256"]
for _case in map(CASES.__getitem__, _LED):
    _text = f"as {_case.name}, led by the first, a random and the last class"
    _make = partial(placed, _case)
    register(Case(f"{_case.name}_placed", _text, _make, target_kind=_case.target_kind))
for _tail, _tops in TOPS.items():
    for _n in (32_000, 128_256, 151_936):
        _text = f"as a language model's: top probability {_tops[0]} and {_tops[1]} over a {_tail} tail, {_n:,} classes"
        _make = partial(confident, _tail, _n)
        register(Case(f"confident_{_tail}_n{_n}", _text, _make, dtypes=("float16", "bfloat16", "float32")))
