"""Arithmetic on limbs: integers held in binary64, with a bound of every one proven before anything is computed.

A number is a column of limbs, limb j counting multiples of unit(j) = 2^(2 - 22 j). Sums and products of limbs are exact,
in any order, while no integer exceeds 2^53. `plan` and `product` carry the bounds through every step as Python integers
and raise where one might. docs/reference-engine.md has the proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BITS = 22
RADIX = 2.0**BITS
HALF = 2 ** (BITS - 1)
EXACT = 2**53
# Limbs that are to be multiplied again are kept below 4 HALF.
LOOSE = 4 * HALF
# What is left of an argument once the tables have taken their part.
TAIL = Fraction(1, 2**27)
# A geometric series of limbs, and e^t, are at most this.
SLACK = Fraction(101, 100)


def unit(limb: int) -> Fraction:
    return Fraction(4, 2 ** (BITS * limb))


def at_most(bound: int, limit: int = EXACT) -> int:
    if bound > limit:
        raise ArithmeticError(f"an integer may reach {bound}, above {limit}")
    return bound


def aligned(*shape: int) -> Floats:
    """Zeros from a multiple of 64 bytes on: vector units are twice as fast there."""
    size = int(np.prod(shape))
    raw = np.zeros(size + 8)
    return raw[-(raw.ctypes.data // 8) % 8 :][:size].reshape(shape)


def carry(limbs: Floats, scratch: Floats) -> None:
    """One pass in place along the first axis: each limb but the first becomes at most HALF plus one carry."""
    carries = scratch[: len(limbs) - 1]
    np.multiply(limbs[1:], 1 / RADIX, out=carries)
    np.rint(carries, out=carries)
    limbs[:-1] += carries
    carries *= RADIX
    limbs[1:] -= carries


def carried(bound: int) -> int:
    """What `carry` leaves of limbs bounded by `bound`; the first limb is bounded by its value instead."""
    return int(HALF + at_most(bound, EXACT // 2) // 2**BITS + 1)


def passes_of(bound: int) -> tuple[int, int]:
    """How many passes of `carry` bring limbs below LOOSE, and the bound they leave."""
    passes, bound = 1, carried(bound)
    while bound > LOOSE:
        passes, bound = passes + 1, carried(bound)
    return passes, bound


def divide(limbs: Floats, divisor: int) -> None:
    """Long division in place along the first axis; the remainder, at most one unit of the last limb, is dropped."""
    remainder = np.zeros(limbs.shape[1])
    for limb in limbs:
        remainder = remainder * RADIX + limb
        np.rint(remainder / divisor, out=limb)
        remainder -= limb * divisor


def split(values: Floats, error: Floats | None, limit: int) -> tuple[list[Floats], bool]:
    """The limbs of `values + error`, at most `limit`, the first being the integer part, and whether that is all.

    Limbs after the first are at most HALF, and twice that with `error`, which must be at most 1/2 at first. Less than
    one unit of the last limb is left.
    """
    limbs: list[Floats] = []
    more = True
    while more and len(limbs) < limit:
        limb = np.rint(values)
        values = values - limb
        more = bool(values.any())
        values *= RADIX
        if error is not None:
            part = np.rint(error)
            error = error - part
            more |= bool(error.any())
            error *= RADIX
            limb += part
        limbs.append(limb)
    return limbs, not more


def add_products(limbs: Floats, factor: Floats, position: int, total: Floats, scratch: Floats) -> None:
    """total += limbs times the factor, which stands at `position`; what falls below `total` is dropped."""
    reach = min(len(limbs), len(total) - position)
    if reach > 0:
        np.multiply(limbs[:reach], factor[:reach], out=scratch[:reach])
        total[position : position + reach] += scratch[:reach]


@dataclass(frozen=True)
class Step:
    """V <- scale T2 + t (V / divisor) on `length` limbs, then so many passes of `carry`."""

    divisor: int
    scale: int
    length: int
    passes: int


@dataclass(frozen=True)
class Plan:
    """Horner's rule for scale e^t T2, from V = T2 on `start` limbs. No limb of the result exceeds `bound`.

    `error` bounds the result's error divided by `scale`, T2 as stored in its table.
    """

    start: int
    steps: tuple[Step, ...]
    scale: int
    bound: int
    error: Fraction


@lru_cache(maxsize=256)
def plan(width: int, tail_limbs: int) -> Plan:
    """The plan for tables of `width` limbs and tails of `tail_limbs` limbs, which stand at positions 2, 3, ..."""
    if not tail_limbs:
        return Plan(width + 2, (), 1, HALF, Fraction(0))
    budget = 2 * unit(width)
    # weights[k]: e^t = sum_{j<k} t^j/j! + t^k/k! E_k, and after step k V = scale E_{k-1} T2.
    weights = [Fraction(1)]
    while not weights[1:] or weights[-1] * TAIL * SLACK > budget * len(weights):
        weights.append(weights[-1] * TAIL / len(weights))
    terms = len(weights) - 1
    error = weights[terms] * TAIL * SLACK / (terms + 1)
    tail = int(TAIL * 2 ** (2 * BITS)) + (tail_limbs - 1) * HALF
    missing = unit(0) / 4 / 2 ** (BITS * (width + 1)) if tail_limbs == width else Fraction(0)

    def cut(length: int) -> Fraction:
        """The most that T2 loses on so many limbs, the first standing at position 0."""
        return unit(length - 1) * SLACK / 2 if length <= width else Fraction(0)

    length = start = next(n for n in range(2, width + 3) if weights[terms] * cut(n) <= budget)
    error += weights[terms] * cut(start)
    scale, bound = 1, HALF
    steps = []
    for k in range(terms, 0, -1):
        divisor = scale if scale * k > 2**BITS else 1
        if divisor > 1:
            at_most((divisor + 1) * 2**BITS + bound)
            bound = HALF + bound // divisor + 3
            error += weights[k] * unit(length - 1)
        before = scale // divisor
        scale = before * k
        # Of t V, what falls below the last limb; and what of t is beyond its limbs.
        dropped, beyond = tail * bound * SLACK, missing * before * SLACK**2
        losses = {n: scale * cut(n) + dropped * unit(n) + beyond for n in range(length, width + 3)}
        length = next((n for n in losses if weights[k - 1] * losses[n] / scale <= budget), width + 2)
        error += weights[k - 1] * losses[length] / scale
        passes, bound = passes_of(scale * HALF + tail * bound)
        steps.append(Step(divisor, scale, length, passes))
    return Plan(start, tuple(steps), scale, bound, error)


@dataclass(frozen=True)
class Product:
    """Limbs times weights: so many passes of `carry`, then no limb exceeds `bound`; what of the product is dropped."""

    passes: int
    bound: int
    dropped: Fraction


@lru_cache(maxsize=1024)
def product(width: int, bound: int, weights: tuple[int, ...], first: int) -> Product:
    """Of limbs within `bound` and weights within `weights` that stand at `first`, `first` + 1, ..."""
    passes, after = passes_of(sum(weights) * bound)
    below = sum(weights[max(0, 1 - first) :])
    return Product(passes, after, below * bound * unit(width + 2) * SLACK)
