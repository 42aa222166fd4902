"""The search for the largest error: what it finds is exact, and beats what is drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import audit
from audit.base.formats import FORMATS
from audit.base.usage import UsageError
from audit.cases import registered as registered_cases
from audit.cases.worst import Record, read_worst, write_worst
from audit.explain.worst import measured, search, searched
from audit.paths import registered

WAYS = {p.name: p for p in registered() if p.reduction == "none" and p.input_kind == p.target_kind == "logits"}


def numbers(text: str) -> np.ndarray:
    return np.array([[float.fromhex(v) for v in text.split()]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_search_beats_random_rows_and_says_the_exact_error(dtype: str) -> None:
    way = WAYS["log_softmax"]
    found = search(way, dtype, 4, 1.5)
    x, y = numbers(found.input), numbers(found.target)
    exact = audit.exact_kl(x[0], y[0])
    again = measured(way, dtype, x, y)
    assert (again.error, again.bound) == (found.error, found.bound)
    unit = FORMATS[dtype].unit_roundoff
    p, q = (np.exp(v - v.max()) / np.exp(v - v.max()).sum() for v in (y, x))
    scale = 1 + np.nansum(p * (np.abs(np.log(np.maximum(p, 1e-300))) + np.abs(np.log(np.maximum(q, 1e-300)))))
    result = way.function(*(torch.from_numpy(v).to(getattr(torch, dtype)) for v in (x, y))).item()
    assert float(abs(result - exact)) / (unit * scale) == pytest.approx(found.error, rel=1e-3)
    random = np.random.default_rng(0)
    drawn = [measured(way, dtype, *_rounded(random.standard_normal((2, 1, 4)), dtype)).error for _ in range(20)]
    assert found.error > max(drawn)


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(values).to(getattr(torch, dtype)).double().numpy()


def test_a_path_that_cannot_be_searched_is_told_from_one_that_there_is_not() -> None:
    with pytest.raises(UsageError, match="'token_k1' is not searched: it gives no KL a row of logits"):
        next(searched(["token_k1"], ["float32"], 4, 0.1))
    with pytest.raises(UsageError, match="unknown path 'nope'"):
        next(searched(["nope"], ["float32"], 4, 0.1))


def test_no_search_leaves_the_bound_of_a_sound_path() -> None:
    """Few classes, which torch's kernels add one by one, at the lead where each addition loses most."""
    for classes in (9, 12, 15):
        found = search(WAYS["log_softmax"], "float32", classes, 1.5, of_bound=True)
        assert found.error < found.bound


def test_the_bound_holds_where_each_exponential_is_lost_after_a_leading_one() -> None:
    x = np.full((1, 10), 0.0)
    x[0, 0] = np.float32(24 * np.log(2) + 1e-6)
    found = measured(WAYS["log_softmax"], "float32", x.astype(np.float32).astype(float), x[:, ::-1] * 0)
    assert found.error < found.bound


def test_the_table_keeps_what_no_other_beats(tmp_path: Path) -> None:
    record = Record("a", "float32", 2, 3.0, 10.0, "torch", "2026-01-01", "0x0p+0 0x1p+0", "0x1p+0 0x0p+0")
    lesser, nearer = record._replace(error=2.0), record._replace(error=2.5, bound=5.0)
    write_worst([lesser, record, nearer], tmp_path / "worst.csv")
    assert read_worst(tmp_path / "worst.csv") == [nearer, record]
    assert record.beats([lesser]) and nearer.beats([record]) and not lesser.beats([record])


def test_every_committed_record_is_a_row_of_its_format_and_of_a_case() -> None:
    cases = {c.name: c for c in registered_cases()}
    assert read_worst()
    for record in read_worst():
        pair = numbers(record.input), numbers(record.target)
        assert all(np.array_equal(_rounded(side, record.dtype), side) for side in pair)
        rows = cases[f"worst_n{record.classes}"].make(FORMATS[record.dtype])
        assert any(np.array_equal(x, pair[0][0]) and np.array_equal(y, pair[1][0]) for x, y in zip(*rows, strict=True))
        assert audit.exact_kl(pair[0][0], pair[1][0]) >= 0
