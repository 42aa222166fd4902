"""Elements and attribution: true where the truth is known, and telling where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mpmath import mp

from audit.base.formats import FORMATS
from audit.cases import Problem, build, registered
from audit.looks.attribution import begin_attribution
from audit.looks.elements import begin_problem, measure_elements
from audit.publish.answer import origin
from audit.reference.softmax import PARTS

CASES = {case.name: case for case in registered()}


def problem(name: str, dtype: str) -> Problem:
    return build(CASES[name], dtype)


@pytest.mark.parametrize("dtype", FORMATS)
def test_an_elements_error_is_that_of_an_independent_computation(dtype: str) -> None:
    given = problem("random_scale1", dtype)
    row = measure_elements([begin_problem(given)], ["cpu"]).set_index("operation").loc["log_softmax"]
    i, j = row["worst_row"], row["worst_class"]
    x = given.input[i].double().tolist()
    assert x[j].hex() == row["worst_input"]
    with mp.workprec(300):
        exact = mp.mpf(x[j]) - mp.log(mp.fsum(mp.exp(v) for v in x))
        computed = torch.log_softmax(given.input, -1)[i, j].item()
        ulp = FORMATS[dtype].ulp(int(mp.floor(mp.log(abs(exact), 2))))
        assert float(abs(computed - exact) / ulp) == pytest.approx(row["worst"], rel=1e-9)


def test_softmax_then_log_loses_small_probabilities_and_log_softmax_does_not() -> None:
    table = measure_elements([begin_problem(problem("gap_104", "float32"))], ["cpu"]).set_index("operation")
    assert table.loc["log(softmax)", "non_finite"] > 0
    assert table.loc["log_softmax", "non_finite"] == 0


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", ["identical_n1000", "random_scale10", "near_1e-04"])
def test_the_parts_of_a_drift_add_up_to_it(name: str, dtype: str) -> None:
    table = begin_attribution([problem(name, dtype)], ["cpu"])()
    size = table[list(PARTS)].abs().max(axis=1)
    assert (np.abs(table[list(PARTS)].sum(axis=1) - table["drift"]) <= 1e-14 * size).all()


def test_for_equal_logits_the_drift_is_the_difference_of_the_masses() -> None:
    """Exactly sum p^ (log p^ - l^) = G + mass(p^) - mass(exp l^), with a small G >= 0."""
    table = begin_attribution([problem("identical_n1000", "float32")], ["cpu"])()
    before_rounding = table[["softmax", "shift", "log_softmax"]].sum(axis=1)
    rest = before_rounding - table["mass_difference"]
    assert (rest >= 0).all() and (rest < 1e-11).all()


def test_one_sentence_says_which_rounding_makes_the_threads_drift_and_which_sign_it_gets() -> None:
    """Read from the table: with the parts of two roundings exchanged it says the other."""
    table = begin_attribution([problem("identical_n1000", "float32")], ["cpu"])()
    parts = table[["softmax", "shift", "log_softmax", "log", "product", "summation", "output"]].abs().sum()
    table["shift"], table[parts.idxmax()] = table[parts.idxmax()].copy(), table["shift"].copy()
    said = origin({"attribution": table})
    assert "where 0 is exact, is made by the rounding of log sum exp, one number a row" in said
    assert f"of {len(table)} rows" in said
    table["mass_difference"] = -np.sign(table["drift"])
    assert f"in 0 of {len(table)} rows" in origin({"attribution": table})
    assert origin({"attribution": table.iloc[:0]}) == origin({}) == ""
