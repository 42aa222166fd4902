"""Tables of exponentials as limbs, computed in mpmath and kept for the process."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from audit.reference.limbs import BITS, HALF
from audit.reference.oracle import _context

COARSE, FINE = 12, 27
PAGE_BITS = 16
SPAN = 2 ** (FINE - COARSE - 1)


@dataclass(frozen=True)
class Tables:
    """T1[i] = e^(-i/2^12), 0 <= i < 2^16, a row each; T2[l + SPAN] = e^(l/2^27), |l| <= SPAN, a column each.

    Both have limbs 1 ... width, none beyond HALF, and err by less than 0.51 of the last unit. Binary32 holds a limb,
    and more of the tables stays in the cache.
    """

    coarse: NDArray[np.float32]
    fine: NDArray[np.float32]


@lru_cache(maxsize=4)
def tables(width: int) -> Tables:
    coarse = _exponentials([-256 * i for i in range(2 ** (PAGE_BITS - 8))], [-i for i in range(256)], COARSE, width)
    fine = _exponentials([128 * i - SPAN for i in range(2 * SPAN // 128 + 1)], list(range(128)), FINE, width)
    return Tables(coarse, np.ascontiguousarray(fine[: 2 * SPAN + 1].T))


def _exponentials(high: list[int], low: list[int], position: int, width: int) -> NDArray[np.float32]:
    """e^((a + b)/2^position) for a in high, b in low, row by row, as limbs 1 ... width."""
    ctx = _context()
    bits = BITS * width - 2
    guard = 32
    with ctx.workprec(bits + 2 * guard):
        a, b = (
            [int(ctx.nint(ctx.ldexp(ctx.exp(ctx.mpf(v) / 2**position), bits + guard))) for v in values]
            for values in (high, low)
        )
    # Digits 0 ... 2^22 - 1 of the biased number are limbs -HALF ... HALF - 1 of the number.
    bias = sum(HALF << (BITS * i) for i in range(width))
    shift = bits + 2 * guard
    offset = (bias << shift) + (1 << (shift - 1))
    size = BITS * width // 8 + 4
    raw = b"".join(((u * v + offset) >> shift).to_bytes(size, "little") for u in a for v in b)
    digits = np.frombuffer(raw, np.uint8).reshape(-1, size)
    limbs = np.empty((len(digits), width), np.float32)
    for j in range(width):
        bit = BITS * (width - 1 - j)
        words = digits[:, bit // 8 : bit // 8 + 4].copy().view("<u4")[:, 0]
        limbs[:, j] = ((words >> (bit % 8)) & (2**BITS - 1)).astype(np.int64) - HALF
    return limbs


@lru_cache(maxsize=1024)
def page_factor(page: int, width: int) -> Fraction:
    """e^(-16 page), rounded below unit(width + 2)."""
    ctx, bits = _context(), BITS * (width + 3)
    with ctx.workprec(bits):
        return Fraction(int(ctx.nint(ctx.ldexp(ctx.exp(-page * 2 ** (PAGE_BITS - COARSE)), bits))), 2**bits)
