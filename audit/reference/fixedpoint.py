"""Sums of weighted exponentials over a long row, in exact fixed point on numpy, with a proven error.

An argument is cut without rounding into

    x = top - i 2^-12 + l 2^-27 + t,    |t| <= 2^-28,    so that    sum w e^(x - top) = sum T1[i] (w T2[l] e^t)

with tables T1 and T2. The bracket is computed class by class on limbs, by Horner's rule where t is not 0; the sum over
classes is the matrix product of the limbs. Both are exact but for what is dropped below the last limb, which is
relative to e^t T2, so that a class errs in proportion to its own weight. docs/reference-engine.md has the proof.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from audit.reference.limbs import (
    BITS,
    HALF,
    NARROW,
    SLACK,
    Floats,
    add_products,
    aligned,
    carries_of,
    exact_terms,
    horner,
    plan,
    product,
    split,
    times,
    unit,
)
from audit.reference.oracle import Ball, context

Integers = NDArray[np.int64]

# So many classes are worked on at a time.
BLOCK = 4080
# So many classes at most keep the sums of their pieces within 63 bits.
MOST = 500_000
LARGEST = 2.0**39
COARSE, FINE = 12, 27
PAGE_BITS = 16
SPAN = 2 ** (FINE - COARSE - 1)


class Tables(NamedTuple):
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
    coarse = _exponentials(high, low, COARSE, narrow_limbs(width), size=NARROW, dtype=np.int16)
    high, low = [128 * i - SPAN for i in range(2 * SPAN // 128 + 1)], list(range(128))
    fine = _exponentials(high, low, FINE, width, size=BITS, dtype=np.float32)
    return Tables(coarse, fine[: 2 * SPAN + 1])


def _exponentials(
    high: list[int], low: list[int], position: int, width: int, *, size: int, dtype: type[Any]
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


def page_factor(page: int, width: int) -> Fraction:
    """e^(-16 page), rounded below unit(width + 2)."""
    ctx, bits = context(), BITS * (width + 3)
    with ctx.workprec(bits):
        return Fraction(int(ctx.nint(ctx.ldexp(ctx.exp(-page * 2 ** (PAGE_BITS - COARSE)), bits))), 2**bits)


@dataclass(frozen=True)
class Weights:
    """Numbers w, one a class: the sum over m of limb m times 2^(-25 (first + m)), to within `missing`.

    Limb m is within `bounds[m]`, and no limbs say w = 1. |w| is at most `ratio` times the class's count, and all of
    them add up to `total` at most.
    """

    limbs: Sequence[Floats]
    first: int
    bounds: tuple[int, ...]
    missing: Fraction
    ratio: Fraction
    total: Fraction

    @classmethod
    def ones(cls, count: int) -> Weights:
        return cls((), 0, (), Fraction(0), Fraction(1), Fraction(count))

    @classmethod
    def counts(cls, counts: Integers) -> Weights:
        total = Fraction(int(counts.sum()))
        return cls([counts.astype(np.float64)], 0, (int(counts.max()),), Fraction(0), Fraction(1), total)

    @classmethod
    def differences(cls, parts: Sequence[Floats], exponent: int, limit: int) -> Weights:
        """One or two parts over 2^exponent, at most 1/2 together, the second at most half an ulp of the first."""
        limbs = split(parts, limit, 2.0 ** (BITS - exponent), needed=True)
        missing = Fraction(1, 2 ** (BITS * limit)) if len(limbs) == limit else Fraction(0)
        # In binary64 a sum of n numbers of one sign errs by less than n 2^-53 of it.
        total = SLACK * Fraction(float(np.abs(parts[0]).sum())) / Fraction(2) ** exponent
        return cls(limbs, 1, (len(parts) * HALF,) * len(limbs), missing, Fraction(1, 2), total)

    def grouped(self, group: Integers, counts: Integers) -> Weights:
        """The sums over the classes of each group, in few enough limbs to be multiplied again."""
        most = int(counts.max())
        limbs = np.zeros((len(self.limbs) + 1, len(counts)))
        for row, limb in zip(limbs[1:], self.limbs, strict=True):
            row[:] = np.bincount(group, limb, minlength=len(counts))
        carries, bound = carries_of(most * max(self.bounds))
        add_products(limbs, (), carries, limbs, np.empty_like(limbs))
        bounds = (most + 1, *(bound,) * len(self.bounds))
        return replace(self, limbs=[*limbs], first=self.first - 1, bounds=bounds, missing=most * self.missing)

    def of(self, members: slice | Integers) -> Weights:
        """Those of some classes."""
        return replace(self, limbs=[limb[members] for limb in self.limbs])


def exponential_sums(values: Floats, weights: list[Weights], width: int) -> tuple[Fraction, list[Ball]]:
    """(top, sums): the sum of w e^(values - top) for each of the weights, of which the first are the counts.

    At most MOST values, finite and at most LARGEST in magnitude; `width` is 3 or more.
    """
    top = float(np.rint(values.max() * 2.0**COARSE))
    totals = [Ball(Fraction(0), Fraction(0)) for _ in weights]
    for page, tail_limbs, members in _runs(values, top, width):
        start, those = top - float(page << PAGE_BITS), [w.of(members) for w in weights]
        sums = _run_sums(values[members], start, tail_limbs, those, width)
        factor = page_factor(page, width)
        # The factor errs by less than unit(width + 2), and what it multiplies is at most SLACK times the weight.
        totals = [
            Ball(total.value + factor * s.value, total.radius + factor * s.radius + w.total * SLACK * unit(width + 2))
            for total, s, w in zip(totals, sums, weights, strict=True)
        ]
    return Fraction(int(top), 2**COARSE), totals


def _digits(values: Floats, top: float) -> tuple[Integers, Floats, Floats]:
    """(i, l, t 2^27) of every value, for `top` in 2^-12."""
    steps = values * 2.0**COARSE
    np.rint(steps, out=steps)
    tails = steps * -(2.0**-COARSE)
    tails += values
    tails *= 2.0**FINE
    fine = np.rint(tails)
    tails -= fine
    np.subtract(top, steps, out=steps)
    return steps.astype(np.int64), fine, tails


def _runs(values: Floats, top: float, width: int) -> Iterator[tuple[int, int, slice | Integers]]:
    """(page, limbs of the tails, members), for classes of one page and about as long tails."""
    kinds = np.zeros(len(values), np.int16)
    # Tails that are 0, and those that two and three limbs hold.
    for position in (FINE, 3 * BITS, 4 * BITS):
        scaled = values * 2.0**position
        beyond = scaled != np.rint(scaled)
        count = np.count_nonzero(beyond)
        if not count:
            break
        # A run of its own is worth it for the many with less, and for the few with more.
        kinds += beyond if 2 * count < len(values) else 1
    if np.rint(values.min() * 2.0**COARSE) <= top - 2**PAGE_BITS:
        kinds += (4 * (_digits(values, top)[0] >> PAGE_BITS)).astype(np.int16)
    for kind in range(int(kinds.max()) + 1):
        members = np.flatnonzero(kinds == kind)
        if len(members):
            page, depth = divmod(kind, 4)
            yield page, (0, 2, 3, width)[depth], members if len(members) < len(values) else slice(None)


@lru_cache(maxsize=1)  # Fresh memory costs more than the arithmetic.
def _space(width: int) -> tuple[Floats, Floats]:
    """What a block of classes is worked on in: T1's limbs, and four times limbs 0 ... width + 1."""
    return aligned(BLOCK, narrow_limbs(width)), aligned(4, width + 2, BLOCK)


