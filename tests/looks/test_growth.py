"""How errors grow with the number of classes: the law is told from the numbers, whatever the noise upon them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from audit.looks import growth
from audit.looks.growth import PLACES, WIDTHS, begin_rows, law, measure_growth
from audit.paths import Path
from tests.battery.sound import in_double, log_softmax, masked

LAWS = {"flat": lambda n: 0 * n + 5, "log n": np.log2, "sqrt n": np.sqrt, "n": lambda n: n}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_is_told_through_noise(name: str) -> None:
    n = pd.Series(WIDTHS)
    noise = np.exp(0.2 * np.random.default_rng(1).standard_normal(len(n)))
    assert law(n, 3 * LAWS[name](n.astype(float)) * noise) == name


def test_no_law_without_numbers_and_none_of_errors_below_a_quarter_of_a_roundoff() -> None:
    n = pd.Series(WIDTHS)
    assert law(n, pd.Series(np.nan, n.index)) == ""
    assert law(n, 1e-6 * n) == "flat"


def an_error_a_class(input: Tensor, target: Tensor) -> Tensor:
    """An error that every class adds to: terms of a wide row, each off by as much."""
    terms = masked(log_softmax(target), log_softmax(input))
    return (terms.sum(-1) + input.shape[1] * 2.0**-24).to(input.dtype)


def stumbles_over_an_early_leader(input: Tensor, target: Tensor) -> Tensor:
    value = in_double(input, target)
    return value + (target[:, 0] == target.amax(-1)) * 2.0**-16


def test_what_grows_and_where_it_is_worst_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "WIDTHS", [2**k for k in range(1, 14)])
    kernels = (in_double, an_error_a_class, stumbles_over_an_early_leader)
    table = measure_growth(begin_rows(["float32"]), [Path(f.__name__, f, "") for f in kernels], ["cpu"])
    assert len(table) == len(kernels) * 13 and torch.tensor(table[list(PLACES)].to_numpy()).isfinite().all()
    told = table.groupby("path")["growth"].first()
    assert told["in_double"] == "flat" and told["an_error_a_class"] == "n"
    early = table[table["path"] == "stumbles_over_an_early_leader"]
    assert (early["first"] > 10 * early["last"].clip(lower=0.25)).all()
