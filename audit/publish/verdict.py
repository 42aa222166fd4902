"""What is said of a kernel of the user's own: ten lines, for a terminal, a notebook and a failing test."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from audit.publish.answer import Answer, Tables, answer, counted, example

LINES = 10
# torch.testing.assert_close's rtol and atol where none are given.
CLOSE = {"float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float32": (1.3e-6, 1e-5), "float64": (1e-7, 1e-7)}


def verdict(tables: Tables, own: str, torchs: str, strict: bool = False, pace: float | None = None) -> str:
    """Of the path `own`: sound or not, what fails and where it does not, and how it compares with the path `torchs`.

    `pace`: how many times as fast as that it is.
    """
    errors, findings = (tables[name][tables[name]["path"] == own] for name in ("errors", "findings"))
    failing = ["new", "lossy"] if strict else ["new"]
    told = findings[findings["status"].isin(failing)]
    theirs = tables["errors"][tables["errors"]["path"] == torchs]
    groups = {str(symptom): group for symptom, group in told.groupby("symptom", sort=False)}
    # Where values are wrong, what follows from them need not be told.
    slopes = [symptom for symptom in groups if "gradient" in symptom]
    values = [symptom for symptom in groups if symptom not in (*slopes, "changes")]
    problems = [_problem(groups[s], theirs) for s in groups if not (values and s in slopes)]
    if values and slopes:
        problems[0][0] += "; its gradients fail too"
    computed = errors[errors["result_class"] != "not_computed"]
    dtypes = ", ".join(computed["dtype"].unique())
    checked = f"{counted(len(computed), 'result')} in {dtypes or 'no dtype'} on {', '.join(errors['device'].unique())}"
    known = [f"{len(findings[findings['status'] == s])} {s}" for s in ("shared", "lossy") if s not in failing]
    known = [text for text in known if not text.startswith("0 ")]
    head = f"{own} is {'not sound' if len(told) else 'sound'}: {checked}" + (f"; {', '.join(known)}" if known else "")
    lines = [head, *(line for problem in problems[:3] for line in problem)]
    if len(problems) > 3:
        lines.append(f"and {counted(len(problems) - 3, 'more problem')}: .findings has them all")
    beside = compared(tables["errors"], own, torchs, pace)
    tail = [line for line in (_untaken(errors), _gradients(tables, own), _repeated(tables, own), beside) if line]
    return "\n".join([*lines[: LINES - len(tail)], *tail])


def answered(tables: Tables, environment: Mapping[str, Any]) -> Answer:
    """The first screen of a run: of torch, or of the kernels of the user's own that environment.json names."""
    told = answer(tables, environment)
    own = environment.get("kernels") or {}
    if not own:
        return told
    paces = environment.get("paces") or {}
    texts = [verdict(tables, name, torchs, pace=paces.get(name)).partition("\n") for name, torchs in own.items()]
    heads = [head.partition(":")[0] for head, _, _ in texts]
    good = told.good and all(" not sound" not in head for head in heads)
    questions = [(f"{name}?", f"{head}\n{rest}") for name, (head, _, rest) in zip(own, texts, strict=True)]
    return replace(told, verdict="; ".join(heads), good=good, questions=questions, thread=[])


def _problem(group: pd.DataFrame, torchs: pd.DataFrame) -> list[str]:
    """What is wrong and where, then the example that shows it with the smallest input."""
    first = group.sort_values("worst_ratio", ascending=False, kind="stable").to_dict("records")[0]
    where = (
        f"{first['symptom']} in {', '.join(group['dtype'].unique())}, {counted(int(group['results'].sum()), 'result')}"
    )
    fails, passes = (_union(group[name]) for name in ("fails_at", "passes_at"))
    passes = [n for n in passes if n not in fails]
    if fails:
        where += f": fails at {_some(fails)} classes" + (f", passes at {_some(passes)}" if passes else "")
    causes = [str(cause) for cause in group.get("cause", pd.Series(dtype=str)).unique() if cause]
    where += f"; cause: {', '.join(causes)}" if causes else ""
    return [where, f"  {first['case']} {first['dtype']}: {_example(first)}{_noticed(first, torchs)}"]


def _example(finding: Mapping[Hashable, Any]) -> str:
    smallest = ""
    if isinstance(finding["input"], str) and 0 < len(finding["input"]) <= 60:
        sides = (f"[{_decimal(str(finding[side]))}]" for side in ("input", "target"))
        smallest = "; smallest: " + " against ".join(sides)
    return example(finding) + smallest


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


def _union(texts: pd.Series) -> list[int]:
    return sorted({int(word) for text in texts for word in str(text).split()})


def _some(numbers: list[int]) -> str:
    return ", ".join(f"{n:,}" for n in numbers[:8]) + (", ..." if len(numbers) > 8 else "")


def _untaken(errors: pd.DataFrame) -> str:
    """The dtypes in which nothing was computed, and why."""
    missing = errors["result_class"] == "not_computed"
    every = missing.groupby(errors["dtype"], sort=False).all()
    told = [f"{d} ({errors.loc[errors['dtype'] == d, 'note'].iloc[0]})" for d, none in every.items() if none]
    return f"not taken: {', '.join(told)}" if told else ""


def _gradients(tables: Tables, own: str) -> str:
    """Said where there is none at all: no test has seen a gradient."""
    gradients = tables.get("gradients")
    return "it has no gradient" if gradients is not None and not (gradients["path"] == own).any() else ""


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


def compared(errors: pd.DataFrame, own: str, torchs: str, pace: float | None = None) -> str:
    """Median scaled errors of the rows both have, dtype by dtype, and the time."""
    key = ["case", "row", "dtype", "device", "reduction"]
    both = errors[errors["path"].isin([own, torchs])]
    table = both.assign(row=both["row"].fillna(-1)).pivot_table(index=key, columns="path", values="scaled_error")
    parts: dict[str, list[str]] = {}
    if {own, torchs} <= set(table):
        for dtype, rows in table.dropna().groupby("dtype", sort=False):
            mine, theirs = rows[own].median(), rows[torchs].median()
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
