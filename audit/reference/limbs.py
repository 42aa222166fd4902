"""Arithmetic on limbs: integers held in binary64, with a bound of every one proven before anything is computed.

A number is a column of limbs, limb j counting multiples of unit(j) = 2^(2 - 25 j). Sums and products of limbs are
exact, in any order, while no integer exceeds 2^53. `plan` and `product` carry the bounds through every step as Python
integers and raise where one might. docs/reference-engine.md has the proof.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BITS = 25
RADIX = 2.0**BITS
HALF = 2 ** (BITS - 1)
EXACT = 2**53
# Limbs that are to be multiplied again are kept below 4 HALF.
LOOSE = 4 * HALF
# The table that sums are taken against has limbs of 16 bits, so that thousands of classes add up exactly.
NARROW = 16
# Limbs that are to be summed: 2,048 products with narrow ones are exact.
SUMMED = 2**27
# |t|, what is left of an argument once the tables have taken their part.
TAIL = Fraction(1, 2**28)
# At most what (k + 1) E_k loses in binary64, see `Plan`: five roundings of t^2 / (k + 2), and the terms from t^4 on.
ROUGH = 8 * TAIL**2 / 2**53
# V / scale is at most SLACK, and V at most that many times this.
STEEPEST = 2**12
# A geometric series of limbs, and e^t, are at most this.
SLACK = Fraction(101, 100)


def unit(limb: int, bits: int = BITS) -> Fraction:
    return Fraction(4, 2 ** (bits * limb))


def at_most(bound: int, limit: int = EXACT) -> int:
    if bound > limit:
        raise ArithmeticError(f"an integer may reach {bound}, above {limit}")
    return bound


def aligned(*shape: int) -> Floats:
    """Zeros from a multiple of 64 bytes on: vector units are twice as fast there."""
    size = int(np.prod(shape))
    raw = np.zeros(size + 8)
    return raw[-(raw.ctypes.data // 8) % 8 :][:size].reshape(shape)


def any_nonzero(values: Floats) -> bool:
    """`values.any()` of a contiguous array, several times as fast."""
    return bool(np.bitwise_or.reduce(values.view(np.int64)) & 2**63 - 1)


def nonzero(rows: Iterable[Floats], first: int) -> list[tuple[int, Floats]]:
    """The rows that are not 0 throughout, with the positions where they stand, `first` and on."""
    return [(position, row) for position, row in enumerate(rows, first) if any_nonzero(row)]


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


class Carries(NamedTuple):
    """A pass of `carry` after `every` so many products, and so many passes at the end."""

    every: int
    passes: int


def carries_of(start: int, factors: Sequence[int] = (), limbs: int = 0, limit: int = LOOSE) -> tuple[Carries, int]:
    """The carries after which limbs are below the limit, and the bound they leave.

    Products of numbers within `factors` and of limbs within `limbs` are added to limbs within `start`.
    """
    room, every = EXACT // 2, len(factors)
    bound = at_most(start, room) + sum(factors) * limbs
    if bound > room:
        each, left = max(factors) * limbs, room - max(start, carried(room))
        every, bound = left // at_most(each, left), room
    passes, bound = 1, carried(bound)
    while bound > limit:
        passes, bound = passes + 1, carried(bound)
    return Carries(every, passes), bound


def exact_terms(bound: int) -> int:
    """How many products of narrow limbs and of limbs within `bound` add up exactly."""
    return EXACT // (bound << NARROW - 1)


def divide(limbs: Floats, divisor: int) -> None:
    """Long division in place along the first axis; the remainder, at most one unit of the last limb, is dropped."""
    remainder = np.zeros(limbs.shape[1])
    for limb in limbs:
        remainder = remainder * RADIX + limb
        np.rint(remainder / divisor, out=limb)
        remainder -= limb * divisor


def split(parts: Sequence[Floats], count: int, scale: float, needed: bool = False) -> list[Floats]:
    """`count` limbs of `scale` times the sum of one or two parts, the first being the integer part.

    At least 1 limb, 2 where scale < 1; no more than are `needed` until nothing is left, if asked so. Limbs after the
    first are at most HALF, and twice that with a second part, of which `scale` makes at most 1/2. Less than one unit of
    the last limb is left.
    """
    limbs: list[Floats] = []
    if scale < 1:
        # Scaling down could lose the last bits of numbers below 1e-300. Without their first limb they are scaled up.
        limbs.append(np.rint(parts[0] * scale))
        parts = [parts[0] - limbs[0] / scale, *parts[1:]]
        scale *= RADIX
    left = [part * scale for part in parts]
    first, *others = left
    while True:
        limb = np.rint(first)
        first -= limb
        for part in others:
            digit = np.rint(part)
            part -= digit
            limb += digit
        limbs.append(limb)
        if len(limbs) == count or (needed and not any(map(any_nonzero, left))):
            return limbs
        for part in left:
            part *= RADIX


def add_products(
    limbs: Floats, factors: Iterable[tuple[int, Floats]], carries: Carries, total: Floats, scratch: Floats
) -> None:
    """total += limbs times the factors, of one number a class each, with the positions where they stand, and carries.

    What falls below `total` is dropped.
    """
    for turn, (position, factor) in enumerate(factors):
        if turn and turn % carries.every == 0:
            carry(total, scratch)
        reach = min(len(limbs), len(total) - position)
        if reach > 0:
            np.multiply(limbs[:reach], factor, out=scratch[:reach])
            total[position : position + reach] += scratch[:reach]
    for _ in range(carries.passes):
        carry(total, scratch)


class Step(NamedTuple):
    """V <- scale T2 + f (V / divisor) on `length` limbs, f given by `factors` limbs."""

    scale: int
    length: int
    factors: int
    carries: Carries
    divisor: int


class Plan(NamedTuple):
    """Horner's rule for V = scale e^t T2, no limb of which exceeds `bound`.

    With e^t = sum over j < k of t^j/j! + t^k/k! E_k, it starts at (k + 1) E_k T2, from V = T2 and
    f = t + t^2/(k + 2) + t^3/((k + 2) (k + 3)), whose last two terms are one binary64 number. Every further step has
    f = t. `error` bounds the error of V / scale, T2 as stored in its table. No steps: V = T2.
    """

    steps: tuple[Step, ...]
    scale: int
    bound: int
    error: Fraction


@lru_cache(maxsize=256)
def plan(width: int, tail_limbs: int) -> Plan:
    """The plan for tables of `width` limbs, 3 or more, and tails of `tail_limbs` limbs, from position 2 on."""
    if not tail_limbs:
        return Plan((), 1, HALF, Fraction(0))
    budget = unit(width)
    weights = [Fraction(1)]
    while weights[-1] * ROUGH > budget * len(weights):
        weights.append(weights[-1] * TAIL / len(weights))
    terms = len(weights) - 1
    scales, divisors = [terms + 1], [1]
    for k in range(terms, 0, -1):
        divisors.append(scales[-1] if scales[-1] * k > STEEPEST else 1)
        scales.append(scales[-1] // divisors[-1] * k)
    error = weights[terms] * ROUGH / (terms + 1)
    bound, shortest = HALF, 4
    steps: list[Step] = []
    for k, scale, divisor in zip(range(terms, -1, -1), scales, divisors, strict=True):
        if divisor > 1:
            at_most((divisor + 1) * 2**BITS + bound)
            bound = HALF + bound // divisor + 3
            error += weights[k + 1] * unit(shortest - 1)
        for length in range(shortest, width + 3):
            if steps:
                count, each, before = tail_limbs, HALF, scale // (k + 1)
                missing = Fraction(1, 2 ** (BITS * (width + 1))) if tail_limbs == width else Fraction(0)
            else:
                count, each, before = length - 3, 2 * HALF, 1  # with the higher terms, which begin in the second limb
                missing = Fraction(1, 2 ** (BITS * (count + 1)))
            factors = (int(TAIL * 2 ** (2 * BITS)) + 1, *(each,) * (count - 1))
            # What T2 loses on so many limbs, what of the product falls below them, what f is without its last limbs.
            loss = scale * unit(length - 1) * SLACK / 2 if length <= width else Fraction(0)
            loss += sum(factors) * bound * SLACK * unit(length) + missing * before * SLACK**2
            if weights[k] * loss <= budget * scale:
                break
        error += weights[k] * loss / scale
        carries, bound = carries_of(scale * HALF, factors, bound)
        steps.append(Step(scale, length, count, carries, divisor))
        shortest = length
    return Plan(tuple(steps), scale, bound, error)


def horner(right: Floats, t: Floats, tail_limbs: int, chosen: Plan, *, results: Floats, scratch: Floats) -> None:
    """T2, in `right`, becomes scale e^t T2; `results` are two of as many limbs."""
    last = len(chosen.steps) - 1
    tail = split([t], tail_limbs, RADIX**2)
    higher = t * t * (1 / (last + 2)) * (1 + t * (1 / (last + 3)))
    # Its first digit is 0.
    digits = split([higher], chosen.steps[0].factors - 1, RADIX**3)
    for both, limb in zip(digits, tail[1:], strict=False):
        both += limb
    factors, tail_factors = nonzero([tail[0], *digits], 2), nonzero(tail, 2)
    result = right
    for turn, step in enumerate(chosen.steps):
        if step.divisor > 1:
            divide(result, step.divisor)
        # After the last step T2 is not needed, but for the only step, which multiplies T2 itself.
        summed = (right if turn == last and turn else results[turn % 2])[: step.length]
        np.multiply(right[: step.length], float(step.scale), out=summed)
        add_products(result, factors, step.carries, summed, scratch)
        result, factors = summed, tail_factors
    if last == 0:
        right[: len(result)] = result
    right[len(result) :] = 0


class Product(NamedTuple):
    """Limbs times weights: no limb exceeds `bound` after the carries; `dropped` is what of the product is."""

    carries: Carries
    bound: int
    dropped: Fraction


@lru_cache(maxsize=1024)
def product(width: int, scale: int, bound: int, weights: tuple[int, ...], first: int) -> Product:
    """Of limbs within `bound`, worth `scale` SLACK at most, and weights within `weights` at `first`, `first` + 1, ...

    No weights are a weight of 1.
    """
    if not weights:
        return Product(Carries(0, 0), bound, Fraction(0))
    carries, after = carries_of(weights[0] * bound, weights[1:], bound, SUMMED)
    below = sum(weights[max(0, 1 - first) :])
    # The topmost limb is bounded by the value.
    most = sum(Fraction(weight, 2 ** (BITS * m)) for m, weight in enumerate(weights, first))
    after = at_most(max(after, int(scale * SLACK * most / unit(0)) + 5), SUMMED)
    return Product(carries, after, below * bound * unit(width + 2) * SLACK)


def times(
    limbs: Floats, weights: Sequence[Floats], first: int, needs: Product, *, out: Floats, scratch: Floats
) -> None:
    """The limbs times the weights, which stand at `first`, on as many limbs.

    `out` may be where the limbs are, for one row of weights at 0.
    """
    np.multiply(limbs[: len(out) - first], weights[0], out=out[first:])
    out[:first] = 0
    add_products(limbs, nonzero(weights[1:], first + 1), needs.carries, out, scratch)
