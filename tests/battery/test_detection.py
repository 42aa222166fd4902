"""Detection power, measured on the standard profile: every planted defect is found, no sound kernel is flagged.

The battery guards the audit: a bound that is loosened, or a case that is dropped, makes one of these fail.
"""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import Tensor

from audit.judge.bounds import within_bound
from audit.judge.findings import find
from audit.pipeline import execute, plan
from tests.battery.defects import DEFECTS
from tests.battery.sound import SOUND, log_softmax, masked

# What each defect's effect exceeds the rounding of, where that is not every dtype. An error of 2^-11 or less in the
# logarithms is what halves may have; the sign of the rounding says nothing where few results are drowned in it.
ONLY = {
    "double_computed_in_single": {"float64"},  # for the others it is the same operation
    "single_normaliser_in_double": {"float64"},
    "truncated_exp": {"float32", "float64"},
    "half_exp": {"float32", "float64"},
    "eps_in_normaliser": {"float32", "float64"},
    "skips_small_probabilities": {"float32", "float64"},
    "index_overflow_past_65535": {"float64"},  # an undeclared order of 128,256 classes may lose as much in single
    "stops_at_32000": {"float64"},
    "absolute_value": {"float32"},
}
RACE = 1 / 50


def drops_a_block_now_and_then(input: Tensor, target: Tensor) -> Tensor:
    """A race: in one row of fifty the last eighth of the classes is not there yet."""
    terms = masked(log_softmax(target), log_softmax(input))
    chance = torch.rand(len(terms), generator=torch.Generator().manual_seed(terms.shape[1])).to(terms.device)
    kept = terms[:, : max(1, terms.shape[1] * 7 // 8)].sum(-1)
    return torch.where(chance < RACE, kept, terms.sum(-1)).to(input.dtype)


@pytest.fixture(scope="module")
def errors() -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audit.pipeline.Shrinker.reproduce", lambda *_: None)
        return execute(plan("standard", paths=[*SOUND, *DEFECTS, drops_a_block_now_and_then], devices="cpu")).tables[
            "errors"
        ]


def flagged(errors: pd.DataFrame) -> dict[str, set[str]]:
    """The dtypes in which each path has a finding."""
    findings, _ = find(errors[errors["path"] != "log_softmax"], [])
    return {str(path): set(group["dtype"]) for path, group in findings.groupby("path")}


def test_every_defect_is_found_and_no_sound_kernel_is_flagged(errors: pd.DataFrame) -> None:
    found = flagged(errors)
    defects, sound = {f.__name__ for f in DEFECTS}, {f.__name__ for f in SOUND}
    for what, names in (("defects found", defects), ("sound kernels flagged", sound)):
        print(f"\n{what}: {len(names & set(found))} of {len(names)}")
    assert len(defects) >= 30 and len(sound) >= 10
    assert not sound & set(found), {name: found[name] for name in sound & set(found)}
    assert defects <= set(found), defects - set(found)


@pytest.mark.parametrize("name", ONLY)
def test_a_subtle_defect_is_found_in_the_dtype_where_it_shows(errors: pd.DataFrame, name: str) -> None:
    assert ONLY[name] <= flagged(errors[errors["path"] == name]).get(name, set())


def test_a_race_is_found_in_any_dtype(errors: pd.DataFrame) -> None:
    """With n rows in which the block matters, one in fifty is hit: found with probability 1 - (49/50)^n > 0.9999."""
    of_tail = errors[errors["path"] == "last_class_dropped"]
    rows = (~of_tail["within_bound"].astype(bool)).groupby(of_tail["dtype"]).sum().sum()
    assert 1 - (1 - RACE) ** rows > 0.9999
    assert "drops_a_block_now_and_then" in flagged(errors)


def test_a_bound_ten_times_looser_would_miss_defects(errors: pd.DataFrame) -> None:
    loose = errors.assign(bound=10 * errors["bound"], rest=float("nan"))
    loose["within_bound"] = within_bound(loose)
    now, then = flagged(errors), flagged(loose)
    lost = {(path, dtype) for path, dtypes in now.items() for dtype in dtypes - then.get(path, set())}
    assert lost


@pytest.mark.parametrize(
    ("cases", "defect"),
    [("*128256", "index_overflow_past_65535"), ("*_n*", "stops_at_32000"), ("[nif]*", "absolute_value")],
)
def test_dropping_a_family_of_cases_would_miss_a_defect(errors: pd.DataFrame, cases: str, defect: str) -> None:
    from fnmatch import fnmatchcase

    rest = errors[~errors["case"].map(lambda case: fnmatchcase(case, cases))]
    assert defect not in flagged(rest)
