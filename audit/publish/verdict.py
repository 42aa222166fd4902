"""What is said of a kernel of the user's own: ten lines, for a terminal, a notebook and a failing test."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from audit.publish.answer import Answer, Tables, answer, counted, example

LINES = 10


def verdict(tables: Tables, own: str, torchs: str, strict: bool = False) -> str:
    """Of the path `own`: sound or not, what fails and where it does not, and how it compares with the path `torchs`."""
    errors, findings = (tables[name][tables[name]["path"] == own] for name in ("errors", "findings"))
    failing = ["new", "lossy"] if strict else ["new"]
    told = findings[findings["status"].isin(failing)]
    problems = [_problem(group) for _, group in told.groupby("symptom", sort=False)]
    computed = errors[errors["result_class"] != "not_computed"]
    dtypes = ", ".join(computed["dtype"].unique())
    checked = f"{counted(len(computed), 'result')} in {dtypes or 'no dtype'} on {', '.join(errors['device'].unique())}"
    known = [f"{len(findings[findings['status'] == s])} {s}" for s in ("shared", "lossy") if s not in failing]
    known = [text for text in known if not text.startswith("0 ")]
    head = f"{own} is {'not sound' if len(told) else 'sound'}: {checked}" + (f"; {', '.join(known)}" if known else "")
    lines = [head, *(line for problem in problems[:3] for line in problem)]
    if len(problems) > 3:
        lines.append(f"and {counted(len(problems) - 3, 'more problem')}: .findings has them all")
    tail = [
        line for line in (_untaken(errors), _gradients(tables, own), compared(tables["errors"], own, torchs)) if line
    ]
    return "\n".join([*lines[: LINES - len(tail)], *tail])


def answered(tables: Tables, environment: Mapping[str, Any]) -> Answer:
    """The first screen of a run: of torch, or of the kernels of the user's own that environment.json names."""
    told = answer(tables, environment)
    own = environment.get("kernels") or {}
    if not own:
        return told
    texts = [verdict(tables, name, torchs).partition("\n") for name, torchs in own.items()]
    heads = [head.partition(":")[0] for head, _, _ in texts]
    good = told.good and all(" not sound" not in head for head in heads)
    questions = [(f"{name}?", f"{head}\n{rest}") for name, (head, _, rest) in zip(own, texts, strict=True)]
    return replace(told, verdict="; ".join(heads), good=good, questions=questions, thread=[])


def _problem(group: pd.DataFrame) -> list[str]:
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
    return [where, f"  {first['case']} {first['dtype']}: {_example(first)}"]


def _example(finding: Mapping[Hashable, Any]) -> str:
    smallest = ""
    if isinstance(finding["input"], str) and 0 < len(finding["input"]) <= 60:
        sides = (f"[{_decimal(str(finding[side]))}]" for side in ("input", "target"))
        smallest = "; smallest: " + " against ".join(sides)
    return example(finding) + smallest


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


def compared(errors: pd.DataFrame, own: str, torchs: str) -> str:
    """Median scaled errors of the rows both have, dtype by dtype."""
    key = ["case", "row", "dtype", "device", "reduction"]
    both = errors[errors["path"].isin([own, torchs])]
    table = both.assign(row=both["row"].fillna(-1)).pivot_table(index=key, columns="path", values="scaled_error")
    parts = []
    if {own, torchs} <= set(table):
        for dtype, rows in table.dropna().groupby("dtype", sort=False):
            mine, theirs = rows[own].median(), rows[torchs].median()
            times = theirs / mine if mine else float("inf")
            how = (
                "as accurate"
                if 0.8 < times < 1.25 or mine == theirs
                else (f"{times:.2g} times as accurate" if times > 1 else f"{1 / times:.2g} times less accurate")
            )
            parts.append(f"{how} in {dtype}")
    return f"beside {torchs}: {', '.join(parts)} (median error)" if parts else ""
