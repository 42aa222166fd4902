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
# Limbs are kept below 4 HALF, so that sums of PIECE products of limbs, one of them within HALF, are exact.
LOOSE = 4 * HALF
PIECE = EXACT // (LOOSE * HALF)
BLOCK = 2048
SEGMENT = 2**17
SPAN = 2 ** (FINE - COARSE - 1)
TAIL = Fraction(1, 2 ** (FINE + 1))
# A geometric series of limbs, and e^t, are at most this.
SLACK = Fraction(101, 100)


def unit(limb: int) -> Fraction:
    return Fraction(4, 2 ** (BITS * limb))


def at_most(bound: int, limit: int = EXACT) -> int:
    if bound > limit:
        raise ArithmeticError(f"an integer may reach {bound}, above {limit}")
    return bound


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
    while bound > LOOSE:
        passes, bound = passes + 1, carried(bound)
    return passes, bound


@lru_cache(maxsize=256)
def plan(width: int, tail_limbs: int) -> Plan:
    """The plan for tables of `width` limbs and tails of `tail_limbs` limbs, which stand at positions 2, 3, ..."""
    budget = 4 * unit(width)
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
    return Plan(start, tuple(steps), scale, bound, error)


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
    return Product(passes, after, dropped + beyond)


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
    return np.asarray(limbs - HALF)


@dataclass(frozen=True)
class Weight:
    """Weights values + error, at most 2^(exponent - 1) in magnitude; |error| is at most an ulp of values."""

    values: Floats
    error: Floats | None
    exponent: int

    def limbs(self, block: slice, limit: int) -> list[Floats]:
        """Those of weight / 2^exponent, at positions 1, 2, ..."""
        scale = 2.0 ** (BITS - self.exponent)
        error = None if self.error is None else self.error[block] * scale
        return split(self.values[block] * scale, error, limit)


@dataclass(frozen=True)
class Sum:
    """An exact sum lies within `radius` of `value`."""

    value: Fraction
    radius: Fraction


def exponential_sums(values: Floats, weights: list[Weight | None], width: int) -> tuple[Fraction, list[Sum]]:
    """(top, sums): one sum of w e^(values - top) / 2^exponent for each weight, None being w = 1, exponent = 0.

    `values` are finite and at most 2^39 in magnitude.
    """
    steps = np.rint(values * 2.0**COARSE)
    rest = values - steps * 2.0**-COARSE
    offsets = np.rint(rest * 2.0**FINE)
    rest -= offsets * 2.0**-FINE
    top = steps.max()
    coarse = (top - steps).astype(np.int64)
    fine = (offsets + SPAN).astype(np.int64)
    totals = [Sum(Fraction(0), Fraction(0)) for _ in weights]
    for page, tailed, members in _groups(coarse, rest):
        factor = _page_factor(page, width)
        part = [None if w is None else Weight(w.values[members], _take(w.error, members), w.exponent) for w in weights]
        tails = rest[members] if tailed else None
        sums = _group_sums(coarse[members] - page * PAGE, fine[members], tails, part, width)
        # The factor errs by less than unit(width + 2), and what it multiplies is at most SLACK a class.
        rounding = SLACK * unit(width + 2) * len(values)
        totals = [
            Sum(total.value + factor * s.value, total.radius + s.radius + rounding)
            for total, s in zip(totals, sums, strict=True)
        ]
    return Fraction(int(top), 2**COARSE), totals


def _take(array: Floats | None, members: slice | Integers) -> Floats | None:
    return None if array is None else array[members]


def _groups(coarse: Integers, tails: Floats) -> Iterator[tuple[int, bool, slice | Integers]]:
    """(page, whether they may have tails, members): classes of one page, with tails apart where they are few."""
    tailed = tails != 0
    count = np.count_nonzero(tailed)
    pages = coarse // PAGE if coarse.max() >= PAGE else None
    if 2 * count > len(tails):
        tailed[:] = True
    if pages is None and (tailed[0] == tailed).all():
        yield 0, bool(tailed[0]), slice(None)
        return
    for page in [0] if pages is None else np.unique(pages).tolist():
        for kind in (False, True):
            members = np.flatnonzero((tailed == kind) if pages is None else (pages == page) & (tailed == kind))
            if members.size:
                yield page, kind, members


@lru_cache(maxsize=1024)
def _page_factor(page: int, width: int) -> Fraction:
    """e^(-16 page), rounded below unit(width + 2)."""
    if page == 0:
        return Fraction(1)
    ctx, bits = _context(), BITS * (width + 3)
    with ctx.workprec(bits):
        return Fraction(int(ctx.nint(ctx.ldexp(ctx.exp(-page * (PAGE >> COARSE)), bits))), 2**bits)


class _Space:
    """The arrays a block of classes is worked on in: made once, since fresh memory costs more than the arithmetic."""

    def __init__(self, width: int, size: int, sums: int) -> None:
        self.left = np.empty((size, width))
        # Limbs 0 ... width + 1 of T2, the first and the last being 0.
        self.right = np.zeros((width + 2, size))
        self.results = np.empty((2, width + 2, size))
        self.scratch = np.empty((width + 2, size))
        self.factors = np.empty((sums, width + 2, size))


