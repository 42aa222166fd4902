"""Multi-word fixed point on numpy: columns of limbs, with bounds proven before anything is computed.

A number is a column of int64 limbs, limb j counting multiples of unit(j) = 2^(-28 j): digits that need not be
normalised, so that sums and products are taken limb by limb and carried afterwards. Nothing is ever rounded; what is
dropped is counted. `horner_plan` and `weighted_bound` hold the bounds: no integer leaves int64, and no error is
forgotten. docs/reference-engine.md has the proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BITS = 28
MASK = 2**BITS - 1
HALF = 2 ** (BITS - 1)
WIDEST = 2**62
# Limbs of a finished number stay below this.
TIGHT = 2**30
# Table entries, limbs 1 ... width: all below 2^28 but the first, which holds what is above 1 as well.
ENTRY = 2**BITS + 2**16
# Tails are at most this; e^tail, table entries and geometric series of limbs are at most SLACK.
TAIL = Fraction(1, 2**BITS)
SLACK = Fraction(101, 100)
LARGEST_SCALE = 2**22


def unit(limb: int) -> Fraction:
    return Fraction(1, 2 ** (BITS * limb))


def aligned(*shape: int, dtype: Any = np.int64) -> Any:
    """An uninitialised array on a cache line, which doubles the speed of what follows."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def at_most(bound: int, limit: int = WIDEST) -> int:
    if bound > limit:
        raise ArithmeticError(f"an integer may reach {bound}, above {limit}")
    return bound


def carry(limbs: Integers, scratch: Integers) -> None:
    """One pass along the first axis, in place: each limb but the first becomes a digit plus the carry from below."""
    carries = scratch[: len(limbs) - 1]
    np.right_shift(limbs[1:], BITS, out=carries)
    limbs[1:] &= MASK
    limbs[:-1] += carries


def carried(bound: int) -> int:
    """What `carry` leaves of limbs within `bound`. (The first limb is bounded by the number itself.)"""
    return int(2**BITS + (at_most(bound) >> BITS) + 1)


def divide(limbs: Integers, divisor: int) -> None:
    """Long division along the first axis, in place; the remainder, below one unit of the last limb, is dropped."""
    remainder = np.zeros(limbs.shape[1], np.int64)
    for limb in limbs:
        remainder = remainder * 2**BITS + limb
        np.floor_divide(remainder, divisor, out=limb)
        remainder -= limb * divisor


def split(values: Floats, limit: int) -> list[Integers]:
    """At most `limit` limbs of `values`, highest first, the first being the nearest integer; ends when all are exact.

    Limbs after the first are at most HALF. At most three limbs of any one value are not 0, for it has 53 bits: after
    a first one, of values above 1/2, two more hold 56 bits. What `limit` cuts off is at most half a unit of the last.
    """
    limbs: list[Integers] = []
    while len(limbs) < limit:
        rounded = np.rint(values)
        limbs.append(rounded.astype(np.int64))
        values = (values - rounded) * 2.0**BITS
        if not values.any():
            break
    return limbs


def add_products(limbs: Integers, factors: list[Integers], position: int, total: Integers, scratch: Integers) -> None:
    """total += limbs times factors, which stand at `position` and below; what falls below the last limb is dropped."""
    for first, factor in enumerate(factors, position):
        reach = min(len(limbs), len(total) - first)
        if reach > 0:
            np.multiply(limbs[:reach], factor, out=scratch[:reach])
            total[first : first + reach] += scratch[:reach]


@dataclass(frozen=True)
class Step:
    """V <- scale T + t (V / divisor) on `length` limbs, then so many passes of `carry`."""

    divisor: int
    scale: int
    length: int
    passes: int


@dataclass(frozen=True)
class Plan:
    """Horner's rule for scale e^t T, T a table entry, from V = T on `start` limbs; `error` is that of e^t T."""

    start: int
    steps: tuple[Step, ...]
    scale: int
    error: Fraction


