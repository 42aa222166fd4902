"""Two reports side by side: what got worse, what changed, what got better."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from audit.errors import UsageError
from audit.publish.bench import bench_file, measured_with, read_bench
from audit.publish.folder import MARK
from audit.publish.schema import SCHEMA_VERSION
from audit.publish.tables import read_table

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

# Column of the summary, the factor its errors may grow by, what they count as at least, how far they scatter.
MEASURES = [
    ("scaled_error_median", MEDIAN, LEAST, 1.0),
    ("scaled_error_p99", TAIL, LEAST, TAIL_POWER),
    ("scaled_error_max", TAIL, LEAST, TAIL_POWER),
    ("correct_bits_median", 2**BITS, 0.0, 1.0),
]
METRICS = [*(column for column, *_ in MEASURES), "negative_share", "non_finite"]
COLUMNS = ["worse", "what", "path", "dtype", "where", "before", "after", "times", "allowed"]
Repeat = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class Report:
    """A report folder's tables that a comparison needs; `unmeasured` says why there is no `bench`."""

    summary: pd.DataFrame
    findings: pd.DataFrame
    environment: dict[str, object]
    bench: pd.DataFrame | None = None
    unmeasured: str = ""


def machine_key(environment: dict[str, object]) -> str:
    """The hardware alone: the models of the audited devices and the CPU's capability, never a version."""
    devices, torch = environment["devices"], environment["torch"]
    assert isinstance(devices, list) and isinstance(torch, dict)
    models = sorted({d["model"] for d in devices if d["status"] == "audited"})
    return re.sub(r"[^a-z0-9]+", "-", "-".join([*models, torch["cpu_capability"]]).lower()).strip("-")


def read_report(folder: Path) -> Report:
    """A report or baseline. Raises UsageError for a folder that is none, or one of another schema version."""
    if not (folder / MARK).is_file():
        raise UsageError(f"{folder} is no report of this audit: there is no {MARK} in it")
    try:
        environment = json.loads((folder / MARK).read_text(encoding="utf-8"))
        version, torch = environment["schema_version"], environment["torch"]["version"]
        machine_key(environment)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UsageError(f"{folder / MARK}: not of a report of this audit: {error!r}") from None
    if version != SCHEMA_VERSION:
        raise UsageError(f"{folder}: its tables have schema version {version}, this audit reads {SCHEMA_VERSION}")
    summary, findings = (read_table(folder / f"{name}.csv", name) for name in ("summary", "findings"))
    file = bench_file(folder)
    if not file.exists():
        return Report(summary, findings, environment, unmeasured=f"{folder} has no bench.json")
    if (other := measured_with(file)) != torch:
        return Report(summary, findings, environment, unmeasured=f"{file} is of torch {other}, the report of {torch}")
    return Report(summary, findings, environment, read_bench(file))


def compare(
    baseline: Report, current: Report, *, same_machine: bool = False, repeat: Repeat | None = None
) -> pd.DataFrame:
    """The changes from one report to another, a row each, the worst first.

    Columns: `worse` (it fails the comparison), `what`, `path`, `dtype`, `where` (the rest of the key), `before`,
    `after`, `times` (the factor between them) and `allowed` (the factor allowed), the last four empty where they mean
    nothing. Rows are matched by case, path, reduction and dtype, and by device where either side has several. What
    vanished fails only on the `same_machine`. `repeat` measures benchmarks anew, given their rows: what is slower each
    time fails; without it, nothing fails for its speed.

    Raises UsageError where the two have no row in common.
    """
    # A path that computed nothing is as good as not there.
    before, after = (r.summary[r.summary["negative_share"].notna()] for r in (baseline, current))
    pairs, gone = _paired(before, after, KEY)
    if pairs.empty:
        raise UsageError("the two reports have no case, path and dtype in common")
    gated = pairs[pairs["kind_before"].isin(["kl", "identity"])]
    changes = [
        _findings(baseline.findings, current.findings, "device" in pairs),
        *_accuracy(gated),
        *_vanished(gone, after, same_machine),
        *_speed(baseline, current, same_machine, repeat),
        *_versions(baseline.environment, current.environment),
    ]
    found = pd.DataFrame([row for change in changes for row in change.to_dict("records")], columns=COLUMNS)
    excess = (found["times"] / found["allowed"]).astype("float64")
    order = found.assign(excess=excess).sort_values(["worse", "excess"], ascending=False, kind="stable")
    return order[COLUMNS].reset_index(drop=True)


