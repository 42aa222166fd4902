"""Bounds hold for sound kernels whatever they are fed, and are tight enough to be of use."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from audit.formats import FORMATS
from audit.judge.bounds import Exact, bound, within_bound
from audit.judge.errors import error_columns
from audit.paths import Path, registered
from audit.reference.exact import row_references
from tests.battery.sound import SOUND

ROWS = 8
FAMILIES = {
    "random": lambda x, y: (x, y),
    "wide": lambda x, y: (30 * x, 30 * y),
    "near": lambda x, y: (x, x + 1e-4 * y),
    "nearer": lambda x, y: (10 * x, 10 * x + 1e-7 * y),
    "identical": lambda x, y: (x, x),
    "flat": lambda x, y: (1e-3 * x, 1e-3 * y),
    "offset": lambda x, y: (x + 1000, y - 1000),
    "one_hot": lambda x, y: (x, y + 20 * (np.arange(y.shape[1]) == 1)),
    "both_one_hot": lambda x, y: (x + 15 * (np.arange(y.shape[1]) == 1), y + 20 * (np.arange(y.shape[1]) == 1)),
    "underflow": lambda x, y: (x, y - 104 * (np.arange(y.shape[1]) % 2)),
    "rising": lambda x, y: (np.linspace(0, 40, x.shape[1]) + 0 * x, np.linspace(0, 39, x.shape[1]) + 0 * y),
    "falling": lambda x, y: (np.linspace(4, 0, x.shape[1]) + 0 * x, np.linspace(3, 0, x.shape[1]) + 0 * y),
}


def problems(sizes: list[int], seed: int) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    generator = np.random.default_rng(seed)
    for family, make in FAMILIES.items():
        for classes in sizes:
            x, y = generator.standard_normal((2, ROWS, classes))
            for dtype in FORMATS:
                yield family, dtype, *(torch.tensor(t).to(getattr(torch, dtype)) for t in make(x, y))


def trial(paths: list[Path], sizes: list[int], seed: int) -> pd.DataFrame:
    """A row a result: its error, its bound, and whether it keeps it."""
    parts = []
    for family, dtype, x, y in problems(sizes, seed):
        numbers = x.double().numpy(), y.double().numpy()
        references, exact = row_references(*numbers, "logits"), Exact.of(*numbers, "logits")
        for path in (p for p in paths if dtype in p.dtypes):
            computed = path.function(x, y).double().numpy()
            parts.append(
                pd.DataFrame(
                    {
                        "path": path.name,
                        "family": family,
                        "dtype": dtype,
                        "classes": x.shape[1],
                        "computed": computed,
                        "result_dtype": dtype,
                        "result_class": "finite",
                        "reference": references,
                        "scale": 1.0,
                        "bound": bound(path, exact, dtype),
                        "rest": np.nan,
                    }
                )
            )
    table = pd.concat(parts, ignore_index=True)
    table = pd.concat([table.drop(columns="result_class"), error_columns(table)], axis=1)
    return table.assign(kept=within_bound(table).astype(bool))


def sound_paths() -> list[Path]:
    torchs = [p for p in registered() if p.name in ("log_target", "softmax_log", "log_softmax", "thread_era")]
    return [Path(f.__name__, f, "") for f in SOUND] + [p for p in torchs if p.target_kind == "logits"]


def violations(table: pd.DataFrame) -> pd.DataFrame:
    """Rows beyond their bound, but for the two limits of torch that are acknowledged."""
    broken = table[~table["kept"]]
    underflow = (broken["path"] == "softmax_log") & (broken["result_class"] != "finite")
    half_sum = broken["dtype"].isin(["float16", "bfloat16"]) & (broken["path"] == "log_softmax")
    return broken[~underflow & ~half_sum]


def test_no_sound_kernel_is_beyond_its_bound() -> None:
    table = trial(sound_paths(), [2, 10, 300], seed=1)
    assert len(table) > 15_000
    broken = violations(table)
    assert broken.empty, broken.groupby(["path", "family", "dtype"]).size().to_string()


@pytest.mark.slow
def test_no_sound_kernel_is_beyond_its_bound_in_100_000_trials() -> None:
    tables = [
        trial(sound_paths(), sizes, seed) for seed, sizes in enumerate([[2, 3, 10, 81]] * 4 + [[1_000, 5_000]] * 2)
    ]
    table = pd.concat(tables, ignore_index=True)
    ratio = (table["bound"] / table["abs_error"]).replace(np.inf, np.nan)
    print(f"\n{len(table):,} results; bound / error, quantiles:")
    print(ratio.groupby([table["path"], table["dtype"]]).quantile([0.0, 0.01, 0.5]).unstack().round(1).to_string())
    assert len(table) > 100_000
    broken = violations(table)
    assert broken.empty, broken.groupby(["path", "family", "dtype"]).size().to_string()


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_bound_grows_with_what_a_path_declares_less(dtype: str) -> None:
    """A kernel that declares nothing may do everything a torch path may."""
    x, y = (
        torch.tensor(t).to(getattr(torch, dtype)).double().numpy()
        for t in np.random.default_rng(3).normal(size=(2, 5, 50))
    )
    exact = Exact.of(x, y, "logits")
    undeclared = bound(Path("own", lambda x, y: x, ""), exact, dtype)
    for path in registered():
        if (
            path.kind == "kl"
            and path.target_kind == "logits"
            and path.reduction == "none"
            and path.name not in ("softmax_log", "generalised", "softmax_dtype")
            and not path.name.startswith("scipy")
            and dtype in path.dtypes
        ):
            assert (bound(path, exact, dtype) <= undeclared).all(), path.name


@pytest.mark.parametrize(
    ("computed", "reference", "limit", "rest", "dtype", "kept"),
    [
        (float("nan"), "1", 1.0, np.nan, "float32", False),
        (float("nan"), "nan", 1.0, np.nan, "float32", True),
        (float("inf"), "inf", 1.0, np.nan, "float32", True),
        (float("-inf"), "inf", 1.0, np.nan, "float32", False),
        (3.0, "inf", 1.0, np.nan, "float32", False),
        (3.0, "inf", 1.0, 2.5, "float32", True),
        (3.0, "inf", 1.0, 1.5, "float32", False),
        (float("inf"), "65519", 1.0, np.nan, "float16", False),
        (float("inf"), "65535.5", 1.0, np.nan, "float16", True),
        (float("inf"), "1e400", 1.0, np.nan, "float64", True),
        (float("-inf"), "65535.5", 1.0, np.nan, "float16", False),
        (2.0, "1", 1.0, np.nan, "float32", True),
        (2.0, "0.9999999999999", 1.0, np.nan, "float32", False),
    ],
)
def test_what_keeps_a_bound(computed, reference, limit, rest, dtype, kept) -> None:
    row = {"computed": computed, "reference": reference, "bound": limit, "rest": rest, "result_dtype": dtype}
    table = pd.DataFrame([row | {"result_class": "", "scale": 1.0}])
    table = pd.concat([table.drop(columns="result_class"), error_columns(table)], axis=1)
    assert within_bound(table).tolist() == [kept]
