"""Sums of weighted exponentials over a long row, in exact fixed point on numpy, with a proven error.

An argument is cut without rounding into

    x = top - i 2^-10 - g 2^-18 + l 2^-31 + t,    0 <= g < 256,    |t| <= 2^-32,

so that sum w e^(x - top) = sum over g of T0[g] sum over classes of that g of T1[i] (w T2[l] e^t), with three tables.
The bracket is computed class by class on limbs, by Horner's rule where t is not 0; the sum over a group's classes is
the matrix product of the limbs. Both are exact but for what is dropped below the last limb, which is relative to
e^t T2, so that a class errs in proportion to its own weight. docs/reference-engine.md has the proof.
"""

from __future__ import annotations

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
DEPTHS = 3


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

    At most MOST values, finite and at most LARGEST in magnitude; `width` is 3 or more.
    """
    steps = np.rint(values * 2.0**GROUP)
    tails = (values - steps * 2.0**-GROUP) * 2.0**FINE
    fine = np.rint(tails)
    tails -= fine
    top = steps.max()
    below = (top - steps).astype(np.int64)
    keys = below & (GROUPS - 1)
    keys += (_depths(tails) + DEPTHS * (below >> PAGE_BITS)) << GROUP_BITS
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    keys = keys[order]
    runs = np.arange((int(keys[-1]) >> GROUP_BITS) + 2)
    starts = np.searchsorted(keys, runs << GROUP_BITS).tolist()
    totals = [Sum(Fraction(0), Fraction(0)) for _ in weights]
    for run, (start, stop) in enumerate(zip(starts, starts[1:], strict=False)):
        if start == stop:
            continue
        members = order[start:stop]
        page, depth = divmod(run, DEPTHS)
        sums = _run_sums(
            _Run(
                keys[start:stop] & (GROUPS - 1),
                (below[members] & ((1 << PAGE_BITS) - 1)) >> GROUP_BITS,
                (fine[members] + SPAN).astype(np.int64),
                tails[members] if depth else None,
                [np.take(w.limbs, members, axis=1) for w in weights],
            ),
            weights,
            width,
        )
        factor = page_factor(page, width)
        # The factor errs by less than unit(width + 2), and what it multiplies is at most SLACK times the weight.
        totals = [
            Sum(total.value + factor * s.value, total.radius + factor * s.radius + w.total * SLACK * unit(width + 2))
            for total, s, w in zip(totals, sums, weights, strict=True)
        ]
    return Fraction(int(top), 2**GROUP), totals


def _depths(tails: Floats) -> Integers:
    """0 for tails that are 0, 1 for multiples of 2^-66, which two limbs hold, else 2."""
    if not any_nonzero(tails):
        return np.zeros(len(tails), np.int64)
    scaled = tails * (RADIX**3 / 2.0**FINE)
    deep = scaled != np.rint(scaled)
    tailed = tails != 0
    # A run of its own is worth it for the many without a tail, and for the few with a long one.
    if 2 * np.count_nonzero(tailed) > len(tails):
        tailed[:] = True
    return np.add(tailed, deep, dtype=np.int64)


@dataclass(frozen=True)
class _Run:
    """Classes of one page in the order of their groups: indices into the tables, tails in 2^-31, limbs of weights."""

    groups: Integers
    coarse: Integers
    fine: Integers
    tails: Floats | None
    weights: list[Floats]


class _Space:
    """The arrays that a block of classes is worked on in, two sums at a time."""

    def __init__(self, width: int) -> None:
        self.left = aligned(BLOCK, width)
        # Limbs 0 ... width + 1 of T2, the first and the last being 0.
        self.right = aligned(width + 2, BLOCK)
        self.results = aligned(2, width + 2, BLOCK)
        self.scratch = aligned(width + 2, BLOCK)
        self.spread = aligned(2, width + 2, BLOCK)
        self.products = aligned(2, width + 2, BLOCK)

    def of(self, size: int) -> _Space:
        """The same memory for fewer classes."""
        part = object.__new__(_Space)
        part.left = self.left[:size]
        for name in ("right", "results", "scratch", "spread", "products"):
            setattr(part, name, getattr(self, name)[..., :size])
        return part


# Kept: fresh memory costs more than the arithmetic.
_space = lru_cache(maxsize=1)(_Space)


def _run_sums(run: _Run, weights: list[Weights], width: int) -> list[Sum]:
    table = tables(width)
    count = len(run.coarse)
    tail = [] if run.tails is None else split(run.tails * (RADIX**2 / 2.0**FINE), None, width)[0]
    chosen = plan(width, len(tail))
    first = chosen.top
    products = [product(width, chosen.bound, w.bounds, w.first) if w.bounds else None for w in weights]
    longest = EXACT // (HALF * max([chosen.bound, *(p.bound for p in products if p)]))
    edges = _edges(run.groups, longest).tolist()
    pieces = [np.zeros((len(edges) - 1, width + 2, width)) for _ in weights]
    piece = 0
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        block = slice(start, start + size)
        space = _space(width).of(size)
        np.take(table.coarse, run.coarse[block], axis=0, out=space.left, mode="clip")
        np.take(table.fine, run.fine[block], axis=1, out=space.right[1:-1], mode="clip")
        limbs = space.right[1:-1]
        if run.tails is not None:
            limbs = _horner([limb[block] for limb in tail], run.tails[block] * 2.0**-FINE, chosen, space)
        factors = []
        for rows, needs, w, out in zip(run.weights, products, weights, space.products, strict=False):
            if needs is None:
                factors.append((first, limbs))
            else:
                _times(limbs, first, rows[:, block], w.first, needs.passes, out, space.scratch)
                factors.append((0, out))
        while piece < len(edges) - 1 and edges[piece] < start + size:
            part = slice(edges[piece] - start, edges[piece + 1] - start)
            for results, (at, factor) in zip(pieces, factors, strict=True):
                np.matmul(factor[:, part], space.left[part], out=results[piece, at : at + len(factor)])
            piece += 1
    table_groups = run.groups[edges[:-1]]
    each = unit(width) ** 2 * unit(width + 1) / chosen.scale
    values = [each * _fold(_groups_summed(part, table_groups, table.group)) for part in pieces]
    # The tables err by less than 0.51 units; what T1's error is multiplied by is at most SLACK times the weight.
    stored = SLACK * Fraction(51, 100) * unit(width)
    error = 2 * stored + chosen.error
    mass = SLACK * (values[0] + stored * weights[0].total)
    return [
        Sum(
            value,
            mass * (w.ratio * error + (needs.dropped / chosen.scale if needs else 0) + SLACK * w.missing)
            + stored * w.total,
        )
        for value, needs, w in zip(values, products, weights, strict=True)
    ]


def _edges(groups: Integers, longest: int) -> Integers:
    """Where to cut a run so that no piece crosses a group or a block or is too long for its sums to be exact."""
    count = len(groups)
    cuts = [[0, count], np.flatnonzero(np.diff(groups)) + 1, np.arange(0, count, BLOCK)]
    edges = np.unique(np.concatenate(cuts))
    if np.diff(edges).max() > longest:
        edges = np.union1d(edges, np.arange(0, count, longest))
    return edges


def _horner(tail: list[Floats], t: Floats, chosen: Plan, space: _Space) -> Floats:
    """scale e^t T2, from T2 in `space.right` and the limbs of t."""
    right = space.right[chosen.top :]
    terms = len(chosen.steps) - 1
    beyond = t * t * (1 / (terms + 2)) * (1 + t * (1 / (terms + 3)))
    factors, _ = split(t * RADIX**2, beyond * RADIX**2, chosen.steps[0].factors)
    longest = max(step.length for step in chosen.steps)
    # A row for every limb, since numpy is twice as slow where it repeats one.
    spread = [np.copyto(rows[:longest], limb) or rows for rows, limb in zip(space.spread, tail, strict=False)]
    spread += tail[len(spread) :]
    result = right
    for turn, step in enumerate(chosen.steps):
        if step.divisor > 1:
            divide(result, step.divisor)
        summed = space.results[turn % 2][: step.length]
        np.multiply(right[: step.length], float(step.scale), out=summed)
        for m, factor in enumerate(spread if turn else factors):
            add_products(result, factor, 2 + m, summed, space.scratch)
        for _ in range(step.passes):
            carry(summed, space.scratch)
        result = summed
    return np.asarray(result)


def _times(
    limbs: Floats, position: int, weights: Floats, first: int, passes: int, out: Floats, scratch: Floats
) -> None:
    """The limbs, which stand at `position`, times the weights, at `first`, into `out`."""
    start = position + first
    stop = min(start + len(limbs), len(out))
    out[:start] = 0
    np.multiply(limbs[: stop - start], weights[0], out=out[start:stop])
    out[stop:] = 0
    for m, weight in enumerate(weights[1:], 1):
        add_products(limbs, weight, start + m, out, scratch)
    for _ in range(passes):
        carry(out, scratch)


def _groups_summed(pieces: Floats, groups: Integers, table: Floats) -> Integers:
    """The sum over groups g of T0[g] times the sum of its pieces: entry (i, j) weighs RADIX^-(i + j)."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(groups)) + 1])
    sums = np.add.reduceat(pieces.astype(np.int64), starts, axis=0).transpose(1, 2, 0)
    rows, width, count = sums.shape
    limbs = np.zeros((rows + width + 1, count))
    # Three digits of every entry, the highest with its sign, add up to less than 2^27.
    for row, entries in enumerate(sums):
        for above in range(3):
            digits = entries >> BITS * above
            limbs[row + 2 - above : row + 2 - above + width] += digits if above == 2 else digits & (2**BITS - 1)
    carry(limbs, np.empty_like(limbs))
    return np.asarray((table[groups[starts]].T @ limbs.T).astype(np.int64))


def _fold(total: Integers) -> int:
    """The number in units of its last entry, entry (i, j) weighing RADIX^-(i + j)."""
    result = 0
    for row in total.tolist():
        value = 0
        for entry in row:
            value = (value << BITS) + entry
        result = (result << BITS) + value
    return result
