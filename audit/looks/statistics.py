"""statistics.csv: what people compare two models by, of the exact values of a file's rows and of what paths gave."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

PERCENTILES = {"p1": 1, "p5": 5, "p10": 10, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "p99_9": 99.9}
EXACT, FORWARD, REVERSE = "exact", "target_input", "input_target"
COLUMNS = ["path", "dtype", "device", "computed", "exact", "reverse", "same_top", "abs_error"]


def statistics(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows with COLUMNS, in order of first appearance: a row for each path, dtype and device, and for the exact
    values of both directions in each dtype."""
    parts = []
    for dtype, group in rows.groupby("dtype", sort=False):
        own = list(group.groupby(["path", "device"], sort=False))
        first = own[0][1]
        parts += [
            _row(EXACT, dtype, "", FORWARD, first["exact"], first["same_top"]),
            _row(EXACT, dtype, "", REVERSE, first["reverse"], first["same_top"]),
        ]
        for (path, device), results in own:
            row = _row(path, dtype, device, FORWARD, results["computed"], results["same_top"])
            parts.append(row | {"error_p99": _percentiles(results["abs_error"], [99.0])[0]})
    return pd.DataFrame(parts)


def _row(
    path: object, dtype: object, device: object, direction: str, values: pd.Series, same: pd.Series
) -> dict[str, object]:
    finite = values[np.isfinite(values)].to_numpy(np.float64)
    count = len(finite)
    return {
        "path": path, "dtype": dtype, "device": device, "direction": direction,
        "n": len(values), "non_finite": len(values) - count,
        "mean": finite.mean() if count else np.nan,
        "standard_error": finite.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan,
        "minimum": finite.min(initial=np.inf) if count else np.nan,
        **dict(zip(PERCENTILES, _percentiles(values, PERCENTILES.values()), strict=True)),
        "maximum": finite.max() if count else np.nan,
        "same_top_class": same.mean(),
    }  # fmt: skip


def _percentiles(values: pd.Series, of: Iterable[float]) -> NDArray[np.float64]:
    finite = values[np.isfinite(values)].to_numpy(np.float64)
    of = list(of)
    return np.percentile(finite, of) if len(finite) else np.full(len(of), np.nan)
