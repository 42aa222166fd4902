"""Bounds of token estimators: no sound way of computing one is outside, and the exact values are right."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import mpmath
import numpy as np
import pytest
import torch

from audit.base.formats import FORMATS
from audit.base.kinds import TOKENS
from audit.judge.limits import token_bound
from audit.paths import registered
from audit.reference.quantities import quantity_references

PATHS = {path.name: path for path in registered() if path.input_kind == TOKENS}


def inside(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The difference as a fused kernel holds it."""
    return x - y if x.dtype == torch.float64 else x.float() - y.float()


# The same formulas in their other order, and fused: float32 inside, the result in the tensors' dtype.
OTHERS = {
    "token_k3": [
        lambda x, y: (x - y).exp() - 1 - (x - y),
        lambda x, y: torch.expm1(inside(x, y)).sub(inside(x, y)).to(x.dtype),
        lambda x, y: (x.double() - y.double()).expm1().sub(x.double() - y.double()).to(x.dtype),
    ],
    "token_k3_verl": [lambda x, y: (r := (x - y).clamp(-20, 20)).expm1().sub(r).clamp(-10, 10)],
    "token_ratio": [lambda x, y: x.double().sub(y.double()).exp().to(x.dtype)],
    "token_k2": [lambda x, y: 0.5 * (x - y) * (x - y), lambda x, y: (x - y) ** 2 / 2],
}


def tokens(dtype: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities as they are, nearly equal, and with a ratio near what overflows or is clamped."""
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)
    y = -(torch.rand(300, generator=generator, dtype=torch.float64) * 8).exp() + 1
    r = torch.randn(300, generator=generator, dtype=torch.float64) * 10.0 ** torch.randint(-9, 1, (300,))
    near = torch.tensor(
        [0.0, 10, 11.09, 12.6, 20, -20, 80, 88.72, 89, 103, 709.7, 710, -745, 1.2, -0.2, 0.18232, -0.2231]
    )
    r[:170] = near.repeat(10) * (1 + 1e-3 * torch.randn(170, generator=generator))
    x, y = (y + r).to(kind), y.to(kind)
    return x[:, None], y[:, None]


@cache
def exact(name: str, x: float, y: float) -> mpmath.mpf:
    """By mpmath's global context and the formula's definition, apart from the package's own."""
    with mpmath.mp.workprec(400):
        r = mpmath.mpf(x) - mpmath.mpf(y)
        if name == "token_k3_verl":
            r = max(min(r, 20), -20)
        k3 = mpmath.exp(r) - 1 - r
        limited = min(k3, mpmath.mpf(10))
        low, high = mpmath.mpf(8) / 10, mpmath.mpf(12) / 10
        values = {"token_k1": -r, "token_k2": r * r / 2, "token_k3": k3, "token_ratio": mpmath.exp(r)}
        values |= {"token_k3_verl": limited, "token_k3_openrlhf": limited}
        return +(values | {"token_ratio_clipped": max(low, min(high, mpmath.exp(r)))})[name]


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_no_sound_result_is_outside_its_bound(dtype: str) -> None:
    shares = {}
    for seed in range(2):
        x, y = tokens(dtype, seed)
        numbers = x.double().numpy(), y.double().numpy()
        for name, path in PATHS.items():
            bounds = token_bound(name, *numbers, dtype)
            truth = [exact(name, a, b) for a, b in zip(*(n[:, 0].tolist() for n in numbers), strict=True)]
            for function in [path.function, *OTHERS.get(name, [])]:
                result = function(x, y).reshape(-1)
                threshold = FORMATS[str(result.dtype).removeprefix("torch.")].overflow_threshold
                for value, reference, bound in zip(result.double().tolist(), truth, bounds.tolist(), strict=True):
                    if np.isinf(value):
                        assert reference + bound >= threshold
                    else:
                        error = abs(mpmath.mpf(value) - reference)
                        assert error <= bound, (name, value, reference)
                        if bound:
                            shares[name] = max(shares.get(name, 0), float(error / bound))
    assert min(shares.values()) > 0.05  # and no bound is far from what is reached


@pytest.mark.parametrize("name", list(PATHS))
def test_exact_values_are_those_of_the_definition(name: str) -> None:
    x, y = (t.double().numpy() for t in tokens("float64", 5))
    for text, a, b in zip(quantity_references(name, x, y), x[:, 0].tolist(), y[:, 0].tolist(), strict=True):
        assert abs(mpmath.mpf(text) - exact(name, a, b)) <= abs(exact(name, a, b)) * mpmath.mpf(10) ** -15
        if name == "token_k1":
            assert Fraction(text) == pytest.approx(Fraction(b) - Fraction(a), rel=1e-15)


def test_infinite_log_probabilities_have_infinite_values_and_no_bound() -> None:
    inf = np.inf
    x, y = np.array([[-inf], [-1.0], [-inf]]), np.array([[-1.0], [-inf], [-inf]])
    assert quantity_references("token_k3", x, y) == ["+inf", "+inf", "nan"]
    assert quantity_references("token_ratio", x, y) == ["0", "+inf", "nan"]
    assert np.isinf(token_bound("token_k3", x, y, "float32")).all()


@pytest.mark.parametrize(
    "defect",
    [
        lambda x, y: (y - x).exp() - 1 - (y - x),  # the other direction
        lambda x, y: (x - y).exp() - 1,  # a term forgotten
        lambda x, y: (x - y).half().exp() - (x - y).half() - 1,  # in halves inside
        lambda x, y: ((x - y).exp() - (x - y) - 1).clamp(max=10),  # a clamp that is not said
    ],
)
def test_a_wrong_k3_is_outside(defect) -> None:
    x, y = tokens("float32", 1)
    bounds = token_bound("token_k3", x.double().numpy(), y.double().numpy(), "float32")
    truth = [float(exact("token_k3", a, b)) for a, b in zip(x[:, 0].tolist(), y[:, 0].tolist(), strict=True)]
    assert (np.abs(defect(x, y)[:, 0].double().numpy() - truth) > bounds).any()