def _run_sums(values: Floats, top: float, tail_limbs: int, weights: list[Weights], width: int) -> list[Ball]:
    """The sums over classes of the page that `top` begins, whose tails have so many limbs at most."""
    table, chosen = tables(width), plan(width, tail_limbs)
    products = [product(width, chosen.scale, chosen.bound, w.bounds, w.first) for w in weights]
    piece = exact_terms(max(p.bound for p in products))
    parts = []
    for start in range(0, len(values), BLOCK):
        block = slice(start, start + BLOCK)
        coarse, fine, tails = _digits(values[block], top)
        size = len(coarse)
        left, space = _space(width)[0][:size], _space(width)[1][..., :size]
        limbs, results, scratch = space[0], space[1:3], space[3]
        left[:] = np.take(table.coarse, coarse, axis=0, mode="clip")
        limbs[:: width + 1] = 0
        fine += SPAN
        limbs[1:-1] = np.take(table.fine, fine.astype(np.int64), axis=0, mode="clip").T
        if tail_limbs:
            horner(limbs, tails * 2.0**-FINE, tail_limbs, chosen, results=results, scratch=scratch)
        # The first weights last: their product takes the place of what all are products with.
        for out, needs, w in reversed([*zip(space, products, weights, strict=False)]):
            if w.limbs:
                times(limbs, [limb[block] for limb in w.limbs], w.first, needs, out=out, scratch=scratch)
        rows = space[: len(weights)].reshape(-1, size)
        parts += [rows[:, i : i + piece] @ left[i : i + piece] for i in range(0, size, piece)]
    narrow = narrow_limbs(width)
    each = unit(narrow, NARROW) * unit(width + 1) / chosen.scale
    exact = np.array(parts).astype(np.int64).sum(axis=0).reshape(len(weights), width + 2, narrow)
    totals = [each * _fold(total) for total in exact]
    # The tables err by less than 0.51 units; what T1's error is multiplied by is at most SLACK times the weight.
    stored = SLACK * Fraction(51, 100) * unit(narrow, NARROW)
    error = SLACK * Fraction(51, 100) * unit(width) + chosen.error
    mass = SLACK * (totals[0] + stored * weights[0].total)
    return [
        Ball(value, mass * (w.ratio * error + needs.dropped / chosen.scale + SLACK * w.missing) + stored * w.total)
        for value, needs, w in zip(totals, products, weights, strict=True)
    ]


def _fold(total: Integers) -> int:
    """The number in units of its last entry, entry (i, j) weighing 2^-(BITS i + NARROW j)."""
    rows = [sum(entry << NARROW * j for j, entry in enumerate(row[::-1])) for row in total.tolist()]
    return sum(row << BITS * i for i, row in enumerate(rows[::-1]))
