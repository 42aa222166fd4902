"""Two reports side by side: what got worse, what changed, what got better."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from audit.base.kinds import ACKNOWLEDGED, GATED, LOSSY
from audit.base.usage import UsageError
from audit.regress.reports import Report, machine_key

KEY = ["case", "path", "reduction", "dtype"]
SPEED_KEY = ["path", "dtype", "rows", "classes", "direction"]

# Factors, each with its reason; docs/nightly.md derives them, and tests hold them to their promise by resampling.
# A median of scaled errors moves by a third between sound kernels that sum in another order, so half as much again is
# news. The largest of n errors, and the 99th percentile, scatter more: twice.
MEDIAN, TAIL, BITS = 1.5, 2.0, 1.0
# Fewer rows say less. The median of n rounding errors has a relative standard deviation of 1.17 / sqrt(n) where they
# are normal, the quotient of two such medians one of 1.65 / sqrt(n). The factor grows with it, so far that a report
# all of whose results are rounded anew, with no loss, raises an alarm in one of a hundred comparisons.
SPREAD, ALARMS = 1.65, 0.01
# The largest errors scatter twice as far where tails are exponential, as those of rows of unlike size are.
TAIL_POWER = 2.0
# The median of few has more chance to have been small than a normal law gives it: 1 + SMALL / n times as far, at most
# twice, fitted to medians of 1 to 64 normal errors. Where errors count as LEAST at least, that does not matter.
SMALL = 5.0
LEAST = 0.25  # roundoffs: below that an error is no error, however it multiplies
WIDEST = 32.0  # a sound result, though it stands alone, is within 8 roundoffs: 32 times the least
# Where the median has 3 correct bits, a value is 5 standard deviations of its drift away from 0: no sign is chance.
SIGN_BITS = 3.0
# Unchanged ratios to the calibration stay within 1.4 of each other with twice as many busy processes as cores, within
# 2.5 with ten times as many, where small calls lose their caches. A kernel that takes twice as long must show, every
# time it is repeated.
SLOWER, REPEATS = 1.7, 3
# The middle of n of them scatters by the root of n less; a slowdown that FEWEST or more share shows from SHARED on.
SHARED, FEWEST = 1.2, 4
SPEED_LEVELS = {
    "slower": [*SPEED_KEY, "device"],
    "slower throughout a path": ["path", "device"],
    "slower throughout": ["device"],
}

# Column of the summary, the factor its errors may grow by, what they count as at least, how far they scatter.
MEASURES = [
    ("scaled_error_median", MEDIAN, LEAST, 1.0),
    ("scaled_error_p99", TAIL, LEAST, TAIL_POWER),
    ("scaled_error_max", TAIL, LEAST, TAIL_POWER),
    ("correct_bits_median", 2**BITS, 0.0, 1.0),
]
METRICS = [*(column for column, *_ in MEASURES), "negative_share", "non_finite"]
UNITS = {"correct_bits_median": "bits", "seconds": "s", "negative_share": "of all", "non_finite": "results"}
COLUMNS = ["worse", "what", "path", "dtype", "device", "case", "reduction", "where"]
COLUMNS += ["before", "after", "unit", "times", "allowed"]
Repeat = Callable[[pd.DataFrame], pd.DataFrame]
Changes = list[dict[Hashable, Any]]


def compare(
    baseline: Report, current: Report, *, same_machine: bool = False, repeat: Repeat | None = None
) -> pd.DataFrame:
    """The changes from one report to another, a row each, the worst first.

    Columns: `worse` (it fails the comparison), `what`, `path`, `dtype`, `device`, `case`, `reduction`, `where` (what
    else it is of), `before`, `after`, their `unit`, `times` (the factor by which the error, or the time, changed) and
    `allowed` (the factor allowed), empty where they mean nothing. Rows are matched by case, path, reduction and dtype,
    and by device where either side has several. What vanished fails only on the `same_machine`. `repeat` measures
    benchmarks anew, given their rows: what is slower each time fails; without it, nothing fails for its speed.

    Raises UsageError where the two have no row in common.
    """
    # A path that computed nothing is as good as not there.
    before, after = (r.summary[r.summary["negative_share"].notna()] for r in (baseline, current))
    pairs, gone = _paired(before, after, KEY)
    if pairs.empty:
        raise UsageError("the two reports have no case, path and dtype in common")
    changes = [
        *_findings(baseline.findings, current.findings, "device_after" not in pairs),
        *changed_errors(pairs),
        *_vanished(gone, after, same_machine),
        *_speed(baseline, current, same_machine, repeat),
        *_versions(baseline.environment, current.environment),
    ]
    found = pd.DataFrame(changes, columns=COLUMNS).fillna({"unit": ""})
    excess = found.assign(excess=(found["times"] / found["allowed"]).astype("float64"))
    return excess.sort_values(["worse", "excess"], ascending=False, kind="stable", ignore_index=True)[COLUMNS]


def _paired(old: pd.DataFrame, new: pd.DataFrame, key: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows both have, their columns suffixed _before and _after, and those only the old one has.

    The device's name is part of the key only where either has several.
    """
    if max(old["device"].nunique(), new["device"].nunique()) > 1:
        key = [*key, "device"]
    for table in (old, new):
        if table.duplicated(key).any():
            raise UsageError(f"a table has several rows of one {', '.join(key)}")
    both = old.merge(new, on=key, how="left", suffixes=("_before", "_after"), indicator=True)
    if "device" not in both:
        both["device"] = both["device_after"].fillna(both["device_before"])
    if "rows" in both:
        both["where"] = [f"{b.rows} x {b.classes} {b.direction}" for b in both[SPEED_KEY].itertuples()]
    matched = both["_merge"] == "both"
    return both[matched], both[~matched]


