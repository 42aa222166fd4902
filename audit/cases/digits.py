"""Real logits: the thread's CNN, trained on real images as the thread did (references/digits/make.py made them)."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from audit.base.formats import Format
from audit.cases import Case, Rows, register


@cache
def recorded() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits, epochs x images x 10, after each epoch of training, and the images' labels."""
    with np.load(str(files("audit.cases") / "data" / "digits.npz")) as data:
        return data["logits"], data["labels"]


def epochs(_: Format) -> tuple[Rows, Rows]:
    """Input: the network after its first epoch; target: after its last."""
    logits = recorded()[0].astype(np.float64)
    return logits[0], logits[-1]


def labels(_: Format) -> tuple[Rows, Rows]:
    logits, wanted = recorded()
    return logits[-1].astype(np.float64), np.eye(10)[wanted]


register(Case("digits_epochs", "the thread's CNN on real digits: first epoch against last", epochs, "quick"))
register(Case("digits_labels", "the thread's CNN on real digits against its one-hot labels", labels, "quick", "probs"))
