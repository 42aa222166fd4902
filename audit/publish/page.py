"""report.html, one file that needs nothing else, and report.md, the same answer for a pull request."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import pandas as pd

from audit.publish.answer import Tables, matrix, sentences

# Blue to orange through grey: told apart by colour-blind readers, and by lightness in print.
_SCALE = ("#f6e3d0", "#e9e4de", "#dde6ee", "#bcd3e8", "#93bbdc")


def figures(tables: Tables) -> dict[str, tuple[str, str]]:
    """SVG by file name, each with the sentence that describes it."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    errors = tables["errors"]
    near = errors[errors["case"].str.startswith("near_") & (errors["reduction"] == "none") & (errors["kind"] == "kl")]
    wide = errors[errors["kind"].eq("kl") & errors["reduction"].eq("none") & errors["path"].eq("log_softmax")]
    drawn = {}
    if len(near):
        near = near.assign(closeness=near["case"].str.removeprefix("near_").astype(float))
        text = f"Correct bits against closeness, float32: where each path loses its last bit ({len(near):,} results"
        svg = _lines(near, "closeness", "correct_bits", "difference of the logits", "correct bits (median)")
        drawn["closeness"] = (svg, f"{text}, errors.csv)")
    if wide["classes"].nunique() > 1:
        text = f"log_softmax: error and bound against classes ({len(wide):,} results, errors.csv)"
        drawn["classes"] = (_classes(wide), text)
    return drawn


def _axes(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x), axes.set_ylabel(y)
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    return figure, axes


def _lines(rows: pd.DataFrame, x: str, y: str, x_label: str, y_label: str) -> str:
    figure, axes = _axes(x_label, y_label)
    single = rows[rows["dtype"] == "float32"]
    for (path, group), marker in zip(single.groupby("path", sort=False), "osD^vPX*<>" * 9, strict=False):
        line = group.groupby(x)[y].median()
        axes.plot(line.index, line, marker=marker, label=str(path), linewidth=1)
    axes.legend(fontsize="small")
    return _svg(figure)


def _classes(rows: pd.DataFrame) -> str:
    figure, axes = _axes("classes", "nats")
    axes.set_yscale("log")
    for (dtype, group), colour in zip(rows.groupby("dtype", sort=False), ("C0", "C1", "C2", "C3"), strict=False):
        by = group[group["abs_error"] > 0].groupby("classes")
        axes.plot(by["abs_error"].median(), "o-", color=colour, label=f"{dtype}: median error")
        axes.plot(by["bound"].median(), "--", color=colour, label=f"{dtype}: bound")
    axes.legend(fontsize="x-small", ncols=2)
    return _svg(figure)


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :].replace("#000000", "currentColor")


