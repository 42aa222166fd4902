"""Sums of weighted exponentials over a long row, in exact fixed point on numpy, with a proven error.

A number is a column of limbs: integers held in binary64, limb j counting multiples of unit(j) = 2^(2 - 22 j). Sums and
products of limbs are exact while no integer exceeds 2^53, which is proven from bounds before anything is computed
(`plan`, `weighted_bounds`). An argument is cut without rounding into

    x = top - i 2^-12 + l 2^-26 + t,    |t| <= 2^-27,    so that    sum w e^(x - top) = sum T1[i] (w T2[l] e^t)

with tables T1 and T2. The bracket is computed class by class, by Horner's rule where t is not 0; the sum is the matrix
product of the limbs, which is exact in any order. docs/reference-engine.md has the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.reference.oracle import _context

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BITS = 22
RADIX = 2.0**BITS
HALF = 2 ** (BITS - 1)
EXACT = 2**53
COARSE, FINE = 12, 26
PAGE = 2**16
BLOCK = 2048
SEGMENT = 2**17
SPAN = 2 ** (FINE - COARSE - 1)
TAIL = Fraction(1, 2 ** (FINE + 1))
# A geometric series of limbs, and e^t, are at most this.
SLACK = Fraction(101, 100)


def unit(limb: int) -> Fraction:
    return Fraction(4) / 2 ** (BITS * limb)


def at_most(bound: int, limit: int = EXACT) -> int:
    if bound > limit:
        raise ArithmeticError(f"an integer may reach {bound}, above {limit}")
    return bound


def carry(limbs: Floats) -> None:
    """One pass in place along the first axis: each limb but the first becomes at most HALF plus one carry."""
    carries = limbs[1:] * (1 / RADIX)
    np.rint(carries, out=carries)
    limbs[:-1] += carries
    carries *= RADIX
    limbs[1:] -= carries


def carried(bound: int) -> int:
    """What `carry` leaves of limbs bounded by `bound`; the first limb is bounded by its value instead."""
    return HALF + at_most(bound, EXACT // 2) // 2**BITS + 1


def divide(limbs: Floats, divisor: int) -> None:
    """Long division in place along the first axis; the remainder, at most one unit of the last limb, is dropped."""
    remainder = np.zeros(limbs.shape[1])
    for limb in limbs:
        remainder = remainder * RADIX + limb
        np.rint(remainder / divisor, out=limb)
        remainder -= limb * divisor


def split(values: Floats, error: Floats | None, limit: int) -> list[Floats]:
    """The limbs of `values + error`, at most `limit`, the first being the integer part; ends where nothing is left.

    Limbs after the first are at most HALF, and twice that with `error`, which must be at most 1/2 at first. After
    `limit` limbs less than one unit of the last is left.
    """
    limbs = []
    for _ in range(limit):
        limb = np.rint(values)
        values = (values - limb) * RADIX
        more = bool(values.any())
        if error is not None:
            part = np.rint(error)
            error = (error - part) * RADIX
            limb += part
            more |= bool(error.any())
        limbs.append(limb)
        if not more:
            break
    return limbs


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


def _passes(bound: int) -> tuple[int, int]:
    """How many passes of `carry` bring limbs below 4 HALF, and the bound they leave."""
    passes, bound = 1, carried(bound)
    while bound > 4 * HALF:
        passes, bound = passes + 1, carried(bound)
    return passes, bound


@lru_cache(maxsize=256)
def plan(width: int, tail_limbs: int) -> Plan:
    """The plan for tables of `width` limbs and tails of `tail_limbs` limbs, which stand at positions 2, 3, ..."""
    budget = unit(width) / 16
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
        passes, bound = _passes(scale * HALF + tail * bound)
        steps.append(Step(divisor, scale, length, passes))
    # The last limb, at position width + 1, is only a guard.
    return Plan(start, tuple(steps), scale, bound, error + bound * unit(width + 1) / scale)


@dataclass(frozen=True)
class Product:
    """Weights of so many limbs times limbs within `bound`: passes of `carry`, bound and error of the product."""

    passes: int
    bound: int
    error: Fraction


@lru_cache(maxsize=256)
def product(width: int, bound: int, weight_limbs: int, doubled: bool) -> Product:
    each = (2 if doubled else 1) * HALF
    passes, after = _passes(weight_limbs * each * bound)
    dropped = (weight_limbs - 1) * each * bound * unit(width + 2) * SLACK
    beyond = 4 * SLACK / 2 ** (BITS * weight_limbs) if weight_limbs > width else Fraction(0)
    return Product(passes, after, dropped + beyond + after * unit(width + 1))


@dataclass(frozen=True)
class Tables:
    """T1[i] = e^(-i/2^12), 0 <= i < PAGE, a row each; T2[l + SPAN] = e^(l/2^26), |l| <= SPAN, a column each.

    Both have limbs 1 ... width, none beyond HALF, and err by less than 0.51 of the last unit.
    """

    width: int
    coarse: Floats
    fine: Floats


@lru_cache(maxsize=4)
def tables(width: int) -> Tables:
    coarse = _exponentials([-256 * i for i in range(PAGE // 256)], [-i for i in range(256)], COARSE, width)
    fine = _exponentials([128 * i - SPAN for i in range(2 * SPAN // 128 + 1)], list(range(128)), FINE, width)
    return Tables(width, coarse, np.ascontiguousarray(fine.T))


def _exponentials(high: list[int], low: list[int], position: int, width: int) -> Floats:
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
    limbs = np.empty((len(digits), width))
    for j in range(width):
        bit = BITS * (width - 1 - j)
        words = digits[:, bit // 8 : bit // 8 + 4].copy().view("<u4")[:, 0]
        limbs[:, j] = (words >> (bit % 8)) & (2**BITS - 1)
    return limbs - HALF


@dataclass(frozen=True)
class Weight:
    """Weights (values + error) of the classes, each at most 2^(exponent - 1); `error` is at most an ulp of values."""

    values: Floats
    error: Floats | None
    exponent: int

    def limbs(self, where: slice | Integers, limit: int) -> list[Floats]:
        """At positions 1, 2, ... of weight / 2^exponent."""
        scale = 2.0 ** (BITS - self.exponent)
        error = None if self.error is None else self.error[where] * scale
        return split(self.values[where] * scale, error, limit)


@dataclass(frozen=True)
class Sum:
    """An exact sum lies within `radius` of `value`."""

    value: Fraction
    radius: Fraction


def exponential_sums(values: Floats, weights: list[Weight | None], width: int) -> tuple[Fraction, list[Sum]]:
    """(top, sums) with one sum of w e^(values - top) / 2^exponent for each weight, None meaning 1 and exponent 0.

    `values` are finite, below 2^39 in magnitude, and not further apart than 2^39.
    """
    steps = np.rint(values * 2.0**COARSE)
    rest = values - steps * 2.0**-COARSE
    offsets = np.rint(rest * 2.0**FINE)
    tails = rest - offsets * 2.0**-FINE
    top = steps.max()
    coarse = (top - steps).astype(np.int64)
    fine = (offsets + SPAN).astype(np.int64)
    groups = 2 * (coarse // PAGE) + (tails != 0)
    coarse %= PAGE
    totals = [Fraction(0)] * len(weights)
    radii = [Fraction(0)] * len(weights)
    for group in np.unique(groups).tolist():
        members = np.flatnonzero(groups == group)
        for start in range(0, len(members), SEGMENT):
            where = members[start : start + SEGMENT]
            sums = _segment(coarse[where], fine[where], tails[where] if group % 2 else None, weights, where, width)
            factor = _page_factor(group // 2, width)
            for k, part in enumerate(sums):
                totals[k] += part.value * factor
                # The factor errs by less than unit(width + 2), and e^(values - top) is below SLACK.
                radii[k] += part.radius + len(where) * SLACK * unit(width + 2)
    return Fraction(int(top), 2**COARSE), [Sum(t, r) for t, r in zip(totals, radii, strict=True)]


@lru_cache(maxsize=1024)
def _page_factor(page: int, width: int) -> Fraction:
    """e^(-16 page), rounded below unit(width + 2)."""
    if page == 0:
        return Fraction(1)
    ctx, bits = _context(), BITS * (width + 3)
    with ctx.workprec(bits):
        return Fraction(int(ctx.nint(ctx.ldexp(ctx.exp(-page * PAGE // 2**COARSE), bits))), 2**bits)


def _segment(
    coarse: Integers,
    fine: Integers,
    tails: Floats | None,
    weights: list[Weight | None],
    where: Integers,
    width: int,
) -> list[Sum]:
    """The sums over some classes of one page, which have tails or have none."""
    table = tables(width)
    lowest = 1 if tails is None else 0
    totals = [np.zeros((width + 1 - lowest, width), np.int64) for _ in weights]
    errors = [Fraction(0)] * len(weights)
    scale = 1
    for start in range(0, len(where), BLOCK):
        block = slice(start, start + BLOCK)
        left = table.coarse.take(coarse[block], axis=0)
        right = table.fine.take(fine[block], axis=1)
        bound, error = HALF, unit(width)
        if tails is not None:
            limbs = split(tails[block] * RADIX**2, None, width)
            chosen = plan(width, len(limbs))
            right = _horner(right, limbs, chosen)
            bound, error, scale = chosen.bound, error + chosen.error, chosen.scale
        for k, weight in enumerate(weights):
            if weight is None:
                factors, factor_bound, factor_error = right, bound, error
            else:
                parts = weight.limbs(where[block], width + 1)
                chosen_product = product(width, bound, len(parts), weight.error is not None)
                factors = _times(right, parts, chosen_product.passes)
                factor_bound = chosen_product.bound
                factor_error = error / 2 + chosen_product.error / scale
            _accumulate(totals[k], factors, left, factor_bound)
            errors[k] = max(errors[k], factor_error)
    each = unit(width) * unit(width) / scale
    # |T1| errs by less than unit(width), the other factor is at most SLACK.
    return [
        Sum(_fold(total) * each, len(where) * SLACK * (error + unit(width)))
        for total, error in zip(totals, errors, strict=True)
    ]


def _horner(entries: Floats, tail: list[Floats], chosen: Plan) -> Floats:
    """scale e^t T2 on limbs 0 ... width, from limbs 1 ... width of T2."""
    width, count = entries.shape
    padded = np.zeros((width + 2, count))
    padded[1:-1] = entries
    result = padded[: chosen.start].copy()
    for step in chosen.steps:
        if step.divisor > 1:
            divide(result, step.divisor)
        summed = padded[: step.length] * float(step.scale)
        for position, limb in enumerate(tail, 2):
            reach = min(len(result), step.length - position)
            if reach > 0:
                summed[position : position + reach] += result[:reach] * limb
        for _ in range(step.passes):
            carry(summed)
        result = summed
    return result[:-1]


def _times(limbs: Floats, weight: list[Floats], passes: int) -> Floats:
    """weight times limbs, on the same positions; the weight's limbs stand at 1, 2, ..."""
    count = len(limbs)
    summed = np.zeros((count + 1, limbs.shape[1]))
    for position, limb in enumerate(weight, 1):
        reach = count + 1 - position
        if reach > 0:
            summed[position:] += limbs[:reach] * limb
    for _ in range(passes):
        carry(summed)
    return summed[:-1]


def _accumulate(total: Integers, factors: Floats, left: Floats, bound: int) -> None:
    """total += factors @ left, in pieces short enough for exact sums."""
    piece = EXACT // (HALF * bound)
    for start in range(0, len(left), piece):
        part = factors[:, start : start + piece] @ left[start : start + piece]
        total += part.astype(np.int64)


def _fold(total: Integers) -> int:
    """The number in units of its last entry, entry (i, j) weighing RADIX^-(i + j)."""
    result = 0
    for row in total.tolist():
        value = 0
        for entry in row:
            value = (value << BITS) + entry
        result = (result << BITS) + value
    return result
