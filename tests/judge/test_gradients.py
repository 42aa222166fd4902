"""Gradients: the exact ones are exact, the bounds hold for sound kernels, and what is wrong is found."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from mpmath import mp
from torch import Tensor, log_softmax, softmax

from audit.base.formats import FORMATS
from audit.judge.findings import COMMITTED, find, read_acknowledgements
from audit.judge.gradients import Truth
from audit.looks.gradients import GAPS, breaking_gaps
from audit.machine.plan import plan
from audit.paths import Path, registered
from audit.pipeline.loop import Audit, execute
from audit.reference.softmax import exact_gradients
from tests.battery.sound import SOUND, clamped_at_zero, magnitude
from tests.judge.test_bounds import problems

PATHS = {(p.name, p.reduction): p for p in registered() if p.target_kind == "logits"}
# Every declaration once; what runs the same kernel in another batch, or compiles for seconds, adds nothing here.
TORCHS = [
    PATHS[name, "none"]
    for name in (
        "log_softmax", "softmax_log", "log_target", "softmax_dtype", "upcast", "cross_entropy_minus_entropy",
        "soft_cross_entropy", "generalised", "distillation", "first_dim", "kl_div_from_logits", "thread_era",
    )
] + [PATHS["kl_div_loss", "mean"]]  # fmt: skip


@pytest.mark.parametrize("closeness", [1.0, 1e-9, 0.0])
def test_the_exact_gradients_are_the_derivatives_of_the_divergence(closeness: float) -> None:
    """By differences of KL itself at 150 digits, which has no formula in common with them."""
    x, noise = np.random.default_rng(7).normal(size=(2, 1, 5))
    y = x + closeness * noise

    def kl(x: list, y: list) -> object:
        log_q, log_p = ([v - mp.log(mp.fsum(map(mp.exp, side))) for v in side] for side in (x, y))
        return mp.fsum(mp.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))

    with mp.workdps(150):
        for side, exact in enumerate(exact_gradients(x, y)):
            for i in range(5):
                ends = []
                for step in (mp.mpf(10) ** -60, -(mp.mpf(10) ** -60)):
                    moved = [[mp.mpf(v) for v in t[0].tolist()] for t in (x, y)]
                    moved[side][i] += step
                    ends.append(kl(*moved))
                slope = (ends[0] - ends[1]) / (2 * mp.mpf(10) ** -60)
                assert exact[0, i] == pytest.approx(float(slope), rel=1e-15, abs=1e-55)


def trial(paths: list[Path], sizes: list[int], seed: int) -> pd.DataFrame:
    """A row a path, side and problem: the largest error over its bound, and what is not finite."""
    rows = []
    for family, dtype, x, y in problems(sizes, seed):
        truth = Truth(x[:2], y[:2])
        for path in (p for p in paths if dtype in p.dtypes):
            for gradient in truth.gradients(path, "cpu"):
                key = {"path": path.name, "family": family, "dtype": dtype, "side": gradient.side}
                finite = np.isfinite(gradient.computed)
                worst = gradient.ratio[finite].max(initial=0)
                rows.append(key | {"elements": finite.size, "lost": (~finite).sum(), "worst": worst})
    return pd.DataFrame(rows)


def broken(table: pd.DataFrame) -> pd.DataFrame:
    """What is beyond its bound or not finite, but for the limit that is acknowledged: a probability that underflows."""
    deep = table["family"].isin(["wide", "underflow"])
    shallow = table["family"].isin(["one_hot", "both_one_hot", "rising", "nearer"])
    underflow = deep | (shallow & (table["dtype"] == "float16"))
    forward_only = table["path"].isin(["reciprocal"]) | table["path"].isin([p.name for p in TORCHS])
    kept = ~table["path"].isin(["log_target", "kl_div_from_logits"])
    return table[(table["worst"] > 1) | ((table["lost"] > 0) & ~(underflow & forward_only & kept))]


# Sound as values: where rounding has made one negative the gradient becomes 0, or turns its sign.
TURNED = (clamped_at_zero, magnitude)
KERNELS = [*TORCHS, *(Path(f.__name__, f, "") for f in SOUND if f not in TURNED)]


def test_no_sound_kernels_gradient_is_beyond_its_bound() -> None:
    table = trial(KERNELS, [40], seed=1)
    assert table["elements"].sum() > 100_000
    assert broken(table).empty, broken(table).groupby(["path", "family", "dtype", "side"])["worst"].max().to_string()


@pytest.mark.slow
def test_no_sound_kernels_gradient_is_beyond_its_bound_in_many_trials() -> None:
    table = pd.concat([trial(KERNELS, [3, 81, 300], seed) for seed in range(2, 5)], ignore_index=True)
    worst = table[table["lost"] == 0].groupby(["path", "dtype", "side"])["worst"].max()
    print(f"\n{table['elements'].sum():,} elements; largest error / bound:")
    print(worst.unstack("dtype").round(3).to_string())
    assert broken(table).empty, broken(table).groupby(["path", "family", "dtype", "side"])["worst"].max().to_string()


def test_a_gradient_that_a_dropped_sign_turns_is_beyond_its_bound() -> None:
    turned = broken(trial([Path(f.__name__, f, "") for f in TURNED], [3], seed=2))
    assert set(turned["path"]) == {f.__name__ for f in TURNED} and set(turned["family"]) <= {"near", "nearer"}


class Backward(torch.autograd.Function):
    """The right value with a gradient of one's own: `rule` gives both sides' from p, q and L = log(p / q)."""

    @staticmethod
    def forward(ctx, x, y, rule):
        ctx.rule = rule
        ctx.save_for_backward(x, y)
        return (softmax(y, -1) * (log_softmax(y, -1) - log_softmax(x, -1))).sum(-1)

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        L = log_softmax(y, -1) - log_softmax(x, -1)
        by_input, by_target = ctx.rule(softmax(y, -1), softmax(x, -1), L)
        return grad[:, None] * by_input, grad[:, None] * by_target, None


def mean(p: Tensor, L: Tensor) -> Tensor:
    return (p * L).sum(-1, keepdim=True)


def last_dropped(t: Tensor) -> Tensor:
    return torch.cat([t[:, :-1], 0 * t[:, -1:]], -1)


RULES = {
    "right": lambda p, q, L: (q - p, p * (L - mean(p, L))),
    "sign": lambda p, q, L: (p - q, p * (L - mean(p, L))),
    "of_the_other_side": lambda p, q, L: (p * (L - mean(p, L)), q - p),
    "twice": lambda p, q, L: (2 * (q - p), 2 * p * (L - mean(p, L))),
    "target_not_centred": lambda p, q, L: (q - p, p * L),
    "target_centred_with_q": lambda p, q, L: (q - p, p * (L - mean(q, L))),
    "normaliser_detached": lambda p, q, L: (-p, p * (L - mean(p, L))),
    "last_class_dropped": lambda p, q, L: (last_dropped(q - p), last_dropped(p * (L - mean(p, L)))),
    "mean_over_classes": lambda p, q, L: ((q - p) / p.shape[1], p * (L - mean(p, L)) / p.shape[1]),
    "eps_in_ratio": lambda p, q, L: (q - p * q / (q + 1e-3), p * (L - mean(p, L))),
    "half_precision": lambda p, q, L: ((q - p).bfloat16().to(p), (p * (L - mean(p, L))).bfloat16().to(p)),
    "of_the_first_row": lambda p, q, L: ((q - p)[:1].expand_as(p), (p * (L - mean(p, L)))[:1].expand_as(p)),
    "zero": lambda p, q, L: (0 * p, 0 * p),
    "nan_at_equal": lambda p, q, L: (torch.where(L.abs() < 1e-3, torch.nan, q - p), p * (L - mean(p, L))),
}


def apply(x: Tensor, y: Tensor, *, rule) -> Tensor:
    return Backward.apply(x, y, rule)


@pytest.fixture(scope="module")
def judged() -> Audit:
    own = []
    for name, rule in RULES.items():
        function = partial(apply, rule=rule)
        function.__name__ = name
        own.append(function)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audit.explain.reproducer.Shrinker.reproduce", lambda *_: None)
        cases = ["random_scale1", "near_1e-04", "peaked_gap20"]
        return execute(plan("quick", cases, own, ["bfloat16", "float32"], "cpu"))


def test_every_planted_gradient_is_found_and_the_right_one_is_not(judged: Audit) -> None:
    findings = judged.new_findings
    found = set(findings["path"])
    print(f"\nwrong gradients found: {len(found)} of {len(RULES) - 1}")
    assert found == set(RULES) - {"right"}
    assert findings["symptom"].str.contains("_gradient_").all(), "the values themselves are right"
    assert set(findings.loc[findings["path"] == "target_not_centred", "symptom"]) == {"target_gradient_beyond_bound"}


def test_a_bound_of_gradients_ten_times_looser_would_miss_some(judged: Audit) -> None:
    table = judged.tables["gradients"]
    loose = table.assign(symptom=table["symptom"].where((table["worst_of_bound"] > 10) | (table["symptom"] == ""), ""))
    found = (find(judged.tables["errors"], [], t, own=list(RULES))[0] for t in (table, loose))
    now, then = (set(zip(f["path"], f["dtype"], f["symptom"], strict=True)) for f in found)
    assert then < now


def test_a_gradient_that_is_known_is_acknowledged_and_stays_a_finding() -> None:
    audit = execute(plan("quick", paths=["log_softmax"], devices="cpu"))
    assert "gradients" not in audit.tables, "a part of the audit's own paths is looked at for its values"
    known = {a.name: a for a in read_acknowledgements(COMMITTED)}["gradient-of-underflowed-target"]
    row = {"path": "log_softmax", "case": "gap_88", "dtype": "float16", "device": "cpu", "reduction": "none"}
    row |= {"symptom": "target_gradient_not_finite", "row": 0, "classes": 32, "computed": math.nan, "bound": 1e-3}
    row |= {"backward": "", "class": 0, "worst_relative": math.nan}
    findings, stale = find(audit.tables["errors"], [known], pd.DataFrame([row | {"reference": 0.5}]))
    assert findings.set_index("symptom").loc["target_gradient_not_finite", "acknowledged_by"] == known.name
    assert stale == []
    _, stale = find(audit.tables["errors"], [known], pd.DataFrame([row | {"reference": 0.5, "symptom": ""}]))
    assert stale == [known.name]


def test_a_wrong_gradient_is_shrunk_and_its_script_shows_it(run_script) -> None:
    def doubled(x: Tensor, y: Tensor) -> Tensor:
        value = (softmax(y, -1) * (log_softmax(y, -1) - log_softmax(x, -1))).sum(-1)
        return 2 * value - value.detach()

    finding = execute(plan("quick", ["random_scale1"], [doubled], "float32", "cpu")).new_findings.iloc[0]
    assert finding["classes"] == 2
    computed, exact = run_script(finding["script"])
    assert computed == pytest.approx(2 * exact, rel=1e-4)


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_gap_at_which_a_gradient_breaks_is_where_its_quotient_overflows(dtype: str) -> None:
    """softmax().log() forms p / q = e^gap / 2 for two classes; log_target and the remedy form no quotient."""
    overflow = math.log(2) * (FORMATS[dtype].maximum + 2)
    first = min(gap for gap in GAPS if gap > overflow)
    assert breaking_gaps(PATHS["softmax_log", "none"], dtype, "cpu")[0] == first
    for name in ("log_target", "kl_div_from_logits"):
        assert np.isnan(breaking_gaps(PATHS[name, "none"], dtype, "cpu")).all()


def test_a_kernel_without_a_gradient_has_no_row_and_no_finding() -> None:
    def detached(x: Tensor, y: Tensor) -> Tensor:
        return (softmax(y, -1) * (log_softmax(y, -1) - log_softmax(x, -1))).sum(-1).detach()

    audit = execute(plan("quick", ["random_scale1"], [detached], "float32", "cpu"))
    assert set(audit.tables["gradients"]["path"]) == {"log_softmax"} and audit.new_findings.empty


def test_a_backward_that_forgets_the_input_is_found(run_script) -> None:
    def forgetful(x: Tensor, y: Tensor) -> Tensor:
        return (softmax(y, -1) * (log_softmax(y, -1) - log_softmax(x, -1).detach())).sum(-1)

    (finding,) = execute(plan("quick", ["random_scale1"], [forgetful], "float32", "cpu")).new_findings.to_dict(
        "records"
    )
    assert finding["symptom"] == "input_gradient_beyond_bound"
    computed, exact = run_script(finding["script"])
    assert computed == 0 != exact


def test_ruled_out_classes_have_bounds_and_exact_gradients() -> None:
    x = torch.tensor([[0.0, 1.0, -math.inf], [0.5, -math.inf, 1.0]])
    y = torch.tensor([[1.0, 0.0, -math.inf], [0.0, -math.inf, 2.0]])
    dense = Truth(x[:1, :2], y[:1, :2]).exact(1.0)
    truth = Truth(x, y)
    for side, exact in enumerate(truth.exact(1.0)):
        assert exact[0, :2] == pytest.approx(dense[side][0], rel=1e-15) and exact[0, 2] == exact[1, 1] == 0
    for path in (PATHS["log_softmax", "none"], PATHS["softmax_log", "none"]):
        assert all(np.isfinite(limit).all() for limit in truth.bounds(path.rounding))

    def garbage(input: Tensor, target: Tensor) -> Tensor:
        terms = softmax(target, -1) * (log_softmax(target, -1) - log_softmax(input, -1))
        return torch.where(torch.isfinite(input), terms, 0.0).nan_to_num().sum(-1) + 1000 * input.nan_to_num().sum(-1)

    found = truth.gradients(Path("garbage", garbage, ""), "cpu")
    assert found[0].symptom == "input_gradient_beyond_bound"


class Upstream(torch.autograd.Function):
    """The right value and gradient, but for what it makes of the gradient that comes in."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, wrong) -> Tensor:
        p, q = softmax(y, -1), softmax(x, -1)
        log = log_softmax(y, -1) - log_softmax(x, -1)
        value = (p * log).sum(-1)
        ctx.save_for_backward(q - p, p * (log - value[:, None]))
        ctx.wrong = wrong
        return value

    @staticmethod
    def backward(ctx, upstream: Tensor):
        upstream = ctx.wrong(upstream)[:, None]
        return *(upstream * grad for grad in ctx.saved_tensors), None


@pytest.mark.parametrize("name", ["right", "ignored", "averaged", "later rows lost"])
def test_what_a_backward_makes_of_its_upstream_gradient_and_of_later_rows_is_judged(name: str) -> None:
    wrong = {
        "right": lambda g: g,
        "ignored": torch.ones_like,
        "averaged": lambda g: g.mean().expand_as(g),
        "later rows lost": lambda g: g * (torch.arange(len(g)) < 2),
    }[name]

    def own(x: Tensor, y: Tensor) -> Tensor:
        return Upstream.apply(x, y, wrong)

    audit = execute(plan("quick", ["random_scale1"], [own], "float32", "cpu"))
    symptoms = set(audit.new_findings["symptom"])
    assert symptoms == (set() if name == "right" else {"input_gradient_beyond_bound", "target_gradient_beyond_bound"})