def _group_sums(
    coarse: Integers, fine: Integers, tails: Floats | None, weights: list[Weight | None], width: int
) -> list[Sum]:
    table = tables(width)
    count = len(coarse)
    totals = [0] * len(weights)
    errors = [Fraction(0)] * len(weights)
    scale = 1
    space = _Space(width, min(BLOCK, count), len(weights))
    exact = np.zeros((len(weights) * (width + 2), width), np.int64)
    for start in range(0, count, BLOCK):
        block = slice(start, start + BLOCK)
        size = min(BLOCK, count - start)
        if size < space.left.shape[0]:
            space = _Space(width, size, len(weights))
        np.take(table.coarse, coarse[block], axis=0, out=space.left, mode="clip")
        np.take(table.fine, fine[block], axis=1, out=space.right[1:-1], mode="clip")
        limbs: Floats = space.right
        bound, error = HALF, unit(width)
        if tails is not None:
            tail = split(tails[block] * RADIX**2, None, width)
            chosen = plan(width, len(tail))
            limbs = _horner(tail, chosen, space)
            bound, error, scale = chosen.bound, error + chosen.error, chosen.scale
        for k, weight in enumerate(weights):
            if weight is None:
                np.copyto(space.factors[k][: len(limbs)], limbs)
                space.factors[k][len(limbs) :] = 0
                errors[k] = max(errors[k], error)
            else:
                parts = weight.limbs(block, width + 1)
                chosen_product = product(width, bound, len(parts), weight.error is not None)
                _times(limbs, parts, chosen_product.passes, space.factors[k], space.scratch)
                errors[k] = max(errors[k], error / 2 + chosen_product.error / scale)
        exact += _products(space.factors, space.left)
        if start % SEGMENT == SEGMENT - BLOCK or start + BLOCK >= count:
            for k, part in enumerate(exact.reshape(len(weights), width + 2, width)):
                totals[k] += _fold(part)
            exact[:] = 0
    each = unit(width) * unit(width + 1) / scale
    # |T1| errs by less than unit(width), and it and the other factor are at most SLACK.
    return [
        Sum(total * each, count * SLACK * (error + unit(width))) for total, error in zip(totals, errors, strict=True)
    ]


def _horner(tail: list[Floats], chosen: Plan, space: _Space) -> Floats:
    """scale e^t T2 on all limbs, from T2 in `space.right`."""
    result = space.results[0][: chosen.start]
    np.copyto(result, space.right[: chosen.start])
    for turn, step in enumerate(chosen.steps, 1):
        if step.divisor > 1:
            divide(result, step.divisor)
        summed = space.results[turn % 2][: step.length]
        np.multiply(space.right[: step.length], float(step.scale), out=summed)
        _add_products(result, tail, 2, summed, space.scratch)
        for _ in range(step.passes):
            carry(summed, space.scratch)
        result = summed
    return np.asarray(result)


def _times(limbs: Floats, weight: list[Floats], passes: int, out: Floats, scratch: Floats) -> None:
    """weight times limbs, on the same positions; the weight's limbs stand at 1, 2, ..."""
    reach = min(len(limbs), len(out) - 1)
    out[0] = 0
    np.multiply(limbs[:reach], weight[0], out=out[1 : 1 + reach])
    out[1 + reach :] = 0
    _add_products(limbs, weight[1:], 2, out, scratch)
    for _ in range(passes):
        carry(out, scratch)


def _add_products(limbs: Floats, factors: list[Floats], position: int, total: Floats, scratch: Floats) -> None:
    """total += limbs times the factors, which stand at `position` and below; what falls below `total` is dropped."""
    for first, factor in enumerate(factors, position):
        reach = min(len(limbs), len(total) - first)
        if reach > 0:
            np.multiply(limbs[:reach], factor, out=scratch[:reach])
            total[first : first + reach] += scratch[:reach]


def _products(factors: Floats, left: Floats) -> Integers:
    """The matrix product of the limbs over the classes, in pieces short enough for every sum to be exact."""
    size, width = left.shape
    rows = factors.reshape(-1, size)
    whole = size - size % PIECE
    pieces = rows[:, :whole].reshape(len(rows), -1, PIECE).transpose(1, 0, 2)
    parts = (pieces @ left[:whole].reshape(-1, PIECE, width)).astype(np.int64).sum(axis=0)
    rest = rows[:, whole:] @ left[whole:]
    return np.asarray(parts + rest.astype(np.int64))


def _fold(total: Integers) -> int:
    """The number in units of its last entry, entry (i, j) weighing RADIX^-(i + j)."""
    result = 0
    for row in total.tolist():
        value = 0
        for entry in row:
            value = (value << BITS) + entry
        result = (result << BITS) + value
    return result
