"""What is said of a finding, and of a kernel of the user's own in ten lines."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from audit.base.kinds import ACKNOWLEDGED, LOSSY, SHARED, failing

Tables = Mapping[str, pd.DataFrame]
LINES = 10
# torch.testing.assert_close's rtol and atol where none are given.
CLOSE = {"float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float32": (1.3e-6, 1e-5), "float64": (1e-7, 1e-7)}


def counted(number: int, what: str) -> str:
    """ "1 result", "2 results"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def headline(finding: Mapping[Hashable, Any]) -> str:
    """What is wrong where, and how often."""
    where = f"{finding['path']} {finding['dtype']} {finding['device']}"
    return f"{where}: {finding['symptom']}, {counted(finding['results'], 'result')}"


def example(finding: Mapping[Hashable, Any]) -> str:
    """The result that a finding shows, in the digits that tell it; its note where nothing was computed."""
    if finding["symptom"] == LOSSY:
        off, times = finding["scaled_error"], finding["worst_ratio"]
        return f"sound, but {off:,.0f} roundoffs off where {off / times:,.0f} are attainable"
    if note := str(finding["note"]):
        return note
    computed, exact, bound = (float(finding[name]) for name in ("computed", "reference", "bound"))
    error = abs(computed - exact)
    digits = 6
    while digits < 17 and error > 0 and f"{computed:.{digits}g}" == f"{exact:.{digits}g}":
        digits += 1
    times = f", {error / bound:.3g} times the bound" if np.isfinite(error) and bound > 0 else f", bound {bound:.3g}"
    off = f": off by {error:.2g}{times}" if np.isfinite(error) else times
    digits = min(digits + 1, 17)
    return f"computed {computed:.{digits}g}, exact {exact:.{digits}g}{off}"


def side_by_side(errors: pd.DataFrame, column: str, *paths: str) -> pd.DataFrame:
    """A column of errors.csv on the results where each of these paths has it: a column a path."""
    key = ["case", "row", "reduction", "dtype", "device"]
    rows = errors[errors["path"].isin(paths)]
    table = rows.assign(row=rows["row"].fillna(-1)).pivot_table(index=key, columns="path", values=column, sort=False)
    return table.reindex(columns=list(paths)).dropna()


def verdict(
    tables: Tables, own: str, torchs: str, *, strict: bool = False, pace: float | None = None, remark: str = ""
) -> str:
    """Of the path `own`: sound or not, what fails and where it does not, and how it compares with the path `torchs`.

    `pace`: how many times as fast as that it is. `remark`: what else is to be said of how it was judged.
    """
    errors, findings = (tables[name][tables[name]["path"] == own] for name in ("errors", "findings"))
    failed = failing(findings, strict)
    theirs = tables["errors"][tables["errors"]["path"] == torchs]
    groups = {str(symptom): group for symptom, group in failed.groupby("symptom", sort=False)}
    # Where values are wrong, what follows from them need not be told.
    slopes = [symptom for symptom in groups if "gradient" in symptom]
    values = [symptom for symptom in groups if symptom not in (*slopes, "changes")]
    problems = [_problem(groups[s], theirs) for s in groups if not (values and s in slopes)]
    if values and slopes:
        problems[0][0] += "; its gradients fail too"
    computed = errors[errors["result_class"] != "not_computed"]
    dtypes = ", ".join(computed["dtype"].unique()) or "no dtype"
    others = findings.drop(failed.index).groupby("status")["results"].sum()
    known = f" but for {counted(others[ACKNOWLEDGED], 'result')} acknowledged" if ACKNOWLEDGED in others else ""
    state = "not sound" if len(failed) else f"sound{known}"
    devices = ", ".join(errors["device"].unique())
    lines = [f"{own} is {state}: {counted(len(computed), 'result')} in {dtypes} on {devices}"]
    if told := [f"{others[status]:,} {status}" for status in (SHARED, LOSSY) if status in others]:
        lines[0] += f", of which {', '.join(told)}"
    lines += [line for problem in problems[:3] for line in problem]
    if len(problems) > 3:
        lines.append(f"and {counted(len(problems) - 3, 'more problem')}: .findings has them all")
    # What is wrong is not to be praised for what it keeps elsewhere.
    beside = _compared(tables["errors"].iloc[: 0 if values or known else None], own, torchs, pace)
    said = (_untaken(errors), _gradients(tables, own), _repeated(tables, own), remark, beside)
    tail = [line for line in said if line]
    return "\n".join([*lines[: LINES - len(tail)], *tail])


