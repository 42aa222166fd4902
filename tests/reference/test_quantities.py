"""The mistaken formulas' exact values, against torch in float64 and against closed forms."""

from decimal import Decimal

import numpy as np
import pytest
import torch

from audit.measure import measure
from audit.paths import registered
from audit.paths.misuse import MAPS
from audit.reference.quantities import QUANTITIES, quantity_references

MISTAKES = [p for p in registered() if p.quantity in QUANTITIES]


def test_every_quantity_has_its_path() -> None:
    assert {p.quantity for p in MISTAKES} == set(QUANTITIES)


@pytest.mark.parametrize("path", MISTAKES, ids=lambda p: p.name)
def test_a_quantity_is_what_its_path_computes_in_float64(path) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (3, 64) if path.cases == (MAPS,) else (5, 7)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    exact = quantity_references(path.quantity, x.numpy(), y.numpy())
    total = sum((Decimal(v) for v in exact), Decimal(0)) / shape[0]
    computed = measure(path, x, y).computed.mean()
    # At most 192 terms below 10 in magnitude, rounded to 2^-53 a few times each; another formula is off by over 1e-4.
    assert (np.isnan(computed) and total.is_nan()) or abs(float(total) - computed) < 1e-12


def test_half_mass_of_equal_logits_is_half_log_half() -> None:
    row = np.array([[0.5, -1.0, 2.0]])
    value = Decimal(quantity_references("half_mass", row, row)[0])
    assert abs(value - Decimal("-0.34657359027997265470861606072908828403775006718013")) < Decimal("1e-49")


def test_a_negative_target_gives_nan() -> None:
    row = np.array([[1.0, -1.0]])
    assert quantity_references("logits_as_target", row, row) == ["nan"]
    assert quantity_references("logits_as_target", row, -row + 2) != ["nan"]
