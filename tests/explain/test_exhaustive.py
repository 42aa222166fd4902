"""The largest error over all pairs of a 16-bit format: found where it is, gone on with where it ended."""

from __future__ import annotations

from pathlib import Path as FilePath

import numpy as np
import pandas as pd
import pytest
import torch

from audit.explain import exhaustive
from audit.explain.exhaustive import exhaust, numbers
from audit.paths import registered
from audit.reference.exact import exact_kl

TABLE = FilePath(__file__).parents[2] / "references" / "exhaustive.csv"
SOFTMAX_LOG = next(p for p in registered() if p.name == "softmax_log" and p.target_kind == "logits")


@pytest.mark.parametrize(("dtype", "count"), [("float16", 63_488), ("bfloat16", 65_280)])
def test_every_finite_number_is_there_once(dtype: str, count: int) -> None:
    every = numbers(dtype)
    assert len(every) == count == len(set(every.tolist())) + 1  # the two zeros are equal
    assert every.isfinite().all()


def test_a_sweep_that_was_cut_off_ends_as_an_undisturbed_one(tmp_path: FilePath, monkeypatch) -> None:
    few = numbers("float16")[::3_000]
    monkeypatch.setattr(exhaustive, "numbers", lambda dtype: few)
    monkeypatch.setattr(exhaustive, "STRIDE", 5)
    whole = exhaust([SOFTMAX_LOG], ["float16"], "cpu", tmp_path / "whole.csv", lambda _: None)

    def cut(_: str) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            exhaust([SOFTMAX_LOG], ["float16"], "cpu", tmp_path / "cut.csv", cut)
    exhaust([SOFTMAX_LOG], ["float16"], "cpu", tmp_path / "cut.csv", lambda _: None)
    assert (tmp_path / "cut.csv").read_text() == (tmp_path / "whole.csv").read_text()
    # The worst of all pairs, one by one against the exact value.
    row = whole.iloc[0]
    errors = [_scaled(a, b) for a in few for b in few]
    assert row["targets"] == row["of"] == len(few)
    assert row["error"] == pytest.approx(np.nanmax(errors), rel=1e-9)
    assert row["non_finite"] == np.isnan(errors).sum()


def _scaled(a: torch.Tensor, b: torch.Tensor) -> float:
    input, target = (torch.stack([gap, torch.zeros_like(gap)])[None] for gap in (a, b))
    value = SOFTMAX_LOG.function(input, target).item()
    log_q, log_p = (t.double().log_softmax(-1) for t in (input, target))
    scale = 1 + (log_p.exp() * (log_p.abs() + log_q.abs())).sum().item()
    error = abs(value - float(exact_kl(input, target)[0])) / (2.0**-11 * scale)
    return error if np.isfinite(error) else float("nan")


def test_what_is_committed_is_borne_out_here() -> None:
    known, page = pd.read_csv(TABLE), (TABLE.parents[1] / "docs" / "largest-errors.md").read_text()
    assert (known["error"] <= known["bound"]).all() and (known["error"] > 0).all()
    for row in known.itertuples():
        assert f"| {row.path} | {row.dtype} | {row.error:.3g} | {row.error / row.bound:.2f} |" in page
        sides = [torch.tensor([[float.fromhex(v) for v in side.split()]]) for side in (row.input, row.target)]
        exact = torch.stack(sides).to(getattr(torch, row.dtype))
        assert (exact.double() == torch.stack(sides).double()).all()  # numbers of the format