def _problem(group: pd.DataFrame, torchs: pd.DataFrame) -> list[str]:
    """What is wrong and where, then the example that shows it with the smallest input."""
    first = group.sort_values("worst_ratio", ascending=False, kind="stable").to_dict("records")[0]
    dtypes, results = ", ".join(group["dtype"].unique()), counted(int(group["results"].sum()), "result")
    where = f"{first['symptom']} in {dtypes}, {results}"
    fails, passes = (sorted({int(n) for n in " ".join(group[name]).split()}) for name in ("fails_at", "passes_at"))
    if fails:
        where += f": fails at {_some(fails)} classes"
    if fails and (passes := [n for n in passes if n not in fails]):
        where += f", passes at {_some(passes)}"
    if causes := [cause for cause in group["cause"].unique() if cause]:
        where += f"; cause: {', '.join(causes)}"
    smallest = ""
    if isinstance(first["input"], str) and 0 < len(first["input"]) <= 60:
        smallest = f"; smallest: [{_decimal(first['input'])}] against [{_decimal(str(first['target']))}]"
    return [where, f"  {first['case']} {first['dtype']}: {example(first)}{smallest}{_noticed(first, torchs)}"]


def _noticed(finding: Mapping[Hashable, Any], torchs: pd.DataFrame) -> str:
    """Whether the test that a kernel has by custom, assert_close with its defaults against torch's, shows it too."""
    key = ["case", "dtype", "device", "reduction"]
    same = (torchs[key] == [finding[name] for name in key]).all(axis=1)
    same &= torchs["row"].fillna(-1) == (-1 if pd.isna(finding["row"]) else finding["row"])
    if finding["symptom"] in ("not_computed", "changes") or not same.any():
        return ""
    gradient = "gradient" in finding["symptom"]
    theirs = float(finding["reference"] if gradient else torchs.loc[same, "computed"].iloc[0])
    relative, absolute = CLOSE[finding["dtype"]]
    close = abs(float(finding["computed"]) - theirs) <= absolute + relative * abs(theirs)
    noticed = finding["symptom"] == "narrow_result" or not close
    return f"; assert_close with torch's would {'notice' if noticed else 'pass'}"


def _decimal(runs: str) -> str:
    """Hexadecimal floats as a person reads them."""
    pairs = (run.partition("*") for run in runs.split())
    return ", ".join(f"{float.fromhex(value) + 0.0:.6g}" + (f" x{times}" if times else "") for value, _, times in pairs)


def _some(numbers: list[int]) -> str:
    return ", ".join(f"{n:,}" for n in numbers[:8]) + (", ..." if len(numbers) > 8 else "")


def _untaken(errors: pd.DataFrame) -> str:
    """The dtypes in which nothing was computed, and why."""
    groups = errors.groupby("dtype", sort=False)
    told = [
        f"{dtype} ({rows['note'].iloc[0]})" for dtype, rows in groups if rows["result_class"].eq("not_computed").all()
    ]
    return f"not taken: {', '.join(told)}" if told else ""


def _gradients(tables: Tables, own: str) -> str:
    """Said where there is none at all: no test has seen a gradient."""
    if "gradients" not in tables or own in set(tables["gradients"]["path"]):
        return ""
    results = tables["errors"].query("path == @own")
    lacking = results["result_class"].eq("not_computed").groupby([results["dtype"], results["device"]]).any()
    return "its gradients were not judged: values are missing" if lacking.all() else "it has no gradient"


def _repeated(tables: Tables, own: str) -> str:
    """The chance that rows which go wrong now and then were seen, in the dtype with the fewest repetitions."""
    checks = tables.get("invariance", pd.DataFrame(columns=["path", "check"]))
    again = checks[(checks["path"] == own) & checks["check"].str.endswith(" times over")]
    if again.empty:
        return ""
    times = int(again["check"].iloc[0].split()[0])
    rows = int(again.groupby("dtype")["rows"].sum().min()) * times
    seen = (f"{min(1 - (1 - 1 / each) ** rows, 0.99):.2g} for one row in {each:,}" for each in (1_000, 10_000))
    return f"rows that go wrong now and then are seen with probability {', '.join(seen)} ({rows:,} repeated in a dtype)"


def _compared(errors: pd.DataFrame, own: str, torchs: str, pace: float | None) -> str:
    """Median scaled errors of the results both have, dtype by dtype, and the time."""
    parts: dict[str, list[str]] = {}
    for dtype, both in side_by_side(errors, "scaled_error", own, torchs).groupby("dtype", sort=False):
        mine, theirs = both[own].median(), both[torchs].median()
        times = 1.0 if mine == theirs else theirs / mine if mine else float("inf")
        parts.setdefault(_as(times, "accurate"), []).append(str(dtype))
    told = [f"{how} in {', '.join(dtypes)}" for how, dtypes in parts.items()]
    told += [f"{_as(pace, 'fast')} (64 x 1,000 float32)"] if pace and pace == pace else []
    return f"beside {torchs}, in the median: {'; '.join(told)}" if told else ""


def _as(times: float, what: str) -> str:
    """ "as fast", "1.4 times as fast", or "1.4 times less fast"."""
    if 0.8 < times < 1.25:
        return f"as {what}"
    factor = max(times, 1 / times) if times else float("inf")
    shown = f"{factor:.2g}" if factor < 10 else f"{factor:.0f}" if factor < 1_000 else "over 1,000"
    return f"{shown} times {'as' if times > 1 else 'less'} {what}"
