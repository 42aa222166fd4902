"""diagnose_tokens: what it says is what the numbers are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import audit
from audit.cli import app


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_noise_is_what_rounding_alone_makes(dtype: torch.dtype) -> None:
    """Of log-probabilities that two engines round after errors of their own, of half a spacing either way."""
    generator = torch.Generator().manual_seed(1)
    true = -torch.rand(20_000, generator=generator, dtype=torch.float64).mul(4).exp()
    held = true.to(dtype)
    spacing = (torch.nextafter(held, torch.full_like(held, -torch.inf)).double() - held.double()).abs()
    dither = torch.rand(2, 20_000, generator=generator, dtype=torch.float64) - 0.5
    difference = spacing * (dither[0] - dither[1])
    found = audit.diagnose_tokens(held[:500], held[:500])
    assert found.noise == pytest.approx(difference[:500].square().mean().sqrt().item(), rel=0.2)
    assert found.noise_k3 == found.noise**2 / 2 and "k3 is noise" in str(found)


def test_means_are_over_the_tokens_that_count_and_agree_with_the_formulas() -> None:
    x, y = torch.tensor([[-1.0, -2.0, float("nan")]]), torch.tensor([[-1.5, -0.5, -1.0]])
    table = audit.diagnose_tokens(x, y, torch.tensor([[True, True, False]])).table
    r = torch.tensor([0.5, -1.5]).double()
    assert table.loc["token_k1", "exact"] == -r.mean()
    assert table.loc["token_k3", "exact"] == pytest.approx((r.expm1() - r).mean().item())
    assert table.loc["token_ratio_clipped", "exact"] == pytest.approx(r.exp().clamp(0.8, 1.2).mean().item())
    assert table.loc["token_k1", "negative"] == 1 and not table["not_finite"].any()
    assert ((table["value"] - table["exact"]).abs() <= table["bound"]).all()


@pytest.mark.parametrize(
    ("x", "y", "mask", "complaint"),
    [
        ([0.0], torch.zeros(1), None, "input: expected a floating tensor .* got list"),
        (torch.zeros(1), torch.zeros(1).long(), None, "target: expected a floating tensor .* got torch.int64"),
        (torch.zeros(1, 2), torch.zeros(2), None, r"one shape.*\(1, 2\) and \(2,\)"),
        (torch.zeros(2), torch.zeros(2), torch.zeros(2).bool(), "some of them true"),
    ],
)
def test_wrong_usage_is_named(x, y, mask, complaint: str) -> None:
    with pytest.raises(audit.UsageError, match=complaint):
        audit.diagnose_tokens(x, y, mask)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(2)
    policy = -torch.rand(4, 9, generator=generator)
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[1, 5:] = False
    reference = policy + 0.1 * torch.randn(4, 9, generator=generator)
    reference[0, 0] = policy[0, 0] + 13
    reference[1, 7] = float("nan")
    torch.save({"input": reference.half(), "target": policy.half(), "mask": mask}, tmp_path / "tokens.pt")
    return tmp_path / "tokens.pt"


def test_a_file_of_tokens_is_judged_token_by_token(file: Path, tmp_path: Path) -> None:
    kinds = ["--input-kind", "token_log_probs", "--target-kind", "token_log_probs"]
    outcome = CliRunner().invoke(app, ["run", "--logits", str(file), *kinds, "--out", str(tmp_path / "out")])
    assert outcome.exit_code == 0, outcome.output
    errors = audit.read_errors(tmp_path / "out" / "errors.csv")
    assert set(errors["path"]) == {
        *("token_k1", "token_k2", "token_k3", "token_k3_verl", "token_k3_openrlhf", "token_ratio"),
        "token_ratio_clipped",
    }
    assert (errors.groupby("path").size() == 32).all() and errors["within_bound"].all()
    assert set(range(14, 18)).isdisjoint(errors["row"])
    first = errors[errors["row"] == 0].set_index("path")
    assert first.loc["token_k3", "result_class"] == "plus_infinity"  # exp(13) is beyond float16
    assert first.loc["token_k3_verl", "computed"] == first.loc["token_k3_openrlhf", "computed"] == 10
    statistics = audit.read_table(tmp_path / "out", "statistics").set_index("path")
    for name in set(errors["path"]):
        rows = errors[errors["path"] == name]
        for path, values in ((name, rows["computed"]), (f"exact {name}", rows["reference"].map(float))):
            finite = values[np.isfinite(values)]
            assert statistics.loc[path, "mean"] == pytest.approx(finite.mean(), rel=1e-12)
            assert statistics.loc[path, "n"] == 32 and statistics.loc[path, "non_finite"] == 32 - len(finite)
    assert statistics["same_top_class"].isna().all()
    alone = CliRunner().invoke(app, ["run", "--logits", str(file), *kinds[:2], "--out", str(tmp_path / "no")])
    assert alone.exit_code == 2 and "a kind of both sides" in " ".join(alone.output.split())


def test_diagnose_takes_a_file_of_tokens(file: Path) -> None:
    outcome = CliRunner().invoke(app, ["diagnose", str(file), "--kind", "token_log_probs"])
    assert outcome.exit_code == 0 and "32 tokens in float16" in outcome.output and "k3 is noise" in outcome.output
    for idle in (["--reduction", "sum"], ["--log-target"], ["--dim", "0"]):
        said = CliRunner().invoke(app, ["diagnose", str(file), "--kind", "token_log_probs", *idle])
        assert said.exit_code == 2 and f"{idle[0]} has no effect with" in " ".join(said.output.split())
    wrong = CliRunner().invoke(app, ["diagnose", str(file), "--kind", "nonsense"])
    assert wrong.exit_code == 2 and "expected distributions or token_log_probs" in " ".join(wrong.output.split())
