"""What the numbers say, in the words that the page, report.md and the terminal share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from audit.base.formats import FORMATS
from audit.base.kinds import GATED
from audit.publish.devices import failed_devices
from audit.publish.models import apart

Tables = Mapping[str, pd.DataFrame]
STABLE, FIRST, REMEDY = "log_softmax", "softmax_log", "kl_div_from_logits"
LIMITS = "docs/torch.md"
ASKED = ("float32", "bfloat16", "float16", "float64")  # the order in which people ask
MEDIANS = (
    "Median correct bits of the same rows of logits, and the share of negative values. A way that ran on other rows "
    f"stands beside what {STABLE} gives on those."
)
PARTS = {
    "softmax": "the rounding of the target's probabilities",
    "shift": "the rounding of log sum exp, one number a row",
    "log_softmax": "the rounding of the log-probabilities, class by class",
    "log": "the rounding of the probabilities' logarithms",
    "product": "the rounding of the terms",
    "summation": "the rounding of the sum over classes",
    "output": "the rounding of the result",
}


@dataclass(frozen=True)
class Answer:
    """The first screen: a verdict, what was run, the questions people come with, known limits, and the thread.

    `questions` and `limits` are pairs: what is asked, and the answer; a limit's name, and its reason.
    """

    verdict: str
    good: bool
    ran: str
    questions: list[tuple[str, str]]
    limits: list[tuple[str, str]]
    thread: list[str]


def answer(tables: Tables, environment: Mapping[str, Any]) -> Answer:
    """Of a run's tables and its environment.json."""
    findings, errors = tables["findings"], tables["errors"]
    new = findings[findings["status"] == "new"]
    problems = failed_devices(errors)
    problems += [f"{len(new)} new problem{'s' * (len(new) != 1)}"] if len(new) else []
    questions = [
        ("Can my KL come out negative by rounding?", _negative(errors)),
        ("Which way of computing it should I use?", _best(errors)),
        ("Softmax and then its logarithm, or log_softmax?", _stable(errors)),
    ]
    questions += apart(tables["statistics"]) if "statistics" in tables else []
    return Answer(
        "; ".join(problems) or "No new problems",
        not problems,
        _ran(errors, int(tables["summary"]["n"].sum()), environment),
        [(question, said) for question, said in questions if said],
        _limits(findings),
        [said for said in (_thread(tables), origin(tables)) if said],
    )


def _ran(errors: pd.DataFrame, results: int, environment: Mapping[str, Any]) -> str:
    """torch, the devices' models, how many results, how long it took, and when."""
    torch, seconds = environment.get("torch") or {}, environment.get("seconds") or {}
    models = {d["name"]: d["model"] for d in environment.get("devices", ())}
    devices = [f"{d} ({models[d]})" if models.get(d) else str(d) for d in errors["device"].unique()]
    told = [
        f"torch {torch['version']}" if "version" in torch else "",
        ", ".join(devices),
        f"{results:,} results",
        f"errors.csv shows {len(errors):,} (what is not clear, each path's worst, a random sample)"
        if len(errors) < results
        else "",
        f"{seconds['total']:.0f} s" if "total" in seconds else "",
        str(environment.get("created", ""))[:16].replace("T", " "),
    ]
    return " · ".join(filter(None, told))


def _rows(errors: pd.DataFrame, *paths: str) -> pd.DataFrame:
    """The values of rows of logits, of these paths, or of every one that means KL."""
    alike = errors["kind"].eq("kl") & errors["reduction"].eq("none") & errors["target_kind"].eq("logits")
    return errors[alike & errors["path"].isin(paths)] if paths else errors[alike]