@lru_cache(maxsize=64)
def horner_plan(width: int, single: bool) -> Plan:
    """For entries of limbs 1 ... width, and tails of one limb at position 2 or (not `single`) of any number."""
    budget = unit(width)
    # e^t = sum_{j<k} t^j/j! + t^k/k! E_k, weights[k] = max |t^k/k!|; step k makes V = scale E_{k-1} T.
    weights = [Fraction(1), TAIL]
    while weights[-1] * TAIL * SLACK / len(weights) > budget:
        weights.append(weights[-1] * TAIL / len(weights))
    terms = len(weights) - 1
    error = weights[terms] * TAIL * SLACK / (terms + 1)
    tail = 2**BITS if single else 2**BITS + 2 * HALF

    def cut(length: int) -> Fraction:
        """What an entry loses on limbs 0 ... length - 1."""
        return unit(length - 1) if length <= width else Fraction(0)

    length = start = next(n for n in range(2, width + 2) if weights[terms] * cut(n) <= budget)
    error += weights[terms] * cut(start)
    scale, bound = 1, ENTRY
    steps = []
    for k in range(terms, 0, -1):
        divisor = scale if scale * k > LARGEST_SCALE else 1
        if divisor > 1:
            at_most(divisor * 2**BITS + bound)
            bound = 2**BITS + bound // divisor + 1
            error += weights[k] * unit(length - 1)
        scale = scale // divisor * k
        # What falls below the last limb, and what of t its own limbs leave out.
        dropped, beyond = tail * bound * SLACK, SLACK**2 * scale * unit(width)
        losses = {n: scale * cut(n) + dropped * unit(n) for n in range(length, width + 3)}
        length = next((n for n in losses if weights[k - 1] * losses[n] <= budget * scale), width + 2)
        error += weights[k - 1] * (losses[length] + beyond * unit(1)) / scale
        limit = TIGHT if k == 1 else WIDEST // 2 // tail
        passes, bound = 1, carried(scale * ENTRY + tail * bound)
        while bound > limit:
            passes, bound = passes + 1, carried(bound)
        steps.append(Step(divisor, scale, length, passes))
    # The limb below `width` is only a guard: a digit, dropped at the end.
    return Plan(start, tuple(steps), scale, error + unit(width) / scale)


def horner(entries: Integers, tail: list[Integers], plan: Plan, buffers: Integers, scratch: Integers) -> Integers:
    """scale e^tail times the entries (limbs 0 ... width + 1, the first and last 0), on limbs 0 ... width or fewer."""
    result = buffers[0][: plan.start]
    np.copyto(result, entries[: plan.start])
    for turn, step in enumerate(plan.steps, 1):
        if step.divisor > 1:
            divide(result, step.divisor)
        summed = buffers[turn % 2][: step.length]
        np.multiply(entries[: step.length], step.scale, out=summed)
        add_products(result, tail, 2, summed, scratch)
        for _ in range(step.passes):
            carry(summed, scratch)
        result = summed
    return np.asarray(result[: len(entries) - 1])


@lru_cache(maxsize=64)
def weighted_bound(width: int, doubled: bool) -> tuple[int, Fraction]:
    """(passes of `carry`, error) of a number within TIGHT times a weight, on limbs down to a guard below `width`.

    The weight's limbs stand at positions 1, 2, ...; at most three are not 0, or six with an error term (`doubled`).
    """
    each = (6 if doubled else 3) * HALF
    passes, bound = 1, carried(each * TIGHT)
    while bound > TIGHT:
        passes, bound = passes + 1, carried(bound)
    dropped = each * TIGHT * SLACK * unit(width + 2)
    beyond = 2 * SLACK * unit(width + 1)
    return passes, dropped + beyond + unit(width)


def weighted(limbs: Integers, weight: list[Integers], passes: int, out: Integers, scratch: Integers) -> None:
    """out = weight times limbs, on the positions of `limbs` and a guard below; the weight stands at 1, 2, ..."""
    out[0] = 0
    np.multiply(limbs, weight[0], out=out[1:])
    add_products(limbs, weight[1:], 2, out, scratch)
    for _ in range(passes):
        carry(out, scratch)
