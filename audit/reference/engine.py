"""The fast reference: KL of one pair of long rows of logits, certified, on numpy.

    KL = (sum e^(y - a) (y - x)) / S_y + log(S_x / S_y) + b - a,    S_y = sum e^(y - a),    S_x = sum e^(x - b)

for any a, b. The three sums come from `fixedpoint`, each with a radius; the last operations are balls in mpmath. The
number of limbs starts at what the digits need and grows until the radius meets them. docs/reference-engine.md has the
proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np

from audit.reference.fixedpoint import LARGEST, MOST, Integers, Weights, exponential_sums
from audit.reference.limbs import BITS, Floats, any_nonzero
from audit.reference.oracle import LOCK, Ball, context

# Below, the oracle is as fast.
SMALLEST = 512
MOST_LIMBS = 84
# Limbs that cancellation may take beyond what the digits need: then the oracle, whose form does not cancel, is faster.
CANCELLING = 16


def kl_row(input: Floats, target: Floats, digits: int) -> Ball | None:
    """KL(target || input) of two rows of logits (1-D, finite or -inf), to `digits` significant digits.

    The radius is at most 10^-digits of the value, and 0 where the rows are equal up to a constant. None where this
    engine declines: logits beyond 2^39, infinite KL, cancellation beyond CANCELLING limbs of 25 bits.
    """
    x, y, x_of_y = input, target, input
    if min(input.min(), target.min()) == -np.inf:
        has_mass = target != -np.inf
        x, y, x_of_y = input[input != -np.inf], target[has_mass], input[has_mass]
    if len(x) > MOST or max(x.max(), -x.min(), -x_of_y.min(), y.max(), -y.min()) > LARGEST:
        return None
    differences = _differences(y, x_of_y)
    if len(x) == len(y) and all(part.min() == part.max() for part in differences):
        return Ball(context().zero, context().zero)
    limbs = max(3, math.ceil((digits * math.log2(10) + 8) / BITS))
    most = min(MOST_LIMBS, limbs + CANCELLING)
    ctx = context()
    while limbs <= most:
        with LOCK, ctx.workprec(64), _short_buffer():
            ball = _ball(x, y, differences, limbs)
            wanted = abs(ball.value) * ctx.mpf(10) ** -digits
            if ball.radius <= wanted * (1 - ctx.mpf(2) ** -32):
                return ball
            if abs(ball.value) > 4 * ball.radius:
                limbs += max(1, math.ceil((float(ctx.log(ball.radius / wanted, 2)) + 2) / BITS))
            else:
                limbs = most if limbs < most < 2 * limbs else 2 * limbs
    return None


@contextmanager
def _short_buffer() -> Iterator[None]:
    """numpy first copies what it broadcasts over rows shorter than its buffer; the engine's rows have BLOCK numbers."""
    with np.errstate(all="ignore"):  # the square of a tiny tail may vanish
        before = np.setbufsize(2048)
        try:
            yield
        finally:
            np.setbufsize(before)


def _differences(y: Floats, x: Floats) -> list[Floats]:
    """y - x as the exact sum of two arrays (TwoSum, Knuth), the second at most half an ulp of the first; of one where
    the second is 0."""
    difference = y - x
    virtual = difference - y
    error = difference - virtual
    np.subtract(y, error, out=error)
    virtual += x
    error -= virtual
    return [difference, error] if any_nonzero(error) else [difference]


def _ball(x: Floats, y: Floats, differences: list[Floats], limbs: int) -> Ball:
    """The value on so many limbs."""
    bits = BITS * limbs
    reach = 0.6932 * (bits + math.log2(len(x)))
    # Classes this far below the largest weigh less than 2^-bits together.
    lost = Fraction(1, 2**bits)
    lost_difference = Fraction(0)
    if x.min() < x.max() - reach:
        x = x[x >= x.max() - reach]
    kept = y >= y.max() - reach
    if not kept.all():
        # log2 of e^(y - max) |y - x|, rounded upwards.
        sizes = 1.4426 * (y[~kept] - y.max()) + np.log2(np.maximum(np.abs(differences[0][~kept]), 1e-300))
        lost_difference = len(y) * Fraction(2) ** max(math.ceil(sizes.max()) + 2, -2 * bits)
        y, differences = y[kept], [part[kept] for part in differences]
    largest = max(differences[0].max(), -differences[0].min())
    exponent = max(math.frexp(largest)[1], -400) + 1
    weights = Weights.differences(differences, exponent, limbs + 1)
    top_x, (sum_x,) = _sums(x, [], limbs)
    top_y, (sum_y, sum_d) = _sums(y, [weights], limbs)
    factor = Fraction(2) ** exponent
    return _divergence(
        Ball(sum_d.value * factor, sum_d.radius * factor + lost_difference),
        Ball(sum_y.value, sum_y.radius + lost),
        Ball(sum_x.value, sum_x.radius + lost),
        top_x - top_y,
        bits + 64,
    )


def _sums(values: Floats, weights: list[Weights], limbs: int) -> tuple[Fraction, list[Ball]]:
    """`exponential_sums` of ones and the weights, over the distinct values where those are few."""
    group = _distinct(values)
    if group is None:
        return exponential_sums(values, [Weights.ones(len(values)), *weights], limbs)
    counts = np.bincount(group)
    numbers, there = np.empty(len(counts)), counts > 0
    numbers[group] = values
    place = (np.cumsum(there) - 1)[group]
    grouped = [w.grouped(place, counts[there]) for w in weights]
    return exponential_sums(numbers[there], [Weights.counts(counts[there]), *grouped], limbs)


def _distinct(values: Floats) -> Integers | None:
    """A number below 2^17 for each value, the same for the same; None unless the values have few significant bits.

    Every row of float16 or bfloat16 has such numbers: sign, exponent and the bits of the mantissa that are used.
    """
    bits = values.view(np.int64)
    unused = int(np.bitwise_or.reduce(bits)) | 1 << 52
    shift = (unused & -unused).bit_length() - 1
    if shift < 42:
        return None
    magnitudes = (bits >> shift) & (1 << 63 - shift) - 1
    # 0 goes before the smallest of the others.
    lowest = int(((magnitudes - 1) & (1 << 63 - shift) - 1).min())
    magnitudes -= lowest
    np.maximum(magnitudes, 0, out=magnitudes)
    span = int(magnitudes.max()) + 1
    return magnitudes - span * (bits >> 63) if span <= 2**16 else None


def _divergence(d: Ball, s_y: Ball, s_x: Ball, shift: Fraction, precision: int) -> Ball:
    """d / s_y + log(s_x / s_y) + shift. Each mpmath operation errs by at most 4 units of 2^-precision, relative."""
    ctx = context()

    def mpf(number: Fraction) -> Any:
        return ctx.mpf(number.numerator) / number.denominator

    with ctx.workprec(precision):
        quotient = mpf(d.value) / mpf(s_y.value)
        logarithm = ctx.log(mpf(s_x.value) / mpf(s_y.value))
        value = quotient + logarithm + mpf(shift)
        relative_y = s_y.radius / (s_y.value - s_y.radius)
        relative_x = s_x.radius / (s_x.value - s_x.radius)
        lost = d.radius / (s_y.value - s_y.radius) + abs(d.value) / s_y.value * relative_y + relative_x + relative_y
        rounding = ctx.ldexp(64 * (1 + abs(quotient) + abs(logarithm) + abs(mpf(shift))), -precision)
        return Ball(value, (mpf(lost) + rounding) * (1 + ctx.ldexp(1, -32)))
