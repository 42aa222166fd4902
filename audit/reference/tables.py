"""Tables of exponentials as limbs, computed in mpmath and kept for the process."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.reference.limbs import BITS, NARROW
from audit.reference.oracle import context

COARSE, FINE = 12, 27
PAGE_BITS = 16
SPAN = 2 ** (FINE - COARSE - 1)


@dataclass(frozen=True)
class Tables:
    """T1[i] = e^(-i/2^12), 0 <= i < 2^16, and T2[l + SPAN] = e^(l/2^27), |l| <= SPAN, a row each.

    T2 has limbs 1 ... width, T1 has limbs of NARROW bits, none beyond half of its radix; each number errs by less than
    0.51 of its last unit. Small types keep more in the cache.
    """

    coarse: NDArray[np.int16]
    fine: NDArray[np.float32]


def narrow_limbs(width: int) -> int:
    """So many that T1's last unit is 2^-8 of T2's or less: its error does not shrink with a class's weight."""
    return -(-(BITS * width + 8) // NARROW)


@lru_cache(maxsize=4)
def tables(width: int) -> Tables:
    high, low = [-256 * i for i in range(2 ** (PAGE_BITS - 8))], [-i for i in range(256)]
    coarse = _exponentials(high, low, COARSE, narrow_limbs(width), NARROW, np.int16)
    high, low = [128 * i - SPAN for i in range(2 * SPAN // 128 + 1)], list(range(128))
    fine = _exponentials(high, low, FINE, width, BITS, np.float32)
    return Tables(coarse, fine[: 2 * SPAN + 1])


def _exponentials(
    high: list[int], low: list[int], position: int, width: int, size: int, dtype: type[Any]
) -> NDArray[Any]:
    """e^((a + b)/2^position) for a in high, b in low, row by row, as limbs 1 ... width of `size` bits, at most 25."""
    ctx = context()
    bits = size * width - 2
    guard = 32
    with ctx.workprec(bits + 2 * guard):
        a, b = (
            [int(ctx.nint(ctx.ldexp(ctx.exp(ctx.mpf(v) / 2**position), bits + guard))) for v in values]
            for values in (high, low)
        )
    # Digits 0 ... 2^size - 1 of the biased number are limbs -half ... half - 1 of the number.
    half = 2 ** (size - 1)
    bias = sum(half << (size * i) for i in range(width))
    shift = bits + 2 * guard
    offset = (bias << shift) + (1 << (shift - 1))
    length = size * width // 8 + 4
    raw = b"".join(((u * v + offset) >> shift).to_bytes(length, "little") for u in a for v in b)
    digits = np.frombuffer(raw, np.uint8).reshape(-1, length)
    limbs = np.empty((len(digits), width), dtype)
    for j in range(width):
        bit = size * (width - 1 - j)
        words = digits[:, bit // 8 : bit // 8 + 4].copy().view("<u4")[:, 0]
        limbs[:, j] = ((words >> (bit % 8)) & (2**size - 1)).astype(np.int64) - half
    return limbs


@lru_cache(maxsize=1024)
def page_factor(page: int, width: int) -> Fraction:
    """e^(-16 page), rounded below unit(width + 2)."""
    ctx, bits = context(), BITS * (width + 3)
    with ctx.workprec(bits):
        return Fraction(int(ctx.nint(ctx.ldexp(ctx.exp(-page * 2 ** (PAGE_BITS - COARSE)), bits))), 2**bits)
