"""report.md: the answer for a pull request or an issue."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from audit.publish.answer import MEDIANS, Tables, example, matrix, sentences


def markdown(tables: Tables, environment: Mapping[str, object]) -> str:
    """The sentences, the new findings with their scripts, a row a path, and what reproduces it."""
    lines = ["# kl-audit", "", *(f"- {sentence}" for sentence in sentences(tables)), ""]
    findings = tables["findings"]
    for f in findings[findings["status"] == "new"].to_dict("records"):
        lines += [f"**New finding**: {f['path']} {f['dtype']} {f['device']}, {f['symptom']}, {f['results']} results"]
        script = ["```python", str(f["script"]).rstrip(), "```"] if f["script"] else []
        lines += ["", *script, ""]
    for f in findings[findings["status"] == "lossy"].to_dict("records"):
        lines += [f"- lossy: {f['path']} {f['dtype']} {f['device']}, {f['results']} results; {f['case']}: {example(f)}"]
    lines += ["", MEDIANS.replace("*", "\\*"), "", *_rows(tables), ""]
    torch = environment.get("torch")
    version = torch.get("version") if isinstance(torch, dict) else "?"
    lines += [f"torch {version}, {environment.get('platform', '')}; `{environment.get('command', '')}`", ""]
    return "\n".join(lines)


def _rows(tables: Tables) -> list[str]:
    table = matrix(tables["errors"])
    columns = list(dict.fromkeys(zip(table["device"], table["dtype"], strict=True)))
    lines = ["| path | " + " | ".join(f"{dtype} {device}" for device, dtype in columns) + " | worst error / bound |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for label, group in table.groupby("label", sort=False):
        by = group.set_index(["device", "dtype"])
        cells = [_cell(by.loc[c]) if c in by.index else "" for c in columns]
        fields = [str(label).replace("*", "\\*"), *cells, f"{group['worst_of_bound'].max():.2g}"]
        lines.append("| " + " | ".join(fields) + " |")
    return lines


def _cell(row: pd.Series) -> str:
    bits = "" if pd.isna(row["correct_bits"]) else f"{row['correct_bits']:.1f}, "
    return f"{bits}{row['negative']:.0%}"
