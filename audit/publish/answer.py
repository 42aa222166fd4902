"""What the numbers say, in sentences and the few tables a person wants; for the page and for report.md alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

Tables = Mapping[str, pd.DataFrame]


def sentences(tables: Tables) -> list[str]:
    """Does log_softmax drift less than softmax then log; is anything wrong; does the thread's 1e-11 reproduce."""
    return [s for s in (_softmax_or_log(tables), _wrong(tables), _thread(tables)) if s]


def _softmax_or_log(tables: Tables) -> str:
    errors = tables["errors"]
    parts = []
    for device, rows in errors[errors["reduction"] == "none"].groupby("device", sort=False):
        wide = rows[rows["path"].isin(["softmax_log", "log_softmax"])]
        error = wide.pivot_table(index=["case", "row", "dtype"], columns="path", values="scaled_error", aggfunc="first")
        if {"softmax_log", "log_softmax"} <= set(error):
            lost = wide[(wide["path"] == "softmax_log") & ~wide["result_class"].isin(["finite"])]
            both = error.dropna()
            ratio = both["softmax_log"].median() / both["log_softmax"].median()
            less = "less" if ratio > 1.05 else "more" if ratio < 0.95 else "as much"
            than = "as" if less == "as much" else "than"
            parts.append(
                f"On {device}, where both are finite, log_softmax drifts {less} {than} softmax then log: its median "
                f"scaled error is {both['log_softmax'].median():.2g} against {both['softmax_log'].median():.2g} "
                f"({len(both):,} pairs); softmax then log gives no finite value in {len(lost):,} more."
            )
    return " ".join(parts)


def _wrong(tables: Tables) -> str:
    findings = tables["findings"]
    new = findings[findings["status"] == "new"]
    known = findings[findings["status"] != "new"]
    bounds = f"{int(known['results'].sum()):,} results are beyond their bound for {known['acknowledged_by'].nunique()} "
    known_text = f"{bounds}understood reasons." if len(known) else "Every gated result keeps its bound."
    if new.empty:
        return f"Nothing new is wrong. {known_text}"
    names = ", ".join(sorted({f"{f.path} {f.dtype} {f.symptom}" for f in new.itertuples()})[:5])
    return f"{len(new)} new findings: {names}. {known_text}"


def _thread(tables: Tables) -> str:
    if "thread" not in tables:
        return ""
    thread = tables["thread"]
    quotes = thread[thread["subject"] == "KLDivLoss, equal logits"]
    parts = []
    for implementation, rows in quotes.groupby("implementation", sort=False):
        name = "today's torch" if implementation == "today" else "the kernels of 2017, emulated,"
        percentiles = ", ".join(f"{p:.0f}" for p in rows["percentile"])
        parts.append(
            f"{name} gives {rows['median_magnitude'].iloc[0]:.1e} (the quotes are at percentiles {percentiles})"
        )
    return f"The thread's 1e-11 for equal logits: {'; '.join(parts)}." if parts else ""


def matrix(errors: pd.DataFrame) -> pd.DataFrame:
    """Path x dtype and device: median correct bits, and the share of negative results."""
    gated = errors[errors["kind"].isin(["kl", "identity"])]
    groups = gated.groupby(["path", "dtype", "device"], sort=False, observed=True)
    table = groups.agg(
        results=("computed", "size"),
        correct_bits=("correct_bits", "median"),
        scaled_error=("scaled_error", "median"),
        negative=("negative", lambda s: float(s.astype("float64").mean())),
        non_finite=("result_class", lambda s: int((~s.isin(["finite", "not_computed"])).sum())),
        worst_of_bound=("drift", lambda s: _worst(gated.loc[s.index])),
    )
    return table.reset_index()


def _worst(rows: pd.DataFrame) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float((rows["abs_error"] / rows["bound"]).max())