def _sides(pairs: pd.DataFrame, column: str) -> tuple[pd.Series, pd.Series]:
    return pairs[f"{column}_before"].astype("float64"), pairs[f"{column}_after"].astype("float64")


def _rows(pairs: pd.DataFrame, worse: bool, what: str, column: str = "") -> Changes:
    """A change a row, with its `times` and `allowed` where it has them; `column` is what is shown of both sides."""
    changes = pairs.assign(worse=worse, what=what, unit="")
    if column:
        changes["unit"] = UNITS.get(column, "u")
        changes["before"], changes["after"] = _sides(pairs, column)
    return changes.reindex(columns=COLUMNS).to_dict("records")


def changed_errors(pairs: pd.DataFrame) -> Changes:
    """What became of the errors, row by row; and where they are of cases, throughout a path and dtype."""
    pairs = pairs[pairs["kind_before"].isin(GATED)]
    old, new = (pairs[[f"{m}_{side}" for m in METRICS]].to_numpy(np.float64) for side in ("before", "after"))
    unlike = pairs["computed_digest_before"] != pairs["computed_digest_after"]
    moved = pairs[unlike | ((old != new) & ~(np.isnan(old) & np.isnan(new))).any(axis=1)]
    if moved.empty:
        return []
    sigmas = NormalDist().inv_cdf(1 - ALARMS / (len(MEASURES) * len(moved)))
    n = moved[["n_before", "n_after"]].min(axis=1).astype("float64")
    widened = np.e ** (sigmas * SPREAD / n**0.5)
    # An identity that means 0 may have either sign, and its terms are not weighted by p as the scale's are: its bound
    # alone judges its size.
    sized = (pairs["kind_before"] == "kl") | pairs["correct_bits_median_before"].notna()
    changes = _throughout(pairs[sized], sigmas) if "case" in pairs else []
    sized, quiet = sized[moved.index], unlike[moved.index]
    for column, factor, least, power in MEASURES:
        before, after = _sides(moved, column)
        if column == "correct_bits_median":
            before, after = (2.0 ** -bits.clip(lower=0) for bits in (before, after))
        allowed = (widened**power).clip(upper=WIDEST) if least else widened ** (1 + SMALL / n).clip(upper=2.0)
        allowed = allowed.clip(lower=factor)
        for sign, times in (("worse", after / before.clip(lower=least)), ("better", before / after.clip(lower=least))):
            found = (times >= allowed) & sized
            quiet &= ~found
            changed = moved.assign(times=times, allowed=allowed)[found]
            changes += _rows(changed, sign == "worse", f"{column} {sign}", column)
    finite = moved["non_finite_after"] - moved["non_finite_before"]
    negative = (moved["negative_share_after"] > 0) & (moved["negative_share_before"] == 0) & sized
    bits = moved[["correct_bits_median_before", "correct_bits_median_after"]].max(axis=1)
    # Where a value is all rounding its sign is chance, unless it was exactly 0.
    telling = (bits >= SIGN_BITS) | (moved["scaled_error_max_before"] == 0)
    for found, worse, what, column in (
        (finite > 0, True, "more results that are not finite", "non_finite"),
        (finite < 0, False, "fewer results that are not finite", "non_finite"),
        (negative & telling, True, "negative where there was none", "negative_share"),
        (negative & ~telling, False, "negative where there was none, which may be chance", "negative_share"),
    ):
        quiet &= ~found
        changes += _rows(moved[found], worse, what, column)
    return changes + _rows(moved[quiet], False, "changed in the last place")


def _throughout(pairs: pd.DataFrame, sigmas: float) -> Changes:
    """Paths and dtypes whose errors changed by more than MEDIAN in the median over all cases, weighted by their rows.

    A loss of a bit that no single case has the rows to show is seen here.
    """
    changes: Changes = []
    for _, group in pairs.groupby(["path", "dtype", "device"], sort=False):
        before, after = _sides(group, "scaled_error_median")
        times = (after / before).mask(before == after, 1.0).dropna().sort_values()
        if times.empty:
            continue
        weight = group.loc[times.index, "n_before"].astype("float64").cumsum()
        middle = times.iloc[int(weight.searchsorted(weight.iloc[-1] / 2))]
        allowed = max(MEDIAN, float(np.exp(sigmas * SPREAD / np.sqrt(weight.iloc[-1]))))
        row = group[["path", "dtype", "device"]][:1].assign(where=f"{len(times)} cases", allowed=allowed)
        for sign, factor in (("worse", middle), ("better", 1 / middle)):
            if factor > allowed:
                changes += _rows(row.assign(times=factor), sign == "worse", f"scaled error {sign} throughout")
    return changes