def markdown(tables: Tables, environment: Mapping[str, object]) -> str:
    """The answer for a pull request: three sentences, the matrix, the findings."""
    rows = matrix(tables["errors"])
    lines = ["# kl-audit", "", *(f"- {s}" for s in sentences(tables)), ""]
    lines += ["| path | dtype | device | results | median correct bits | negative | not finite | worst error / bound |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for r in rows.to_dict("records"):
        lines.append(
            f"| {r['path']} | {r['dtype']} | {r['device']} | {r['results']:,} | {r['correct_bits']:.1f} | "
            f"{100 * r['negative']:.0f} % | {r['non_finite']} | {r['worst_of_bound']:.2g} |"
        )
    findings = tables["findings"]
    for f in findings[findings["status"] == "new"].to_dict("records"):
        lines += [
            "",
            f"**New finding**: {f['path']} {f['dtype']} {f['device']}, {f['symptom']}, {f['results']} results",
        ]
        if f["script"]:
            lines += ["", "```python", str(f["script"]).rstrip(), "```"]
    lines += ["", f"torch {_torch(environment)}, {environment.get('platform', '')}; `{command(environment)}`", ""]
    return "\n".join(lines)


def command(environment: Mapping[str, object]) -> str:
    return f"python -m audit run --profile {environment.get('profile', 'standard')}"


def _torch(environment: Mapping[str, object]) -> str:
    torch = environment.get("torch")
    return str(torch.get("version")) if isinstance(torch, dict) else "?"


def page(tables: Tables, environment: Mapping[str, object], drawn: Mapping[str, tuple[str, str]]) -> str:
    """The whole page: answer, matrix, plots, findings, summary, environment."""
    answer = "".join(f"<p>{html.escape(s)}</p>" for s in sentences(tables))
    parts = [f"<header><h1>kl-audit</h1>{answer}</header><main>"]
    parts.append("<h2>Every path, dtype and device</h2>" + _matrix(matrix(tables["errors"])))
    for name, (svg, text) in drawn.items():
        figure = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(text)}"', 1)
        parts.append(f'<figure id="{name}">{figure}<figcaption>{html.escape(text)}</figcaption></figure>')
    parts.append("<h2>Findings</h2>" + _findings(tables["findings"]))
    if "thread" in tables:
        columns = [
            "subject",
            "quoted",
            "implementation",
            "device",
            "median_magnitude",
            "percentile",
            "reproduced",
            "explanation",
        ]
        parts.append("<h2>The thread's numbers</h2>" + _table(tables["thread"][columns], "thread"))
    shown = ["case", "path", "reduction", "dtype", "device", "n", "scaled_error_median", "scaled_error_max",
             "correct_bits_median", "negative_share", "non_finite", "findings"]  # fmt: skip
    summary = tables["summary"][tables["summary"]["kind"].isin(["kl", "identity"])][shown]
    links = ", ".join(f'<a href="{name}.csv">{name}.csv</a>' for name in tables)
    parts.append(f"<h2>Summary</h2><p>Everything is in {links}.</p>" + _table(summary, "summary", filtered=True))
    parts.append(f"<h2>Environment</h2><p><code>{html.escape(command(environment))}</code></p><dl>")
    for key, value in environment.items():
        parts.append(f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>")
    parts.append("</dl></main>")
    return _TEMPLATE.replace("{{body}}", "".join(parts))


def _matrix(rows: pd.DataFrame) -> str:
    columns = list(dict.fromkeys(zip(rows["device"], rows["dtype"], strict=True)))
    head = "".join(f'<th scope="col">{html.escape(dtype)}<br>{html.escape(device)}</th>' for device, dtype in columns)
    body = []
    for path, group in rows.groupby("path", sort=False):
        cells = []
        by = {(r["device"], r["dtype"]): r for r in group.to_dict("records")}
        for column in columns:
            r = by.get(column)
            if r is None:
                cells.append("<td>–</td>")
                continue
            bits = r["correct_bits"]
            shade = _SCALE[min(4, max(0, int(bits // 6)))] if bits == bits else "#eee"
            text = "–" if bits != bits else f"{bits:.1f}"
            negative = f"<small>{100 * r['negative']:.0f} % neg.</small>"
            cells.append(f'<td class="cell" style="background:{shade}">{text}<br>{negative}</td>')
        body.append(f'<tr><th scope="row">{html.escape(str(path))}</th>{"".join(cells)}</tr>')
    caption = "Median correct bits, and the share of negative results"
    return (
        f'<div class="wide"><table><caption>{caption}</caption><thead><tr><th scope="col">path</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _findings(findings: pd.DataFrame) -> str:
    if findings.empty:
        return "<p>None.</p>"
    items = []
    for f in findings.to_dict("records"):
        title = f"{f['status']}: {f['path']} {f['dtype']} {f['device']}: {f['symptom']} ({f['results']} results)"
        script = f"<pre>{html.escape(str(f['script']))}</pre>" if f["script"] and len(str(f["script"])) < 4_000 else ""
        items.append(
            f"<details><summary>{html.escape(title)}</summary><p>{html.escape(str(f['reason']))}</p>"
            f"<p>Cases: {html.escape(str(f['cases']))}</p>{script}</details>"
        )
    return "".join(items)


def _table(frame: pd.DataFrame, name: str, filtered: bool = False) -> str:
    head = "".join(f'<th scope="col"><button>{html.escape(str(c))}</button></th>' for c in frame)
    rows = "".join("<tr>" + "".join(f"<td>{_cell(v)}</td>" for v in row) + "</tr>" for row in frame.to_numpy())
    search = f'<label>Filter <input type="search" data-for="{name}"></label>' if filtered else ""
    return (
        f'{search}<div class="wide"><table id="{name}"><caption>{name}.csv, {len(frame):,} rows</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return "" if value is pd.NA else html.escape(str(value))


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>kl-audit</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 70rem; margin: auto; padding: 1rem }
header p { font-size: 1.15rem }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #8884; text-align: left }
td.cell { color: #111; text-align: center }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th button { all: unset; cursor: pointer; font-weight: 600 }
th button:focus-visible { outline: 2px solid }
.wide { overflow: auto; max-height: 36rem }
figure { margin: 1rem 0 } svg { max-width: 100%; height: auto }
pre { overflow: auto; font-size: .8rem } dd { overflow-wrap: anywhere }
@media print { .wide { max-height: none } }
</style></head><body>{{body}}
<script>
for (const table of document.querySelectorAll("table[id]")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const up = button.parentNode.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach(th => th.removeAttribute("aria-sort"));
    button.parentNode.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[column].textContent, sign = up ? 1 : -1;
    const order = (a, b) => (a !== "" && b !== "" && !isNaN(a) && !isNaN(b)) ? a - b : a.localeCompare(b);
    body.append(...[...body.rows].sort((a, b) => sign * order(key(a), key(b))));
  }));
}
for (const input of document.querySelectorAll("input[data-for]")) input.addEventListener("input", () => {
  const words = input.value.toLowerCase().split(/\\s+/);
  for (const row of document.getElementById(input.dataset.for).tBodies[0].rows)
    row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
});
</script></body></html>
"""
