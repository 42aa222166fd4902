"""Sums of weighted exponentials over a long row, in exact fixed point on numpy, with a proven error.

An argument is cut without rounding into

    x = top - i 2^-10 - g 2^-18 + l 2^-31 + t,    0 <= g < 256,    |t| <= 2^-32,

so that sum w e^(x - top) = sum over g of T0[g] sum over classes of that g of T1[i] (w T2[l] e^t), with three tables.
The bracket is computed class by class on limbs, by Horner's rule where t is not 0; the sum over a group's classes is
the matrix product of the limbs. Both are exact but for what is dropped below the last limb, which is relative to
e^t T2, so that a class errs in proportion to its own weight. docs/reference-engine.md has the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

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
    any_nonzero,
    carry,
    divide,
    passes_of,
    plan,
    product,
    split,
    unit,
)
from audit.reference.tables import FINE, GROUP, GROUP_BITS, GROUPS, PAGE_BITS, SPAN, page_factor, tables

Integers = NDArray[np.int64]

# So many classes are worked on at a time.
BLOCK = 4080
# So many at most keep a group's sums of pieces within 63 bits.
MOST = 2**19
LARGEST = 2.0**34
DEPTHS = 4


@dataclass(frozen=True)
class Weights:
    """Numbers w, one a class: the sum over m of limb m times 2^(-22 (first + m)), to within `missing`.

    `limbs` gives those of the classes it is asked for, limb m within `bounds[m]`, trailing zeros left out; no bounds
    say w = 1. |w| is at most `ratio` times the class's count, and all of them add up to `total` at most.
    """

    limbs: Callable[[Integers], Sequence[Floats]]
    first: int
    bounds: tuple[int, ...]
    missing: Fraction
    ratio: Fraction
    total: Fraction

    @classmethod
    def ones(cls, count: int) -> Weights:
        return cls(lambda _: (), 0, (), Fraction(0), Fraction(1), Fraction(count))

    @classmethod
    def counts(cls, counts: Integers) -> Weights:
        total = Fraction(int(counts.sum()))
        return cls(lambda m: [counts[m].astype(np.float64)], 0, (int(counts.max()),), Fraction(0), Fraction(1), total)

    @classmethod
    def differences(cls, values: Floats, errors: Floats | None, exponent: int, limit: int) -> Weights:
        """(values + errors) / 2^exponent, at most 1/2 in magnitude; each error is at most half an ulp of its value."""
        scale = 2.0 ** (BITS - exponent)

        def cut(values: Floats, errors: Floats | None) -> tuple[list[Floats], bool]:
            return split(values * scale, None if errors is None else errors * scale, limit)

        def limbs(members: Integers) -> list[Floats]:
            taken = None if errors is None else np.take(errors, members, mode="clip")
            return cut(np.take(values, members, mode="clip"), taken)[0]

        blocks = [slice(start, start + BLOCK) for start in range(0, len(values), BLOCK)]
        cuts = [cut(values[block], None if errors is None else errors[block]) for block in blocks]
        count = max(len(rows) for rows, _ in cuts)
        missing = Fraction(0) if all(exact for _, exact in cuts) else Fraction(1, 2 ** (BITS * count))
        each = HALF if errors is None else 2 * HALF
        # In binary64 a sum of n numbers of one sign errs by less than n 2^-53 of it.
        total = SLACK * Fraction(float(np.abs(values).sum())) / Fraction(2) ** exponent
        return cls(limbs, 1, (each,) * count, missing, Fraction(1, 2), total)

    def grouped(self, group: Integers, counts: Integers) -> Weights:
        """The sums over the classes of each group, in few enough limbs to be multiplied again."""
        most = int(counts.max())
        limbs = np.zeros((len(self.bounds) + 1, len(counts)))
        for row, limb in zip(limbs[1:], self.limbs(np.arange(len(group))), strict=False):
            row[:] = np.bincount(group, limb, minlength=len(counts))
        passes, bound = passes_of(most * max(self.bounds))
        scratch = np.empty_like(limbs)
        for _ in range(passes):
            carry(limbs, scratch)
        bounds = (most + 1, *(bound,) * len(self.bounds))
        missing = most * self.missing
        return replace(self, limbs=lambda m: limbs[:, m], first=self.first - 1, bounds=bounds, missing=missing)


@dataclass(frozen=True)
class Sum:
    """An exact sum lies within `radius` of `value`."""

    value: Fraction
    radius: Fraction


def exponential_sums(values: Floats, weights: list[Weights], width: int) -> tuple[Fraction, list[Sum]]:
    """(top, sums): the sum of w e^(values - top) for each of the weights, of which the first are the counts.

    At most MOST values, finite and at most LARGEST in magnitude; `width` is 3 or more.
    """
    top = float(np.rint(values.max() * 2.0**GROUP))
    keys = np.empty(len(values), np.uint16)
    for start in range(0, len(values), 4 * BLOCK):
        block = slice(start, start + 4 * BLOCK)
        below, _, tails = _digits(values[block], top)
        keys[block] = (below & (GROUPS - 1)) + (_depths(tails) + DEPTHS * (below >> PAGE_BITS) << GROUP_BITS)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    runs = np.arange((int(keys[-1]) >> GROUP_BITS) + 2)
    starts = np.searchsorted(keys, runs << GROUP_BITS).tolist()
    totals = [Sum(Fraction(0), Fraction(0)) for _ in weights]
    for run, (start, stop) in enumerate(zip(starts, starts[1:], strict=False)):
        if start == stop:
            continue
        page, depth = divmod(run, DEPTHS)
        members, groups = order[start:stop], keys[start:stop] & np.uint16(GROUPS - 1)
        sums = _run_sums(values, top, members, groups, (0, 2, 3, width)[depth], weights, width)
        factor = page_factor(page, width)
        # The factor errs by less than unit(width + 2), and what it multiplies is at most SLACK times the weight.
        totals = [
            Sum(total.value + factor * s.value, total.radius + factor * s.radius + w.total * SLACK * unit(width + 2))
            for total, s, w in zip(totals, sums, weights, strict=True)
        ]
    return Fraction(int(top), 2**GROUP), totals


def _digits(values: Floats, top: float) -> tuple[Integers, Floats, Floats]:
    """(256 i + g, l, t 2^31) of every value, for top in 2^-18."""
    steps = np.rint(values * 2.0**GROUP)
    tails = (values - steps * 2.0**-GROUP) * 2.0**FINE
    fine = np.rint(tails)
    tails -= fine
    return (top - steps).astype(np.int64), fine, tails


def _depths(tails: Floats) -> Integers | int:
    """0 for a tail that is 0, 1 and 2 for multiples of 2^-66 and 2^-88, which two and three limbs hold, else 3."""
    if not any_nonzero(tails):
        return 0
    depths = np.zeros(len(tails), np.int64)
    for step in (2.0**FINE, RADIX**3, RADIX**4):
        scaled = tails * (step / 2.0**FINE)
        beyond = scaled != np.rint(scaled)
        # A run of its own is worth it for the many with less, and for the few with more.
        depths += beyond if 2 * np.count_nonzero(beyond) < len(tails) else 1
        if not beyond.any():
            break
    return depths


class _Space:
    """The arrays that a block of classes is worked on in."""

    def __init__(self, width: int) -> None:
        self.left = aligned(BLOCK, width)
        # Of every sum, limbs 0 ... width + 1. The first has T2 at first.
        self.sums = aligned(2, width + 2, BLOCK)
        self.results = aligned(2, width + 2, BLOCK)
        self.scratch = aligned(width + 2, BLOCK)
        self.factors = aligned(width + 2, BLOCK)

    def of(self, size: int) -> _Space:
        """The same memory for fewer classes."""
        part = object.__new__(_Space)
        part.left = self.left[:size]
        for name in ("sums", "results", "scratch", "factors"):
            setattr(part, name, getattr(self, name)[..., :size])
        return part


# Kept: fresh memory costs more than the arithmetic.
_space = lru_cache(maxsize=1)(_Space)


def _run_sums(
    values: Floats,
    top: float,
    members: Integers,
    groups: NDArray[np.uint16],
    tail_limbs: int,
    weights: list[Weights],
    width: int,
) -> list[Sum]:
    """The sums over the members, of one page, in the order of their groups, whose tails have so many limbs at most."""
    table, space = tables(width), _space(width)
    paged = bool(values.min() < values.max() - 2.0 ** (PAGE_BITS - GROUP))
    chosen = plan(width, tail_limbs)
    products = [product(width, chosen.bound, w.bounds, w.first) for w in weights]
    edges = _edges(groups, EXACT // (HALF * max(p.bound for p in products)))
    pieces = np.empty((len(edges) - 1, len(weights) * (width + 2), width))
    piece, ends = 0, edges[1:].tolist()
    for start in range(0, len(members), BLOCK):
        block = members[start : start + BLOCK]
        if len(block) < BLOCK:
            space = space.of(len(block))
        below, fine, tails = _digits(np.take(values, block, mode="clip"), top)
        if paged:
            below &= (1 << PAGE_BITS) - 1
        below >>= GROUP_BITS
        np.take(table.coarse, below, axis=0, out=space.left, mode="clip")
        limbs = space.sums[0]
        limbs[:: width + 1] = 0
        fine += SPAN
        np.take(table.fine, fine.astype(np.int64), axis=1, out=limbs[1:-1], mode="clip")
        if tail_limbs:
            _horner(limbs[chosen.top :], tails * 2.0**-FINE, tail_limbs, chosen, space)
        # The first weights last: their product takes the place of what all are products with.
        for out, needs, w in reversed([*zip(space.sums, products, weights, strict=False)]):
            if w.bounds:
                _times(limbs, chosen.top, w.limbs(block), w.first, needs.passes, out, space.scratch)
        rows = space.sums.reshape(-1, len(block))[: pieces.shape[1]]
        begin = 0
        while begin < len(block):
            end = ends[piece] - start
            np.matmul(rows[:, begin:end], space.left[begin:end], out=pieces[piece])
            begin, piece = end, piece + 1
    each = unit(width) ** 2 * unit(width + 1) / chosen.scale
    folded = _fold(_groups_summed(pieces, groups[edges[:-1]], table.group), len(weights))
    totals = [each * total for total in folded]
    # The tables err by less than 0.51 units; what T1's error is multiplied by is at most SLACK times the weight.
    stored = SLACK * Fraction(51, 100) * unit(width)
    error = 2 * stored + chosen.error
    mass = SLACK * (totals[0] + stored * weights[0].total)
    return [
        Sum(value, mass * (w.ratio * error + needs.dropped / chosen.scale + SLACK * w.missing) + stored * w.total)
        for value, needs, w in zip(totals, products, weights, strict=True)
    ]


def _edges(groups: NDArray[np.uint16], longest: int) -> Integers:
    """Where to cut a run so that no piece crosses a group or a block or is too long for its sums to be exact."""
    count = len(groups)
    cuts = [[0, count], np.flatnonzero(groups[1:] != groups[:-1]) + 1, np.arange(0, count, BLOCK)]
    edges = np.unique(np.concatenate(cuts))
    if np.diff(edges).max() > longest:
        edges = np.union1d(edges, np.arange(0, count, longest))
    return edges


def _horner(right: Floats, t: Floats, tail_limbs: int, chosen: Plan, space: _Space) -> None:
    """T2, in `right`, becomes scale e^t T2."""
    terms = len(chosen.steps) - 1
    tail = split(t * RADIX**2, None, tail_limbs)[0]
    higher = t * t * (1 / (terms + 2)) * (1 + t * (1 / (terms + 3)))
    # Its first digit is 0.
    digits = split(higher * RADIX**3, None, chosen.steps[0].factors - 1)[0]
    factors = space.factors[: max(len(tail), len(digits) + 1)]
    factors[:] = 0
    for row, limb in zip(factors, tail, strict=False):
        row[:] = limb
    for row, limb in zip(factors[1:], digits, strict=False):
        row += limb
    factors = factors[: chosen.steps[0].factors]
    result, last = right, len(chosen.steps) - 1
    for turn, step in enumerate(chosen.steps):
        if turn == 1:
            factors = space.factors[: len(tail)]
            for row, limb in zip(factors, tail, strict=True):
                row[:] = limb
        if step.divisor > 1:
            divide(result, step.divisor)
        # After the last step T2 is not needed, but for the only step, which multiplies T2 itself.
        summed = (right if turn == last and turn else space.results[turn % 2])[: step.length]
        np.multiply(right[: step.length], float(step.scale), out=summed)
        for m, factor in enumerate(factors):
            add_products(result, factor, 2 + m, summed, space.scratch)
        for _ in range(step.passes):
            carry(summed, space.scratch)
        result = summed
    if last == 0:
        right[: len(result)] = result
    right[len(result) :] = 0


def _times(
    limbs: Floats, top: int, weights: Sequence[Floats], first: int, passes: int, out: Floats, scratch: Floats
) -> None:
    """The limbs, of which those above `top` are 0, times the weights, which stand at `first`, on as many limbs.

    `out` may be where the limbs are, for one row of weights at 0.
    """
    start = top + first
    np.multiply(limbs[top : len(out) - first], weights[0], out=out[start:])
    out[:start] = 0
    for m, weight in enumerate(weights[1:], start + 1):
        add_products(limbs[top:], weight, m, out, scratch)
    for _ in range(passes):
        carry(out[max(0, start - passes) :], scratch)


def _groups_summed(pieces: Floats, groups: NDArray[np.uint16], table: Floats) -> Integers:
    """The sum over groups g of T0[g] times the sum of its pieces, of shape (T0's limbs, limbs of the sums)."""
    starts = np.concatenate([[0], np.flatnonzero(groups[1:] != groups[:-1]) + 1])
    sums = np.add.reduceat(pieces.astype(np.int64), starts, axis=0).transpose(1, 2, 0)
    rows, width, count = sums.shape
    # A row's products with limbs of T1 are in three digits, the highest with its sign, of which at most 3 width add up.
    limbs = np.zeros((rows, width + 2, count))
    limbs[:, 2:] = sums & (2**BITS - 1)
    sums >>= BITS
    limbs[:, 1:-1] += sums & (2**BITS - 1)
    sums >>= BITS
    limbs[:, :-2] += sums
    carried = limbs.transpose(1, 0, 2).copy()
    carry(carried, np.empty_like(carried))
    flat = carried.transpose(2, 1, 0).reshape(count, rows * (width + 2))
    return np.asarray((table[groups[starts]].T @ flat).astype(np.int64))


def _fold(products: Integers, sums: int) -> list[int]:
    """The numbers in units of their last entries; an entry's place is the sum of its place among T0's limbs, among the
    rows of its sum, and in its row."""
    places, rows = products.shape[0], products.shape[1] // sums
    entries = products.reshape(places, sums, rows // (places + 2), places + 2)
    results = []
    for k in range(sums):
        positions = np.add.outer(np.add.outer(np.arange(places), np.arange(entries.shape[2])), np.arange(places + 2))
        total = np.zeros(positions.max() + 1, np.int64)
        np.add.at(total, positions, entries[:, k])
        result = 0
        for entry in total.tolist():
            result = (result << BITS) + entry
        results.append(result)
    return results
