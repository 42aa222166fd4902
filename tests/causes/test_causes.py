"""Causes: each planted defect is named, and no other; sound kernels never; what is random, hardly ever."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import audit
from audit.causes import _OF_ROWS, _OF_TORCH, _OF_VALUES, CAUSES, Rows
from audit.causes.matching import Given, Results, name_causes
from audit.machine.plan import plan, plan_file
from audit.pipeline.loop import execute
from tests.battery import defects, sound

# Planted in tests/battery, which computes them its own way.
NAMES = {
    "tail_block_dropped": "tail_left_out",
    "last_class_dropped": "last_class_left_out",
    "tail_left_out_of_normaliser": "tail_left_out_of_normaliser",
    "last_class_counted_twice": "last_class_twice",
    "arguments_swapped": "swapped_sides",
    "mean_over_classes": "mean_over_classes",
    "in_bits": "in_bits",
    "negative_terms_dropped": "negative_terms_dropped",
    "absolute_terms": "absolute_terms",
    "stale_rows": "another_row",
    "first_row_everywhere": "first_row",
    "always_zero": "always_zero",
    "first_class_dropped": "first_class_left_out",
    "unnormalised_target": "unnormalised_target",
    "entropy_left_out": "entropy_left_out",
    "eps_1e5_in_log": "eps_in_log",
    "eps_1e8_in_log": "eps_in_log",
    "clamp_1e10_in_log": "clamp_in_log",
    "clamp_1e6_in_log": "clamp_in_log",
    "eps_in_normaliser": "eps_in_normaliser",
    "half_normaliser": "half_normaliser",
    "half_terms": "short_products",
    "terms_of_ten_bits": "short_products",
    "half_logits": "half_logits",
    "skips_small_probabilities": "threshold",
    "no_max_subtraction": "unshifted_exponentials",
    "nan_at_zero_probability": "zero_times_infinity",
}
# Of which no cause is registered, or whose formula another has where it shows.
NAMELESS = ["max_over_wrong_axis", "mean_over_rows", "online_without_rescaling", "reverse_normalisation", "half_exp",
            "bfloat16_log", "bfloat16_accumulation", "one_ninth_of_logits", "truncated_exp", "skips_small_inputs",
            "rows_from_128_lost", "double_computed_in_single", "single_normaliser_in_double"]  # fmt: skip
CASES = [
    "random_scale1",
    "random_scale10",
    "near_1e-02",
    "gap_17",
    "impossible_matched",
    "random_160x5",
    "offset_1e+04",
]


@pytest.fixture(scope="module")
def errors() -> pd.DataFrame:
    kernels = [getattr(defects, name) for name in (*NAMES, *NAMELESS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audit.explain.reproducer.Shrinker.reproduce", lambda *_: None)
        return execute(plan("standard", CASES, [*kernels, *sound.SOUND], devices="cpu")).tables["errors"]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", NAMES)
def test_a_planted_defect_is_named_and_no_other(errors: pd.DataFrame, kernel: str) -> None:
    rows = errors[(errors["path"] == kernel) & (errors["within_bound"] == False)]  # noqa: E712
    assert set(rows["cause"]) - {""} == {NAMES[kernel]}
    assert (rows["cause"] != "").mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kernel", NAMES)
def test_a_verdict_names_a_planted_defect_and_no_other(kernel: str) -> None:
    """Over the whole standard profile, whose rows may say nothing of a defect, or hold no value at all."""
    special = {"nan_at_zero_probability": "nan_at_zero_probability"}  # what it is called where it shows most
    assert audit.check(getattr(defects, kernel), devices="cpu").causes == [special.get(kernel, NAMES[kernel])]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", NAMELESS)
def test_a_defect_that_is_none_of_them_has_no_name(errors: pd.DataFrame, kernel: str) -> None:
    rows = errors[errors["path"] == kernel]
    # Where classes are ruled out on both sides a NaN has no digits that could tell one defect from another.
    alike = (rows["case"] == "impossible_matched") & (rows["result_class"] == "not_a_number")
    assert set(rows.loc[~alike, "cause"]) == {""}


@pytest.mark.slow
def test_what_is_sound_has_no_name(errors: pd.DataFrame) -> None:
    rows = errors[errors["path"].isin([f.__name__ for f in sound.SOUND])]
    assert len(rows) > 1_000 and set(rows["cause"]) == {""}


def judged(computed: Tensor, rows: Rows) -> Results:
    exact, name = rows.terms.sum(-1).numpy(), str(rows.input.dtype).removeprefix("torch.")
    given = Given(rows.input, rows.target, rows.kinds, rows.rounding)
    return Results("mine", "cpu", "none", given, computed.double().numpy(), exact, np.full(len(exact), True), name)


def problems(seed: int, dtype: torch.dtype, count: int = 4) -> list[Rows]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(16, 10), (8, 33), (12, 5), (4, 100)][:count]
    return [Rows(*(2 * torch.randn(2, *shape, generator=generator)).to(dtype).unbind()) for shape in shapes]


def test_rows_that_say_nothing_of_a_defect_do_not_speak_against_it() -> None:
    near = [Rows(rows.input, rows.input + 1e-9 * rows.target) for rows in problems(2, torch.float64, 2)]
    every = [*problems(1, torch.float64), *near]
    results = [judged(rows.terms.sum(-1) / math.log(2), rows) for rows in every]
    lost = np.full_like(results[0].exact, np.nan)
    results.append(replace(results[0], exact=lost, computed=lost, failing=np.isfinite(lost)))
    assert set(name_causes(results)[0]) == {"in_bits"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kernel",
    [
        lambda r, g: r.terms.sum(-1) * (2 * torch.rand(1, generator=g).item()),
        lambda r, g: r.terms.sum(-1) * 2 * torch.rand(len(r.x), generator=g),
        lambda r, g: r.terms.sum(-1) + torch.randn(len(r.x), generator=g),
        lambda r, g: r.terms.sum(-1) * torch.exp2(-20 * torch.rand(len(r.x), generator=g)),
        lambda r, g: (torch.rand(r.x.shape[-1], generator=g) > 0.2).double().mul(r.terms).sum(-1),
        lambda r, g: r.terms.sum(-1).masked_fill(torch.rand(len(r.x), generator=g) < 0.5, torch.nan),
    ],
    ids=["one factor", "factors", "noise", "shrunk", "classes lost", "NaN at random"],
)
def test_random_kernels_are_not_named(kernel: Callable[[Rows, torch.Generator], Tensor], dtype: torch.dtype) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        results = [judged(kernel(rows, generator).to(dtype), rows) for rows in problems(seed, dtype)]
        assert {name for names in name_causes(results) for name in names} == {""}, seed


def test_few_results_of_few_digits_are_not_enough_but_many_are() -> None:
    def swapped(rows: Rows) -> Tensor:
        return sound.plain(rows.target, rows.input)

    few = [judged(swapped(rows), rows) for rows in problems(1, torch.float16, 1)]
    two = Rows(few[0].given.input[:2], few[0].given.target[:2])
    assert {n for names in name_causes([judged(swapped(two), two)]) for n in names} == {""}
    many = [judged(swapped(rows), rows) for seed in range(3) for rows in problems(seed, torch.float16)]
    assert {n for names in name_causes(many) for n in names} >= {"swapped_sides"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_confident_half_logits_of_a_users_file_are_explained(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(64, 10, generator=generator)
    target[torch.arange(64), torch.randint(10, (64,), generator=generator)] += 7
    input = target + 0.02 * torch.randn(64, 10, generator=generator)
    file = tmp_path / "confident.pt"
    torch.save({"input": input.to(dtype), "target": target.to(dtype)}, file)
    run = execute(plan_file(file, devices="cpu"))
    wrong = run.tables["errors"].query("within_bound == False")
    assert len(wrong) and set(wrong["cause"]) == {"half_rounded_sum"}
    assert set(run.tables["findings"]["status"]) == {"acknowledged"}


def test_probabilities_taken_as_logits_are_named_and_so_is_a_nan_at_classes_without_any() -> None:
    """A kernel of logits that is given probabilities, and a formula of logarithms that are -inf for some classes."""
    for rows in problems(3, torch.float32):
        given = Rows(rows.log_q.float(), rows.p.float(), ("log_probs", "probs"))
        wrong = (given.target.softmax(-1) * (given.target.log_softmax(-1) - given.input)).sum(-1)
        assert set(*name_causes([judged(wrong, given)])) == {"taken_as_logits"}
    rows = problems(4, torch.float32)
    logs = [r.log_p.float().index_fill(-1, torch.tensor(1), -torch.inf) for r in rows]
    ruled_out = [Rows(r.input, log_p, ("logits", "log_probs")) for r, log_p in zip(rows, logs, strict=True)]
    wrong = [judged((r.p * (r.target.double() - r.log_q)).sum(-1), r) for r in ruled_out]
    assert {name for names in name_causes(wrong) for name in names} == {"nan_at_zero_probability"}


def test_a_cause_of_torchs_is_one_only_where_its_formula_changes_something() -> None:
    """No half format, no probability that underflowed, a NaN that went in: there the path by construction has none."""
    for rows in problems(5, torch.float32):
        exact = rows.terms.sum(-1)
        assert torch.equal(_OF_TORCH["half_rounded_sum"][0](rows), rows.terms)
        assert torch.equal(_OF_TORCH["flushed_probability"][0]("kl_div", rows), rows.terms)
        x, y = (t.index_fill(-1, torch.tensor(0), -torch.inf) for t in (rows.input, rows.target))
        ruled_out = Rows(x, y)
        assert _OF_TORCH["flushed_probability"][0]("kl_div", ruled_out).sum(-1).isfinite().all()
        lost = Rows(x.index_fill(-1, torch.tensor(1), torch.nan), y)
        named = name_causes([judged(torch.zeros_like(exact), lost)])
        assert "zero_times_infinity" not in named[0]


def test_every_cause_is_listed_with_what_it_is() -> None:
    assert len({cause.name for cause in CAUSES}) == len(CAUSES) == len(_OF_TORCH) + len(_OF_ROWS) + len(_OF_VALUES) > 30
    assert all(cause.summary and cause.variants for cause in CAUSES)
