"""The fast engine against Arb enclosures at a higher precision, and against the oracle."""

import numpy as np
import pytest

from audit.reference.engine import kl_row
from audit.reference.oracle import row_ball

flint = pytest.importorskip("flint")


def enclosure(x, y, precision=1500):
    """KL(softmax(y) || softmax(x)) as an Arb ball."""
    before, flint.ctx.prec = flint.ctx.prec, precision
    try:
        exact = [flint.arb(float(v)) for v in x], [flint.arb(float(v)) for v in y]
        s_x = sum((v.exp() for v in exact[0] if v.is_finite()), flint.arb(0))
        pairs = [(a, b, b.exp()) for a, b in zip(*exact, strict=True) if b.is_finite()]
        s_y = sum((e for *_, e in pairs), flint.arb(0))
        return sum((e * (b - a) for a, b, e in pairs), flint.arb(0)) / s_y + s_x.log() - s_y.log()
    finally:
        flint.ctx.prec = before


def contains(ball, exact) -> bool:
    """Whether the ball holds the whole enclosure, whose ends Arb rounds to its current precision."""
    ctx = ball.value.context
    before, flint.ctx.prec = flint.ctx.prec, 1500
    try:
        ends = exact.lower().man_exp(), exact.upper().man_exp()
    finally:
        flint.ctx.prec = before
    with ctx.workprec(4000):
        low, high = (ctx.ldexp(int(m), int(e)) for m, e in ends)
        return bool(ball.value - ball.radius <= low and high <= ball.value + ball.radius)


ROUND = {"float16": np.float16, "float32": np.float32, "float64": np.float64}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 300.0])
@pytest.mark.parametrize("dtype", ROUND)
def test_the_ball_contains_arbs_enclosure(dtype: str, scale: float) -> None:
    rng = np.random.default_rng(5)
    x, y = ((scale * rng.standard_normal(2500)).astype(ROUND[dtype]).astype(float) for _ in range(2))
    ball = kl_row(x, y, 50)
    assert contains(ball, enclosure(x, y))
    assert ball.radius <= abs(ball.value) * ball.value.context.mpf(10) ** -50


def test_the_engines_agree() -> None:
    x, y = np.random.default_rng(6).standard_normal((2, 600))
    fast, slow = kl_row(x, y, 50), row_ball(x, y, "logits", "logits", 400)
    assert abs(fast.value - slow.value) <= fast.radius + slow.radius