def _paired(old: pd.DataFrame, new: pd.DataFrame, key: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows both have, their columns suffixed _before and _after, and those only the old one has.

    `where` is the key without path and dtype. The device's name is part of the key only where either has several.
    """
    if max(old["device"].nunique(), new["device"].nunique()) > 1:
        key = [*key, "device"]
    for table in (old, new):
        if table.duplicated(key).any():
            raise UsageError(f"a table has several rows of one {', '.join(key)}")
    both = old.merge(new, on=key, how="left", suffixes=("_before", "_after"), indicator=True)
    rest = [name for name in key if name not in ("path", "dtype")]
    both["where"] = [" ".join(map(str, values)) for values in both[rest].itertuples(index=False)]
    matched = both["_merge"] == "both"
    return both[matched], both[~matched]


def _rows(pairs: pd.DataFrame, worse: bool, what: str, column: str, **factors: pd.Series | float) -> pd.DataFrame:
    before, after = (pairs[f"{column}_{side}"].astype("float64") for side in ("before", "after"))
    return pairs[["path", "dtype", "where"]].assign(worse=worse, what=what, before=before, after=after, **factors)


def _accuracy(pairs: pd.DataFrame) -> list[pd.DataFrame]:
    """What became of the errors, row by row, and throughout a path and dtype."""
    old, new = (pairs[[f"{m}_{side}" for m in METRICS]].to_numpy(np.float64) for side in ("before", "after"))
    unlike = pairs["computed_digest_before"] != pairs["computed_digest_after"]
    moved = pairs[unlike | ((old != new) & ~(np.isnan(old) & np.isnan(new))).any(axis=1)]
    if moved.empty:
        return []
    sigmas = NormalDist().inv_cdf(1 - ALARMS / (len(MEASURES) * len(moved)))
    n = moved[["n_before", "n_after"]].min(axis=1).astype("float64")
    widened = np.exp(sigmas * SPREAD / np.sqrt(n))
    # An identity that means 0 may have either sign, and its terms are not weighted by p as the scale's are: its bound
    # alone judges its size.
    sized = (pairs["kind_before"] == "kl") | pairs["correct_bits_median_before"].notna()
    changes = [_throughout(pairs[sized], sigmas)]
    for column, factor, least, power in MEASURES:
        before, after = (moved[f"{column}_{side}"].astype("float64") for side in ("before", "after"))
        if column == "correct_bits_median":
            before, after = (2.0 ** -bits.clip(lower=0) for bits in (before, after))
        allowed = (widened**power).clip(upper=WIDEST) if least else widened ** (1 + SMALL / n).clip(upper=2.0)
        allowed = allowed.clip(lower=factor)
        for worse, times in ((True, after / before.clip(lower=least)), (False, before / after.clip(lower=least))):
            found = (times >= allowed) & sized[moved.index]
            what = f"{column} {'worse' if worse else 'better'}"
            changes.append(_rows(moved[found], worse, what, column, times=times[found], allowed=allowed[found]))
    finite = moved["non_finite_after"] - moved["non_finite_before"]
    negative = (moved["negative_share_after"] > 0) & (moved["negative_share_before"] == 0) & sized[moved.index]
    bits = moved[["correct_bits_median_before", "correct_bits_median_after"]].max(axis=1)
    # Where a value is all rounding its sign is chance, unless it was exactly 0.
    telling = (bits >= SIGN_BITS) | (moved["scaled_error_max_before"] == 0)
    changes += [
        _rows(moved[finite > 0], True, "more results that are not finite", "non_finite"),
        _rows(moved[finite < 0], False, "fewer results that are not finite", "non_finite"),
        _rows(moved[negative & telling], True, "negative where there was none", "negative_share"),
        _rows(moved[negative & ~telling], False, "negative by chance where there was none", "negative_share"),
    ]
    told = {index for change in changes[1:] for index in change.index}
    quiet = moved[unlike.loc[moved.index] & ~moved.index.isin(list(told))]
    changes.append(quiet[["path", "dtype", "where"]].assign(worse=False, what="changed in the last place"))
    return changes


def _throughout(pairs: pd.DataFrame, sigmas: float) -> pd.DataFrame:
    """Paths and dtypes whose errors changed by more than MEDIAN in the median over all cases, weighted by their rows.

    A loss of a bit that no single case has the rows to show is seen here.
    """
    changes = []
    key = ["path", "dtype", *(["device"] * ("device" in pairs))]
    for (path, dtype, *device), group in pairs.groupby(key, sort=False):
        before, after = (group[f"scaled_error_median_{side}"].astype("float64") for side in ("before", "after"))
        times = (after / before).mask(before == after, 1.0).dropna().sort_values()
        weight = group.loc[times.index, "n_before"].astype("float64").cumsum()
        if times.empty:
            continue
        middle = times.iloc[int(weight.searchsorted(weight.iloc[-1] / 2))]
        allowed = max(MEDIAN, float(np.exp(sigmas * SPREAD / np.sqrt(weight.iloc[-1]))))
        for worse, factor in ((True, middle), (False, 1 / middle)):
            if factor > allowed:
                what = f"scaled error {'worse' if worse else 'better'} throughout"
                where = " ".join([f"{len(times)} cases", *map(str, device)])
                changes.append([worse, what, path, dtype, where, None, None, factor, allowed])
    return pd.DataFrame(changes, columns=COLUMNS)


def _vanished(gone: pd.DataFrame, new: pd.DataFrame, worse: bool) -> list[pd.DataFrame]:
    """What is not there any more: whole paths, dtypes and cases by their name, other rows one by one."""
    changes = []
    for name in ("path", "dtype", "case"):
        lost = gone[~gone[name].isin(new[name])]
        for value, rows in lost.groupby(name, sort=False):
            changes.append({"where": f"{name} {value}, {len(rows)} rows"})
        gone = gone.drop(lost.index)
    return [t.assign(worse=worse, what="vanished") for t in (pd.DataFrame(changes), gone[["path", "dtype", "where"]])]


def _speed(baseline: Report, current: Report, same_machine: bool, repeat: Repeat | None) -> list[pd.DataFrame]:
    """Benchmarks whose ratio to the calibration changed, on hardware that is the same."""
    if machine_key(baseline.environment) != machine_key(current.environment):
        return [_note("speed not compared", "the machines are unlike")]
    if baseline.bench is None or current.bench is None:
        return [_note("speed not compared", baseline.unmeasured or current.unmeasured)]
    pairs, gone = _paired(baseline.bench, current.bench, SPEED_KEY)
    slower = _slower(pairs)
    for _ in range(REPEATS):
        if repeat is None or slower.empty:
            break
        slower = _slower(_paired(baseline.bench, repeat(slower), SPEED_KEY)[0])
    what = f"slower, {REPEATS} times in a row" if repeat else "slower, not repeated"
    faster = pairs.assign(times=pairs["ratio_before"] / pairs["ratio_after"])
    faster = faster[faster["times"] > SLOWER]
    return [
        _rows(slower, repeat is not None, what, "seconds", times=slower["times"], allowed=SLOWER),
        _rows(faster, False, "faster", "seconds", times=faster["times"], allowed=SLOWER),
        gone[["path", "dtype", "where"]].assign(worse=same_machine, what="benchmark vanished"),
    ]


def _slower(pairs: pd.DataFrame) -> pd.DataFrame:
    """Those with a larger ratio whose seconds are more too: a faster calibration makes no path slower."""
    times = pairs["ratio_after"] / pairs["ratio_before"]
    slower = (times > SLOWER) & (pairs["seconds_after"] > pairs["seconds_before"])
    return pairs.assign(times=times)[slower].rename(columns={"device_after": "device"})


def _findings(before: pd.DataFrame, after: pd.DataFrame, by_device: bool) -> pd.DataFrame:
    """New findings of cases that had none of their kind, acknowledged ones included; and those that are gone."""
    key = ["path", "dtype", "symptom", *(["device"] * by_device), "case"]
    old, new = (t.assign(case=t["cases"].str.split()).explode("case") for t in (before, after))
    changes = []
    for rows, others, worse, what in (
        (new[new["status"] == "new"], old, True, "new finding"),
        (old[old["status"] == "new"], new, False, "finding gone"),
    ):
        known = set(others[key].itertuples(index=False, name=None))
        for values in rows[key].itertuples(index=False, name=None):
            if values not in known:
                path, dtype, *rest = map(str, values)
                changes.append({"worse": worse, "what": what, "path": path, "dtype": dtype, "where": " ".join(rest)})
    return pd.DataFrame(changes, columns=COLUMNS)


def _versions(before: dict[str, object], after: dict[str, object]) -> list[pd.DataFrame]:
    old, new = _flat(before), _flat(after)
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    changes = [{"what": f"{name} changed", "before": str(old.get(name)), "after": str(new.get(name))} for name in names]
    return [pd.DataFrame(changes).assign(worse=False)]


def _flat(environment: dict[str, object]) -> dict[str, object]:
    """The versions of an environment by name: one level deep."""
    flat: dict[str, object] = {}
    for name in ("audit", "python", "platform", "driver", "torch", "packages"):
        value = environment.get(name)
        flat |= {f"{name} {key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _note(what: str, where: str) -> pd.DataFrame:
    return pd.DataFrame([{"worse": False, "what": what, "where": where}])
