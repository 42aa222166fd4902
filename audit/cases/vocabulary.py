"""Rows as wide as language models' vocabularies: flat, peaked and Zipf-like."""

from __future__ import annotations

from functools import partial

import numpy as np

from audit.base.formats import Format
from audit.cases import Case, Rows, register
from audit.cases.streams import logarithm, normal

SIZES = (10, 81, 1_000, 32_000, 50_257, 128_256, 151_936, 262_144)


def flat(classes: int, _: Format) -> tuple[Rows, Rows]:
    return 0.1 * normal(f"flat {classes} input", 1, classes), 0.1 * normal(f"flat {classes} target", 1, classes)


def peaked(classes: int, _: Format) -> tuple[Rows, Rows]:
    """The last class leads by 15, as a confident model's does; the rest is random."""
    input, target = normal(f"peaked {classes} input", 1, classes), normal(f"peaked {classes} target", 1, classes)
    input[0, -1], target[0, -1] = 15.0, 16.0
    return input, target


def zipf(classes: int, _: Format) -> tuple[Rows, Rows]:
    """-log(rank) and noise, which is what a language model's head gives."""
    ranks = -logarithm(np.arange(1.0, classes + 1, dtype=np.float64))[None, :]
    input = ranks + 0.5 * normal(f"zipf {classes} input", 1, classes)
    return input, input + 0.5 * normal(f"zipf {classes} noise", 1, classes)


def wide(classes: int, _: Format) -> tuple[Rows, Rows]:
    """Logits spread over more than 104, so that float32's exp underflows for most; the last class leads."""
    input = np.linspace(-120, 0, classes, dtype=np.float64)[None, :]
    input = np.round(input * 2**20) * 2.0**-20
    return input, input + 0.25 * normal(f"wide {classes}", 1, classes)


def apart(classes: int, _: Format) -> tuple[Rows, Rows]:
    """Led by the last class in the target, by the first in the input: nearly all of the divergence is its last term."""
    input, target = normal(f"apart {classes} input", 1, classes), normal(f"apart {classes} target", 1, classes)
    input[0, 0], target[0, -1] = 20.0, 20.0
    return input, target


def scattered(classes: int, _: Format) -> tuple[Rows, Rows]:
    """Two unlike rows that scatter by 3: eight nats, made by thousands of classes of which none stands out."""
    return 3 * normal(f"scattered {classes} input", 2, classes), 3 * normal(f"scattered {classes} target", 2, classes)


for _name, _make, _text, _sizes in (
    ("scattered", scattered, "two unlike rows that scatter by 3", (32_000, 128_256, 262_144)),
    ("apart", apart, "led by the last class in the target, by the first in the input", (128_256, 262_144)),
):
    for _classes in _sizes:
        _profile = "full" if _classes == 262_144 else "standard"
        register(Case(f"{_name}_n{_classes}", f"{_text}, {_classes:,} classes", partial(_make, _classes), _profile))
for _classes in SIZES:
    _profile = "full" if _classes in (50_257, 151_936, 262_144) else "standard"
    for _name, _make, _text in (
        ("flat", flat, "nearly flat"),
        ("peaked", peaked, "led by 15 and more by the last class"),
        ("zipf", zipf, "-log(rank) and noise"),
        ("wide", wide, "spread over more than 104, led by the last class"),
    ):
        register(
            Case(
                f"{_name}_n{_classes}",
                f"{_text}, {_classes:,} classes",
                partial(_make, _classes),
                _profile,
            )
        )
