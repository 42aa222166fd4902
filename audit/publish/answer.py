"""What the numbers say, in sentences and the few tables a person wants; for the page and for report.md alike."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from audit.base.kinds import GATED
from audit.publish.devices import failed_devices

Tables = Mapping[str, pd.DataFrame]
STARRED = "ran on other cases than most paths of its dtype"
MEDIANS = f"Median correct bits of rows of logits, and the share of negative values; * {STARRED}"


def sentences(tables: Tables) -> list[str]:
    """Does log_softmax drift less than softmax, then log; is all well; does the thread's 1e-11 reproduce, and why."""
    return [s for s in (_stable_or_not(tables), _wrong(tables), _thread(tables), origin(tables)) if s]


PARTS = {
    "softmax": "the rounding of the target's probabilities",
    "shift": "the rounding of log sum exp, one number a row",
    "log_softmax": "the rounding of the log-probabilities, class by class",
    "log": "the rounding of the probabilities' logarithms",
    "product": "the rounding of the terms",
    "summation": "the rounding of the sum over classes",
    "output": "the rounding of the result",
}


def origin(tables: Tables) -> str:
    """Which rounding makes the drift of equal logits, as the thread has it, and which sign it gets; "" without data."""
    if "attribution" not in tables:
        return ""
    rows = tables["attribution"].query("case == 'identical_n1000' and dtype == 'float32' and drift != 0")
    if rows.empty:
        return ""
    sizes = rows[list(PARTS)].abs().sum().sort_values(ascending=False)
    (first, second), shares = sizes.index[:2], (sizes / sizes.sum()).iloc[:2]
    signs = int(((rows["drift"] * rows["mass_difference"]) > 0).sum())
    return (
        f"For equal logits in float32 the drift is made by {PARTS[first]} ({shares.iloc[0]:.0%} of the parts' sizes), "
        f"and {PARTS[second]} ({shares.iloc[1]:.0%}); its sign is that of the mass of the rounded probabilities less "
        f"that of the rounded log-probabilities' exponentials, in {signs} of {len(rows)} rows."
    )


def _stable_or_not(tables: Tables) -> str:
    """log_softmax against softmax then log; where that did not run, against the first path there is."""
    errors = tables["errors"]
    errors = errors[errors["reduction"].eq("none") & errors["kind"].eq("kl")]
    paths = list(errors["path"].unique())
    other = "softmax_log" if "softmax_log" in paths else next((p for p in paths if p != "log_softmax"), "")
    parts = []
    for device, rows in errors[errors["path"].isin([other, "log_softmax"])].groupby("device", sort=False):
        error = rows.pivot_table(index=["case", "row", "dtype"], columns="path", values="scaled_error", aggfunc="first")
        if {other, "log_softmax"} <= set(error):
            both = error.dropna()
            found: dict[str, list[str]] = {}
            for dtype, median in both.groupby("dtype").median().reindex(rows["dtype"].unique()).dropna().iterrows():
                ratio = median["log_softmax"] / max(median[other], 1e-300)
                much = "less" if ratio < 0.95 else "more" if ratio > 1.05 else "as much"
                numbers = f"{median['log_softmax']:.2g} u against {median[other]:.2g} u"
                found.setdefault(much, []).append(f"{dtype} ({numbers})")
            drifts = ", ".join(f"{much} in {', '.join(dtypes)}" for much, dtypes in found.items())
            name = "softmax then log" if other == "softmax_log" else other
            lost = rows.loc[rows["result_class"] != "finite", "path"].value_counts()
            parts.append(
                f"compared with {name} on {device}, log_softmax drifts {drifts}: median scaled errors of {len(both):,} "
                "rows where both are finite; it gives no finite value in "
                f"{lost.get('log_softmax', 0):,} results against {lost.get(other, 0):,}"
            )
    return _sentence("; ".join(parts))


def example(finding: Mapping[Hashable, Any]) -> str:
    """The result that a finding shows: its note where nothing was computed."""
    if finding["symptom"] == "lossy":
        off, times = finding["scaled_error"], finding["worst_ratio"]
        return f"sound, but {off:,.0f} roundoffs off where {off / times:,.0f} are attainable"
    return str(finding["note"]) or (
        f"computed {finding['computed']:.6g}, exact {float(finding['reference']):.6g}, bound {finding['bound']:.3g}"
    )


def _wrong(tables: Tables) -> str:
    findings = tables["findings"]
    new, lossy, known = (findings[findings["status"] == status] for status in ("new", "lossy", "acknowledged"))
    names = [f"{f.path} {f.dtype} {f.symptom}" for f in new.itertuples()]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    first = f"{len(new)} new findings ({', '.join(names[:5])}{more})" if names else "nothing new is wrong"
    if len(known):
        reasons = known["acknowledged_by"].nunique()
        first += f"; {known['results'].sum():,} results miss their bound for {reasons} known reasons"
    if len(lossy):
        worst = lossy.sort_values("worst_ratio").to_dict("records")[-1]
        paths = ", ".join(lossy["path"].unique())
        first += f"; {lossy['results'].sum():,} results of {paths} are lossy: {worst['path']} {worst['dtype']} is "
        first += f"{example(worst)}"
    return _sentence("; ".join([*failed_devices(tables["errors"]), first]))


def _thread(tables: Tables) -> str:
    if "thread" not in tables:
        return ""
    thread = tables["thread"]
    quotes = thread[thread["subject"] == "KLDivLoss, equal logits"]
    parts = []
    for (implementation, device), rows in quotes.groupby(["implementation", "device"], sort=False):
        name = "with today's torch" if implementation == "today" else "with the kernels of 2017, emulated,"
        percentiles = ", ".join(f"{p:.0f}" for p in rows["percentile"])
        parts.append(
            f"{name} on {device} {(rows['reproduced'] == 'yes').sum()} of {len(rows)} quotes (median magnitude "
            f"{rows['median_magnitude'].iloc[0]:.1e}, quotes at percentiles {percentiles})"
        )
    return f"The thread's 1e-11 for equal logits reproduces: {'; '.join(parts)}." if parts else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def comparable(errors: pd.DataFrame) -> pd.DataFrame:
    """Of the judged results those that can be set beside each other: one a row, of logits; all of a path with no such.

    `label` is the path's name, with a star for one that is STARRED.
    """
    judged = errors[errors["kind"].isin(GATED)]
    like = judged["reduction"].eq("none") & judged["target_kind"].eq("logits")
    rows = judged[like | ~like.groupby(judged["path"]).transform("any")]
    counts = rows.groupby(["device", "dtype", "path"], observed=True).size()
    unlike: set[str] = set()
    for _, sizes in counts.groupby(["device", "dtype"]):
        unlike |= set(sizes.index[sizes != sizes.mode().iloc[-1]].get_level_values("path"))
    return rows.assign(label=[f"{path} *" if path in unlike else path for path in rows["path"]])


def matrix(errors: pd.DataFrame) -> pd.DataFrame:
    """Path x dtype and device: median correct bits, and the share of negative results, of what is `comparable`."""
    key = ["path", "dtype", "device"]
    judged = errors[errors["kind"].isin(GATED)]
    table = (
        comparable(errors)
        .astype({"negative": "float64"})
        .groupby(key, sort=False, observed=True)
        .agg(
            label=("label", "first"),
            results=("computed", "size"),
            correct_bits=("correct_bits", "median"),
            negative=("negative", "mean"),
        )
    )
    table["worst_of_bound"] = (judged["abs_error"] / judged["bound"]).groupby([judged[name] for name in key]).max()
    return table.reset_index()
