"""The mistaken formulas' exact values, against torch in float64 and against closed forms."""

from decimal import Decimal

import numpy as np
import pytest
import torch

from audit.machine.measure import measure
from audit.paths import registered
from audit.paths.misuse import MAPS
from audit.reference.quantities import QUANTITIES, quantity_references

MISTAKES = [p for p in registered() if p.quantity in QUANTITIES]


def test_every_quantity_has_its_path() -> None:
    assert {p.quantity for p in MISTAKES} == set(QUANTITIES)


@pytest.mark.parametrize("path", MISTAKES, ids=lambda p: p.name)
def test_a_quantity_is_what_its_path_computes_in_float64(path) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (3, 64) if path.cases == (MAPS,) else (5, 7 if path.input_kind == "logits" else 1)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = quantity_references(path.quantity, x.numpy(), y.numpy())
    total = sum((Decimal(v) for v in exact), Decimal(0)) / shape[0]
    computed = measure(path, x, y).computed.mean()
    # At most 192 terms below 10 in magnitude, rounded to 2^-53 a few times each; another formula is off by over 1e-4.
    assert (np.isnan(computed) and total.is_nan()) or abs(float(total) - computed) < (
        1e-6 if "float32" in path.summary else 1e-12
    )


def test_half_mass_of_equal_logits_is_half_log_half() -> None:
    row = np.array([[0.5, -1.0, 2.0]])
    value = Decimal(quantity_references("half_mass", row, row)[0])
    assert abs(value - Decimal("-0.34657359027997265470861606072908828403775006718013")) < Decimal("1e-49")


def test_a_negative_target_gives_nan() -> None:
    row = np.array([[1.0, -1.0]])
    assert quantity_references("logits_as_target", row, row) == ["nan"]
    assert quantity_references("logits_as_target", row, -row + 2) != ["nan"]


@pytest.mark.parametrize("path", [p for p in MISTAKES if not p.name.startswith("logits_as")], ids=lambda p: p.name)
@pytest.mark.parametrize("offset", [2.0**40, 2.0**1000])
def test_what_is_made_of_softmaxes_does_not_see_a_common_offset(path, offset: float) -> None:
    shape = (1, 64) if path.cases == (MAPS,) else (1, 6)
    x, y = np.random.default_rng(5).integers(-40, 40, (2, *shape)) / 8
    if offset > 2.0**60:  # whose ulp is larger than these differences: they are multiples of it
        x, y = x * 2.0**960, y * 2.0**960
        assert quantity_references(path.quantity, x, x) == quantity_references(path.quantity, x + offset, x + offset)
    else:
        near, far = (quantity_references(path.quantity, x + c, y + c) for c in (0.0, offset))
        assert near == far


def test_a_logarithm_near_zero_keeps_its_digits() -> None:
    """The second class is left out by the target: k1 is -log q of the first, log(1 + e^-260)."""
    value = Decimal(quantity_references("k1", np.array([[1e8, 1e8 - 260]]), np.array([[1e8, 0.0]]))[0])
    assert abs(value / Decimal("1.2118e-113") - 1) < Decimal("1e-4")
    (value,) = quantity_references("k1", np.array([[1e300, 1e300]]), np.array([[0.0, -1e5]]))
    assert abs(Decimal(value) - Decimal(2).ln()) < Decimal("1e-27")