def _by_dtype(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each dtype, in the order in which people ask."""
    return sorted(((str(dtype), group) for dtype, group in rows.groupby("dtype")), key=lambda g: ASKED.index(g[0]))


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else ""


def closeness(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the cases near_*, with the size of the logits' differences in column `closeness`."""
    near = rows[rows["case"].str.startswith("near_")]
    return near.assign(closeness=near["case"].str.removeprefix("near_").astype(float))


def _negative(errors: pd.DataFrame) -> str:
    """From which closeness of the logits on, by dtype, and how often from there."""
    near = closeness(_rows(errors, STABLE))
    parts = []
    for dtype, rows in _by_dtype(near):
        negative = rows[rows["negative"].fillna(False).astype(bool)]
        if len(negative):
            limit = negative["closeness"].max()
            share = rows.loc[rows["closeness"] <= limit, "negative"].astype(float).mean()
            parts.append(f"about {limit:g} in {dtype} ({share:.0%} of such rows)")
    if near.empty or not parts:
        return "" if near.empty else f"No: none of {len(near):,} nearly equal rows did."
    said = f"Yes, once logits agree to {_listed(parts)}."
    remedy = _rows(errors, REMEDY)["negative"].dropna()
    if len(remedy):
        said += f" {REMEDY} gave {int(remedy.sum()) or 'none'} in {len(remedy):,} rows."
    return said


def _best(errors: pd.DataFrame) -> str:
    """The remedy beside the call that torch documents: median correct bits of the same rows."""
    parts = []
    for dtype, rows in _by_dtype(_rows(errors, STABLE, REMEDY)):
        bits = rows.pivot_table(index=["case", "row", "device"], columns="path", values="correct_bits").dropna()
        if {STABLE, REMEDY} <= set(bits) and len(bits):
            middle = bits.median()
            parts.append(
                f"{middle[REMEDY]:.1f} against {middle[STABLE]:.1f} of {FORMATS[dtype].precision} bits in {dtype}"
            )
    if not parts:
        return ""
    return (
        f"audit.{REMEDY}, which keeps {_listed(parts)}, the median over all rows where both have some. Without it: "
        "kl_div of log_softmax(input) and softmax(target)."
    )


def _stable(errors: pd.DataFrame) -> str:
    """The two compared, row by row: which is nearer the exact value, and which of them gives no finite value."""
    rows = _rows(errors, STABLE, FIRST)
    if rows["path"].nunique() < 2:
        return ""
    error = rows.pivot_table(index=["case", "row", "dtype", "device"], columns="path", values="abs_error").dropna()
    nearer = {path: float((error[path] < error[other]).mean()) for path, other in ((STABLE, FIRST), (FIRST, STABLE))}
    lost = rows[~rows["result_class"].isin(["finite", "not_computed"])]["path"].value_counts()
    better, other = sorted((STABLE, FIRST), key=lambda path: lost.get(path, 0))
    return (
        f"{better}: it gives inf or NaN in {lost.get(better, 0):,} rows, the other in {lost.get(other, 0):,}. Where "
        f"both are finite, log_softmax is nearer the exact value in {nearer[STABLE]:.0%} of {len(error):,} rows, "
        f"softmax and then its logarithm in {nearer[FIRST]:.0%}."
    )


def _limits(findings: pd.DataFrame) -> list[tuple[str, str]]:
    """What is understood, by its name: of how many results, and why. What is lossy comes last, its worst told."""
    limits = []
    for name, group in findings[findings["status"] == "acknowledged"].groupby("acknowledged_by", sort=False):
        reason, dot, _ = str(group["reason"].iloc[0]).partition(". ")
        limits.append((str(name), f"{counted(int(group['results'].sum()), 'result')}: {reason}{dot.strip()}"))
    lossy = findings[findings["status"] == "lossy"]
    if len(lossy):
        worst = lossy.sort_values("worst_ratio").to_dict("records")[-1]
        told = f"{counted(int(lossy['results'].sum()), 'result')} of {', '.join(lossy['path'].unique())}"
        limits.append(("lossy", f"{told}; {worst['path']} {worst['dtype']} in {worst['case']} is {example(worst)}"))
    return limits


def counted(number: int, what: str) -> str:
    """ "1 result", "2 results"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _thread(tables: Tables) -> str:
    if "thread" not in tables:
        return ""
    quotes = tables["thread"].query("subject == 'KLDivLoss, equal logits'")
    parts = []
    for (implementation, device), rows in quotes.groupby(["implementation", "device"], sort=False):
        name = "today's torch" if implementation == "today" else "the kernels of 2017, emulated,"
        parts.append(
            f"{name} on {device} in {(rows['reproduced'] == 'yes').sum()} of {len(rows)} numbers (median magnitude "
            f"{rows['median_magnitude'].iloc[0]:.1e})"
        )
    return (
        "The forum thread that started this audit quotes a KLDivLoss of 1.4934e-12, 1.8763e-11 and -2.3461e-11 for "
        f"equal inputs, where 0 is exact; such values are what rounding gives with {_listed(parts)}."
        if parts
        else ""
    )


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


def example(finding: Mapping[Hashable, Any]) -> str:
    """The result that a finding shows, in the digits that tell it; its note where nothing was computed."""
    if finding["symptom"] == "lossy":
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


def matrix(errors: pd.DataFrame) -> pd.DataFrame:
    """Path x dtype and device, the best first: median correct bits and share of negative values, on the same rows.

    Those are the rows of logits that most paths of a dtype ran on. `against` is what STABLE has on the rows of a path
    that ran on others, else NaN; `worst_of_bound` is over all results.
    """
    judged = errors[errors["kind"].isin(GATED)]
    key = ["path", "dtype", "device"]
    alike = judged["reduction"].eq("none") & judged["target_kind"].eq("logits")
    rows = judged[alike | ~alike.groupby(judged["path"]).transform("any")]
    parts = []
    for (_, dtype, device), group in rows.groupby(["device", "dtype", "device"], sort=False):
        place = pd.MultiIndex.from_frame(group[["case", "row"]])
        sizes = group.groupby("path", sort=False).size()
        usual = sizes.index[sizes == sizes.mode().iloc[-1]][0]
        common, stable = place[group["path"] == usual], group["path"].eq(STABLE)
        for path, own in group.groupby("path", sort=False):
            mine = place[group["path"] == path]
            partial = not common.isin(mine).all()
            shown = own if partial else own[mine.isin(common)]
            there = group[stable & place.isin(mine)] if partial and path != STABLE else group.iloc[:0]
            parts.append(
                {
                    "path": path,
                    "dtype": dtype,
                    "device": device,
                    "results": len(shown),
                    "correct_bits": shown["correct_bits"].dropna().median(),
                    "negative": shown["negative"].astype("float64").mean(),
                    "against": there["correct_bits"].dropna().median(),
                }
            )
    names = [*key, "results", "correct_bits", "negative", "against"]
    table = pd.DataFrame(parts, columns=names)
    worst = (judged["abs_error"] / judged["bound"]).groupby([judged[name] for name in key]).max()
    table["worst_of_bound"] = [worst.get(tuple(place), np.nan) for place in table[key].itertuples(index=False)]
    lost = table["dtype"].map({f.name: f.precision for f in FORMATS.values()}) - table["correct_bits"]
    rank = (lost + 1e3 * table["against"].notna()).fillna(1e4).groupby(table["path"]).transform("mean")
    return table.assign(rank=rank).sort_values("rank", kind="stable", ignore_index=True).drop(columns="rank")


def folded(rows: pd.DataFrame) -> list[tuple[list[str], dict[tuple[str, str], dict[Hashable, Any]]]]:
    """The matrix a row a way: the paths whose cells are all the same, and the cells by device and dtype."""
    shown = rows.drop(columns=["path", "worst_of_bound"])
    ways: dict[str, tuple[list[str], dict[tuple[str, str], dict[Hashable, Any]]]] = {}
    for path, group in shown.groupby(rows["path"], sort=False):
        cells = {(cell["device"], cell["dtype"]): cell for cell in group.to_dict("records")}
        ways.setdefault(group.to_csv(index=False), ([], cells))[0].append(str(path))
    return list(ways.values())


def grid(errors: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The matrix as text: what its columns are, and a row a way."""
    rows = matrix(errors)
    columns = list(dict.fromkeys(zip(rows["device"], rows["dtype"], strict=True)))
    body = [[", ".join(paths), *(cell(cells.get(column)) for column in columns)] for paths, cells in folded(rows)]
    return [f"{dtype} {device}" for device, dtype in columns], body


def cell(found: Mapping[Hashable, Any] | None) -> str:
    """Bits, those of STABLE on the same rows where a path ran on others, and how many values are negative."""
    if found is None:
        return "–"
    bits = "–" if np.isnan(found["correct_bits"]) else f"{found['correct_bits']:.1f}"
    against = "" if np.isnan(found["against"]) else f" ({found['against']:.1f})"
    negative = "" if np.isnan(found["negative"]) else f" {found['negative']:.0%}"
    return bits + against + negative
