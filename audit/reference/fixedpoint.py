"""Sums of weighted exponentials over a long row, in exact fixed point on numpy, with a proven error.

An argument is cut without rounding into

    x = top - i 2^-12 + l 2^-26 + t,    |t| <= 2^-27,    so that    sum w e^(x - top) = sum T1[i] (w T2[l] e^t)

with tables T1 and T2. The bracket is computed class by class on limbs, by Horner's rule where t is not 0; the sum over
classes is the matrix product of the limbs. Both are exact but for what is dropped below the last limb, which is
relative to e^t T2, so that a class errs in proportion to its own weight. docs/reference-engine.md has the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from audit.reference.limbs import (
    BITS,
    EXACT,
    HALF,
    RADIX,
    SLACK,
    Floats,
    Plan,
    add_products,
    aligned,
    carry,
    divide,
    passes_of,
    plan,
    product,
    split,
    unit,
)
from audit.reference.tables import COARSE, FINE, PAGE, SPAN, page_factor, tables

Integers = NDArray[np.int64]

# Four pieces of 510 classes and two of 1,020: the most whose sums of products of limbs are exact are 511 and 1,023.
BLOCK = 2040
SEGMENT = 64 * BLOCK


@dataclass(frozen=True)
class Weights:
    """Numbers w, one a class: the sum over m of limbs[m] 2^(-22 (first + m)), to within `missing`. No limbs: w = 1.

    Row m of `limbs` is within `bounds[m]`; |w| is at most `ratio` times the class's count, and their sum at most `total`.
    """

    limbs: Floats
    first: int
    bounds: tuple[int, ...]
    missing: Fraction
    ratio: Fraction
    total: Fraction

    @classmethod
    def ones(cls, count: int) -> Weights:
        return cls(np.empty((0, count)), 0, (), Fraction(0), Fraction(1), Fraction(count))

    @classmethod
    def counts(cls, counts: Integers) -> Weights:
        limbs = counts.astype(np.float64)[None]
        return cls(limbs, 0, (int(counts.max()),), Fraction(0), Fraction(1), Fraction(int(counts.sum())))

    @classmethod
    def differences(cls, values: Floats, errors: Floats | None, exponent: int, limit: int) -> Weights:
        """(values + errors) / 2^exponent, at most 1/2 in magnitude; each error is at most half an ulp of its value."""
        scale = 2.0 ** (BITS - exponent)
        limbs, exact = split(values * scale, None if errors is None else errors * scale, limit)
        each = HALF if errors is None else 2 * HALF
        missing = Fraction(0) if exact else Fraction(1, 2 ** (BITS * len(limbs)))
        # In binary64 a sum of n numbers of one sign errs by less than n 2^-53 of it.
        total = SLACK * Fraction(float(np.abs(values).sum())) / Fraction(2) ** exponent
        return cls(np.array(limbs), 1, (each,) * len(limbs), missing, Fraction(1, 2), total)

    def grouped(self, group: Integers, counts: Integers) -> Weights:
        """The sums over the classes of each group."""
        most = int(counts.max())
        limbs = np.zeros((len(self.limbs) + 1, len(counts)))
        for summed, row in zip(limbs[1:], self.limbs, strict=True):
            summed[:] = np.bincount(group, row, minlength=len(counts))
        passes, bound = passes_of(most * max(self.bounds))
        scratch = np.empty_like(limbs)
        for _ in range(passes):
            carry(limbs, scratch)
        bounds = (most + 1, *(bound,) * len(self.limbs))
        return replace(self, limbs=limbs, first=self.first - 1, bounds=bounds, missing=most * self.missing)

    def of(self, members: slice | Integers) -> Weights:
        return replace(self, limbs=self.limbs[:, members])


@dataclass(frozen=True)
class Sum:
    """An exact sum lies within `radius` of `value`."""

    value: Fraction
    radius: Fraction


def exponential_sums(values: Floats, weights: list[Weights], width: int) -> tuple[Fraction, list[Sum]]:
    """(top, sums): the sum of w e^(values - top) for each of the weights, of which the first are the counts.

    `values` are finite and at most 2^39 in magnitude.
    """
    steps = np.rint(values * 2.0**COARSE)
    tails = (values - steps * 2.0**-COARSE) * 2.0**FINE
    offsets = np.rint(tails)
    tails -= offsets
    top = steps.max()
    coarse = (top - steps).astype(np.int64)
    fine = (offsets + SPAN).astype(np.int64)
    totals = [Sum(Fraction(0), Fraction(0)) for _ in weights]
    for page, tailed, members in _groups(coarse, tails):
        sums = _group_sums(
            coarse[members] - page * PAGE,
            fine[members],
            tails[members] if tailed else None,
            [w.of(members) for w in weights],
            width,
        )
        factor = page_factor(page, width)
        # The factor errs by less than unit(width + 2), and what it multiplies is at most SLACK times the weight.
        totals = [
            Sum(total.value + factor * s.value, total.radius + factor * s.radius + w.total * SLACK * unit(width + 2))
            for total, s, w in zip(totals, sums, weights, strict=True)
        ]
    return Fraction(int(top), 2**COARSE), totals


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


class _Space:
    """The arrays that a block of classes is worked on in."""

    def __init__(self, width: int) -> None:
        self.left = aligned(BLOCK, width)
        # Limbs 0 ... width + 1 of T2, the first and the last being 0.
        self.right = aligned(width + 2, BLOCK)
        self.results = aligned(2, width + 2, BLOCK)
        self.scratch = aligned(width + 2, BLOCK)
        self.spread = aligned(width, width + 2, BLOCK)
        self.product = aligned(width + 2, BLOCK)

    def of(self, size: int) -> _Space:
        """The same memory for fewer classes."""
        part = object.__new__(_Space)
        part.left = self.left[:size]
        for name in ("right", "results", "scratch", "spread", "product"):
            setattr(part, name, getattr(self, name)[..., :size])
        return part


def _group_sums(
    coarse: Integers, fine: Integers, tails: Floats | None, weights: list[Weights], width: int
) -> list[Sum]:
    table = tables(width)
    count = len(coarse)
    exact = np.zeros((len(weights), width + 2, width), np.int64)
    totals = [0] * len(weights)
    plans: set[Plan] = set()
    space = _Space(width)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        block = slice(start, start + size)
        if size < BLOCK:
            space = space.of(size)
        np.take(table.coarse, coarse[block], axis=0, out=space.left, mode="clip")
        np.take(table.fine, fine[block], axis=1, out=space.right[1:-1], mode="clip")
        limbs, first, chosen = space.right[1:-1], 1, plan(width, 0)
        if tails is not None:
            tail, _ = split(tails[block] * (RADIX**2 / 2.0**FINE), None, width)
            chosen = plan(width, len(tail))
            limbs, first = _horner(tail, chosen, space), 0
        plans.add(chosen)
        for k, weight in enumerate(weights):
            if not weight.bounds:
                _add_matrix(limbs, space.left, chosen.bound, exact[k, first : first + len(limbs)])
                continue
            needs = product(width, chosen.bound, weight.bounds, weight.first)
            _times(limbs, first, weight.limbs[:, block], weight.first, needs.passes, space)
            _add_matrix(space.product, space.left, needs.bound, exact[k])
        if start % SEGMENT == SEGMENT - BLOCK or start + BLOCK >= count:
            totals = [total + _fold(part) for total, part in zip(totals, exact, strict=True)]
            exact[:] = 0
    scale = chosen.scale
    values = [total * unit(width) * unit(width + 1) / scale for total in totals]
    # Both tables err by less than 0.51 units; what T1's error is multiplied by is at most SLACK times the weight.
    stored = SLACK * Fraction(51, 100) * unit(width)
    error = stored + max(p.error for p in plans)
    mass = SLACK * (values[0] + stored * weights[0].total)
    radii = []
    for w in weights:
        dropped = max(
            (product(width, p.bound, w.bounds, w.first).dropped for p in plans if w.bounds), default=Fraction(0)
        )
        radii.append(mass * (w.ratio * error + dropped / scale + SLACK * w.missing) + stored * w.total)
    return [Sum(value, radius) for value, radius in zip(values, radii, strict=True)]


def _horner(tail: list[Floats], chosen: Plan, space: _Space) -> Floats:
    """scale e^t T2 on all limbs, from T2 in `space.right`."""
    longest = max(step.length for step in chosen.steps)
    for spread, limb in zip(space.spread, tail, strict=False):
        spread[:longest] = limb
    result = space.results[0][: chosen.start]
    np.copyto(result, space.right[: chosen.start])
    for turn, step in enumerate(chosen.steps, 1):
        if step.divisor > 1:
            divide(result, step.divisor)
        summed = space.results[turn % 2][: step.length]
        np.multiply(space.right[: step.length], float(step.scale), out=summed)
        for m in range(len(tail)):
            add_products(result, space.spread[m], 2 + m, summed, space.scratch)
        for _ in range(step.passes):
            carry(summed, space.scratch)
        result = summed
    return np.asarray(result)


def _times(limbs: Floats, position: int, weights: Floats, first: int, passes: int, space: _Space) -> None:
    """The limbs, which stand at `position`, times the weights, at `first`, into `space.product`."""
    out = space.product
    start = position + first
    stop = min(start + len(limbs), len(out))
    out[:start] = 0
    np.multiply(limbs[: stop - start], weights[0], out=out[start:stop])
    out[stop:] = 0
    for m, weight in enumerate(weights[1:], 1):
        add_products(limbs, weight[None], start + m, out, space.scratch)
    for _ in range(passes):
        carry(out, space.scratch)


def _add_matrix(rows: Floats, left: Floats, bound: int, total: Integers) -> None:
    """Adds the matrix product over the classes, in pieces short enough for every sum to be exact."""
    piece = EXACT // (bound * HALF)
    piece = BLOCK if piece >= BLOCK else BLOCK // 2 if piece >= BLOCK // 2 else BLOCK // 4
    for start in range(0, len(left), piece):
        total += (rows[:, start : start + piece] @ left[start : start + piece]).astype(np.int64)


def _fold(total: Integers) -> int:
    """The number in units of its last entry, entry (i, j) weighing RADIX^-(i + j)."""
    result = 0
    for row in total.tolist():
        value = 0
        for entry in row:
            value = (value << BITS) + entry
        result = (result << BITS) + value
    return result