def _vanished(gone: pd.DataFrame, new: pd.DataFrame, worse: bool) -> Changes:
    """What is not there any more: whole paths, dtypes and cases by their name, other rows one by one."""
    changes: Changes = []
    for name in ("path", "dtype", "case"):
        lost = gone[~gone[name].isin(new[name])]
        for value, rows in lost.groupby(name, sort=False):
            changes.append({"worse": worse, "what": "vanished", name: value, "where": f"{len(rows)} rows"})
        gone = gone.drop(lost.index)
    return changes + _rows(gone, worse, "vanished")


def _speed(baseline: Report, current: Report, same_machine: bool, repeat: Repeat | None) -> Changes:
    """Benchmarks whose ratio to the calibration changed, on hardware that is the same."""
    unlike = machine_key(baseline.environment) != machine_key(current.environment)
    if unlike or baseline.bench is None or current.bench is None:
        why = "the machines are unlike" if unlike else baseline.unmeasured or current.unmeasured
        return [{"worse": False, "what": "speed not compared", "where": why}]
    pairs, gone = _paired(baseline.bench, current.bench, SPEED_KEY)
    repeated = f"{REPEATS} times in a row" if repeat else "not repeated"
    changes: Changes = []
    for what, level in SPEED_LEVELS.items():
        slower = _slower(pairs, level)
        for _ in range(REPEATS):
            if repeat is None or slower.empty:
                break
            slower = _slower(_paired(baseline.bench, repeat(slower), SPEED_KEY)[0], level)
        groups = slower.drop_duplicates(level).drop(columns=[name for name in SPEED_KEY if name not in level])
        changes += _rows(groups, repeat is not None, f"{what}, {repeated}", "seconds" if what == "slower" else "")
    faster = pairs["ratio_before"] / pairs["ratio_after"]
    changes += _rows(pairs.assign(times=faster, allowed=SLOWER)[faster > SLOWER], False, "faster", "seconds")
    return changes + _rows(gone, same_machine, "benchmark vanished")


def _slower(pairs: pd.DataFrame, level: list[str]) -> pd.DataFrame:
    """The benchmarks of each group, alike in `level`, whose ratio rose in the geometric middle by more than is allowed.

    Their seconds must have risen too: a faster calibration makes no path slower.
    """
    alike = [pairs[name] for name in level]
    groups = {m: (pairs[f"{m}_after"] / pairs[f"{m}_before"]).groupby(alike) for m in ("ratio", "seconds")}
    times, took = (group.transform(lambda factors: np.exp(np.log(factors).median())) for group in groups.values())
    n = groups["ratio"].transform("size")
    allowed = np.maximum(SHARED, SLOWER ** (1 / np.sqrt(n)))
    pairs, found = pairs.assign(times=times, allowed=allowed), (times > allowed) & (took > 1)
    if "rows" not in level:
        pairs, found = pairs.assign(where=n.astype(str) + " benchmarks"), found & (n >= FEWEST)
    slower: pd.DataFrame = pairs[found]
    return slower


def _findings(before: pd.DataFrame, after: pd.DataFrame, by_device: bool) -> Changes:
    """New findings of cases that had none of their kind, acknowledged ones included; and those that are gone.

    What is lossy is so by how it sums, whatever the case: a path and dtype becomes it, or is it no more.
    """
    key = ["path", "dtype", "symptom", "case", *(["device"] * by_device)]
    cases = (t["cases"].mask(t["status"] == LOSSY, "*") for t in (before, after))
    old, new = (t.assign(case=c.str.split()).explode("case") for t, c in zip((before, after), cases, strict=True))
    changes: Changes = []
    for rows, others, worse, what in ((new, old, True, "new finding"), (old, new, False, "finding gone")):
        rows = rows.loc[rows["status"] != ACKNOWLEDGED, key]
        both = rows.merge(others[key].drop_duplicates(), how="left", indicator=True).assign(where=rows["symptom"].array)
        changes += _rows(both[both["_merge"] == "left_only"], worse, what)
    return changes


def _versions(before: dict[str, Any], after: dict[str, Any]) -> Changes:
    names = ("audit", "python", "platform", "driver", "torch", "packages")
    environments = ({name: given.get(name) for name in names} for given in (before, after))
    old, new = (pd.json_normalize(given, sep=" ").iloc[0].to_dict() for given in environments)
    return [
        {"worse": False, "what": f"{name} changed", "before": str(old.get(name)), "after": str(new.get(name))}
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
