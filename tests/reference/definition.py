"""Pairs of rows that two distributions can be given as, and KL by its definition in two other arithmetics."""

import decimal
import math
from decimal import Decimal

import mpmath
import numpy as np
import pytest
from hypothesis import strategies as st

from audit.reference.values import TENSOR_KINDS

INF = math.inf
TINY = 5e-324
PROBS = {"input_kind": "probs", "target_kind": "probs"}
CANCELLING = ([0.25, 1.0], [0.5, 0.25])  # input, target: (1/2) log 2 + (1/4) log (1/4) = 0, as probabilities
WIDE = mpmath.MPContext()
WIDE.prec = 2_000


def relative_difference(a, b):
    a, b = WIDE.mpf(a), WIDE.mpf(b)
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0


# Rows of any kind that two distributions can be given as, the target first.


def _scaled(number, scale):
    return number.map(lambda v: v * scale)


@st.composite
def logit_pairs(draw):
    n = draw(st.integers(1, 50))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0, 1e3, 1e5, 1e300]))
    unit = st.floats(-1, 1, allow_subnormal=False)
    y = np.array(draw(st.lists(_scaled(unit, scale), min_size=n, max_size=n)))
    how = draw(st.sampled_from(["apart", "near", "offset", "peaked", "subnormal", "masked"]))
    x = np.array(draw(st.lists(_scaled(unit, scale), min_size=n, max_size=n)))
    if how == "near":
        x = y + y * draw(st.sampled_from([1e-15, 1e-9])) * np.sign(x)
    elif how == "offset":
        x = y + draw(st.sampled_from([1e-3, 7.0, 1e4]))
    elif how == "peaked":
        place = draw(st.integers(0, n - 1))
        for row in (x, y):
            row[place] = row.max() + draw(st.sampled_from([40.0, 460.0, 920.0, 2_000.0]))
    elif how == "subnormal":
        x, y = np.arange(n) * TINY, np.arange(n)[::-1] * 3 * TINY
    elif how == "masked":
        mask = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        mask[draw(st.integers(0, n - 1))] = False
        y[mask] = -INF
        if draw(st.booleans()):
            x[mask] = -INF
    return x, y


@st.composite
def pairs(draw):
    """(input, target, input_kind, target_kind); what is not logits is normalised in binary64, or not at all."""
    kinds = draw(st.sampled_from([(a, b) for a in TENSOR_KINDS for b in TENSOR_KINDS]))
    rows = draw(logit_pairs())
    factor = draw(st.sampled_from([1.0, 0.5, 3.0]))
    made = []
    for row, kind in zip(rows, kinds, strict=True):
        if kind == "logits":
            made.append(row)
        else:
            p = np.exp(np.maximum(row - row.max(), -1e308))
            p = p / p.sum() * factor
            with np.errstate(divide="ignore"):
                made.append(p if kind == "probs" else np.log(p))
    return (*made, *kinds)


# The definition, term by term, in two other arithmetics.


def definition(log, exp, number, input, target, input_kind, target_kind):
    """Sum of p (log p - log q) over p > 0, for an arithmetic's log, exp and conversion of floats."""

    def logs(row, kind):
        row = row.tolist()
        if kind != "logits":
            return [None if v == (0 if kind == "probs" else -INF) else v for v in row]
        top = number(max(row))
        shifted = [None if v == -INF else number(v) - top for v in row]
        normaliser = log(sum(exp(v) for v in shifted if v is not None))
        return [None if v is None else v - normaliser for v in shifted]

    def as_log(v, kind):
        return v if kind == "logits" else number(v) if kind == "log_probs" else log(number(v))

    total = number(0.0)
    for p, q in zip(logs(target, target_kind), logs(input, input_kind), strict=True):
        if p is None:
            continue
        if q is None:
            return None
        weight = number(p) if target_kind == "probs" else exp(as_log(p, target_kind))
        total += weight * (as_log(p, target_kind) - as_log(q, input_kind))
    return total


def in_arb(pair, bits):
    """An enclosure; None for +inf."""
    flint = pytest.importorskip("flint")
    with flint.ctx.workprec(bits):
        return definition(lambda v: v.log(), lambda v: v.exp(), flint.arb, *pair)


def in_decimal(pair, digits):
    with decimal.localcontext(decimal.Context(prec=digits, Emin=-(10**17), Emax=10**17)):
        return definition(Decimal.ln, Decimal.exp, Decimal, *pair)


def arb(number):
    import flint

    sign, man, exponent, _ = number._mpf_
    return flint.arb((-int(man) if sign else int(man), int(exponent)))


def distance(enclosure, number, bits):
    """The least and the greatest distance that the enclosed number can have from `number`, as arbs."""
    import flint

    with flint.ctx.workprec(bits):
        gap = enclosure - arb(number)
        return gap.abs_lower(), gap.abs_upper()
