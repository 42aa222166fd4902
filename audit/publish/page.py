"""report.html: one file that asks for nothing else, and says everything with scripts off too."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

import pandas as pd

from audit.base.formats import FORMATS
from audit.base.kinds import ACKNOWLEDGED, LOSSY
from audit.publish.answer import LIMITS, agreement, answer
from audit.publish.figures import Plot
from audit.publish.matrix import MEDIANS, Cell, cell, compared, folded
from audit.publish.verdict import Tables, counted, example, headline

# Section -> its plots. The first plot stands beside the answer.
_BESIDE = "closeness"
_SECTIONS = {
    "Error and the number of classes": ("growth",),
    "Which rounding makes the error": ("attribution",),
    "Accuracy and time": ("time",),
}
_THREAD = ["subject", "quoted", "explanation", "implementation", "device", "median_magnitude", "percentile",
           "reproduced"]  # fmt: skip
_SUMMARY = ["case", "path", "reduction", "dtype", "device", "kind", "n", "scaled_error_median", "scaled_error_max",
            "correct_bits_median", "negative_share", "non_finite", "findings"]  # fmt: skip
_LOST = (0.5, 2, 4, 8)  # bits, the limits of the matrix's shades
_MULTIPLES = ("sum", "mean")  # a quarter of the rows, left out so that the page of two devices stays under 2 MB
_FILTERS = ("case", "path", "dtype", "device")
_TIGHT = "Of errors.csv: near 1 the bound is tight, and the error no accident; above 1 stands a finding"
_FINDING = ["path", "dtype", "device", "symptom", "results", "cases", "worst_ratio"]


def page(
    tables: Tables, environment: Mapping[str, Any], plots: Mapping[str, Plot], history: pd.DataFrame | None = None
) -> str:
    """The whole page: the answer beside a picture, findings, the matrix, plots, the summary, the environment.

    `history`: since when the numbers are what they are.
    """
    told = answer(tables, environment)
    both = agreement(tables["errors"])
    drawn = {name: _figure(name, plot) for name, plot in plots.items()}
    sections = {
        "Findings": _findings(tables["findings"], told.new),
        "CPU and GPU": _table(both, "The same rows of errors.csv on both") if len(both) else "",
        "Every way of computing": _matrix(compared(tables), environment.get("paths", {})),
    }
    tight = _tightest(tables["errors"])
    sections["The worst errors known"] = _table(tight, _TIGHT) if len(tight) else ""
    for title, names in _SECTIONS.items():
        sections[title] = "".join(drawn.get(name, "") for name in names)
    if "thread" in tables:
        words = "".join(f"<p>{escape(said)}</p>" for said in told.thread)
        words += drawn.get("thread", "") + drawn.get("training", "")
        sections["The forum thread"] = words + _table(tables["thread"][_THREAD], "thread.csv", "thread")
    if "statistics" in tables:
        sections["The two models"] = _table(tables["statistics"], "statistics.csv", "statistics")
    if history is not None:
        sections["Since when"] = _table(history, "Of history.csv, runs of the same inputs, errors in roundoffs")
    sections["Summary"] = _summary(tables)
    command = escape(str(environment.get("command", "")))
    sections["Environment"] = f"<p>This report again: <code>{command}</code></p>{_list(environment)}"

    limits = "".join(f"<li><strong>{escape(name)}</strong>, {escape(reason)}</li>" for name, reason in told.limits)
    if limits:
        explained = "" if environment.get("kernels") else f"<p>Explained in {LIMITS}.</p>"
        limits = f"<h2>Known limits</h2>{explained}<ul class='limits'>{limits}</ul>"
    links, bodies = "", ""
    for title, body in sections.items():
        if body:
            anchor = "section-" + re.sub(r"\W", "-", title.lower())
            links += f'<li><a href="#{anchor}">{escape(title)}</a></li>'
            bodies += f'<section><h2 id="{anchor}">{escape(title)}</h2>{body}</section>'
    holes = {
        "verdict": escape(told.verdict),
        "class": "good" if told.good else "bad",
        "sign": "✓" if told.good else "✗",
        "ran": escape(told.ran),
        "questions": "".join(f"<dt>{escape(q)}</dt><dd>{escape(said)}</dd>" for q, said in told.questions),
        "picture": drawn.get(_BESIDE, ""),
        "limits": limits,
        "links": links,
        "sections": bodies,
    }
    template = (files("audit.publish") / "page.html").read_text(encoding="utf-8")
    return re.sub(r"{{(\w+)}}", lambda hole: holes[hole[1]], template)


def _region(label: str, content: str, name: str = "") -> str:
    """What is wider or longer than the screen scrolls in a box of its own, by keyboard too."""
    id = f' id="{name}"' if name else ""
    return f'<div class="wide"{id} role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>'


def _figure(name: str, plot: Plot) -> str:
    label = escape(f"{plot.title}. {plot.text}")
    svg = plot.svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    text = f'<strong>{escape(plot.title)}</strong> {escape(plot.text)} <a href="{name}.svg">{name}.svg</a>'
    return f'<figure id="plot-{name}">{_region(plot.title, svg)}<figcaption>{text}</figcaption></figure>'


def _matrix(table: pd.DataFrame, summaries: Mapping[str, str]) -> str:
    """A row a way, the best first; on a narrow screen a block a way."""
    columns, ways = folded(table)
    head = "".join(f'<th scope="col">{escape(dtype)}<br>{escape(device)}</th>' for device, dtype in columns)
    body = ""
    for paths, cells in ways:
        names = (f'<span title="{escape(summaries.get(path, ""))}">{escape(path)}</span>' for path in paths)
        said = escape(summaries.get(paths[0], ""))
        body += f'<tr><th scope="row">{"<br>".join(names)}<br><small>{said}</small></th>'
        for found, (device, dtype) in zip(cells, columns, strict=True):
            body += f'<td{_shade(found)} data-label="{escape(f"{dtype} {device}")}">{escape(cell(found))}</td>'
        body += "</tr>"
    shown = (
        f'<table class="matrix"><caption>{escape(MEDIANS)}</caption>'
        f'<thead><tr><th scope="col">way</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    )
    steps = [f"at most {limit:g}" for limit in _LOST] + [f"over {_LOST[-1]:g}"]
    scale = "".join(f'<span class="s{i}">{step}</span>' for i, step in enumerate(steps))
    key = f'<p class="scale">Bits lost of those the dtype has: {scale}</p>'
    return key + _region("Correct bits by path, dtype and device", shown)


def _shade(found: Cell | None) -> str:
    if found is None or pd.isna(found["correct_bits"]):  # what is 0 has no relative error
        return ""
    return f' class="s{bisect_left(_LOST, FORMATS[found["dtype"]].precision - found["correct_bits"])}"'


def _findings(findings: pd.DataFrame, new: pd.DataFrame) -> str:
    """New findings one by one; what is lossy in one table; acknowledged ones by reason, each with one reproducer."""
    parts = []
    for finding in new.to_dict("records"):
        what = f"of {finding['cases']}; {example(finding)}."
        parts.append(f"<h3>New: {escape(headline(finding))}</h3><p>{escape(what)}</p>{_script(finding['script'])}")
    if not parts:
        parts.append("<p>Nothing new.</p>")
    rest = findings.drop(new.index)
    lossy = rest[rest["status"] == LOSSY]
    if len(lossy):
        worst = [example(finding) for finding in lossy.to_dict("records")]
        table = lossy[_FINDING].assign(worst=worst, case=lossy["case"])
        parts.append(f"<h3>Lossy</h3>{_table(table, 'findings.csv', label='Lossy findings')}")
    for name, group in findings[findings["status"] == ACKNOWLEDGED].groupby("acknowledged_by", sort=False):
        scripts = group.loc[group["script"] != "", "script"]
        results = counted(int(group["results"].sum()), "result")
        parts.append(
            f"<details><summary>Acknowledged: {escape(str(name))}, {results}</summary>"
            f"<p>{escape(group['reason'].iloc[0])}</p>{_table(group[_FINDING], 'findings.csv', label=str(name))}"
            f"{_script(min(scripts, key=len)) if len(scripts) else ''}</details>"
        )
    return "".join(parts)


def _tightest(errors: pd.DataFrame) -> pd.DataFrame:
    """Of each path, dtype and device the result that has the largest share of its bound: how tight both are."""
    share = (errors["abs_error"] / errors["bound"]).rename("share of bound")
    group = share.groupby([errors["path"], errors["dtype"], errors["device"]], sort=False)
    worst = group.idxmax()[group.count() > 0]
    return errors.loc[worst, ["path", "dtype", "device", "case", "classes", "scaled_error"]].join(share)


def _script(script: str) -> str:
    if not script:
        return "<p>It was not shrunk to a script.</p>"
    return f"<details><summary>A script that reproduces it</summary><pre>{escape(script)}</pre></details>"


def _summary(tables: Tables) -> str:
    links = ", ".join(f'<a href="{name}.csv">{name}.csv</a>' for name in tables)
    selects = "".join(
        f'<label>{name}<select data-column="{_SUMMARY.index(name)}"><option value="">all</option></select></label>'
        for name in _FILTERS
    )
    form = f'<form class="filters" hidden>{selects}<button type="reset">Show all</button><output></output></form>'
    shown = tables["summary"][~tables["summary"]["reduction"].isin(_MULTIPLES)]
    text = f"<p>Everything is in {links}; sums and means, which are multiples of batchmean, only there.</p>"
    return text + form + _table(shown[_SUMMARY], "summary.csv", "summary")


def _table(frame: pd.DataFrame, source: str, name: str = "", label: str = "") -> str:
    """A cell's and a row's end tags may be left out in HTML; of 5,000 rows they would be half a megabyte."""
    head = "".join(f'<th scope="col">{escape(str(c))}</th>' for c in frame)
    rows = "".join(
        f'<tr><th scope="row">{_text(first)}' + "".join(f"<td>{_text(v)}" for v in rest)
        for first, *rest in frame.itertuples(index=False, name=None)
    )
    id = f' id="{name}"' if name else ""
    table = (
        f'<table class="sortable"{id}><caption>{source}, {len(frame):,} rows</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )
    return _region(label or source, table, f"{name}-rows" if name else "")


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.3g}" if isinstance(value, float) else escape(str(value))


def _list(environment: Mapping[str, object]) -> str:
    items = (f"<dt>{escape(name)}</dt><dd>{escape(_words(value))}</dd>" for name, value in environment.items())
    return f"<dl>{''.join(items)}</dl>"


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items() if v not in (None, ""))
    return "; ".join(map(_words, value)) if isinstance(value, list) else str(value)
