"""Random numbers that are promised to stay: the same bits on every machine and in every version.

torch.randn and numpy's Generator methods may change their streams; numpy promises those of a bit generator's raw
output (NEP 19). Everything here is integer arithmetic on that output of Philox, scaled by a power of two, so no
library's log or cos has a say in a digit.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray


def _raw(seed: str, count: int) -> NDArray[np.uint64]:
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
    return np.asarray(np.random.Philox(key=key).random_raw(count), dtype=np.uint64)


def uniform(seed: str, *shape: int) -> NDArray[np.float64]:
    """Multiples of 2^-53 in [0, 1)."""
    integers = _raw(seed, math.prod(shape)) >> np.uint64(11)
    return np.asarray(integers * 2.0**-53, dtype=np.float64).reshape(shape)


def normal(seed: str, *shape: int) -> NDArray[np.float64]:
    """Mean 0, variance 1, multiples of 2^-48: twelve uniform numbers summed (Irwin-Hall), so within +-6."""
    count = math.prod(shape)
    integers = (_raw(seed, 12 * count) >> np.uint64(16)).astype(np.int64).reshape(12, count)
    return np.asarray((integers.sum(axis=0) - 6 * 2**48) * 2.0**-48).reshape(shape)


def normals(seed: str, rows: int, classes: int, scale: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Input and target of `normal` numbers times `scale`, each from a seed of its own."""
    return scale * normal(f"{seed} input", rows, classes), scale * normal(f"{seed} target", rows, classes)


def logarithm(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """log to a multiple of 2^-20, so that a libm's last place does not show."""
    return np.asarray(np.round(np.log(values) * 2**20) * 2.0**-20)
