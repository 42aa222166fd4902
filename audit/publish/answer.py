"""What the numbers say, in the words that the page, report.md and the terminal share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from audit.base.formats import FORMATS
from audit.base.kinds import ACKNOWLEDGED, GATED, LOSSY, failing
from audit.publish.matrix import STABLE
from audit.publish.verdict import Tables, counted, example, side_by_side, verdict

FIRST, REMEDY = "softmax_log", "kl_div_from_logits"
LIMITS = "docs/torch.md"
CPU = "cpu"
ASKED = ("float32", "bfloat16", "float16", "float64")  # the order in which people ask
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

    `new` are the findings that fail the run. `questions` and `limits` are pairs: what is asked, and the answer; a
    limit's name, and its reason.
    """

    verdict: str
    good: bool
    new: pd.DataFrame
    ran: str
    questions: list[tuple[str, str]]
    limits: list[tuple[str, str]]
    thread: list[str]


def answer(tables: Tables, environment: Mapping[str, Any]) -> Answer:
    """Of a run's tables and its environment.json, which names the kernels of the user's own where they were judged."""
    findings, errors = tables["findings"], tables["errors"]
    results = int(tables["summary"]["n"].sum())
    shown = " that errors.csv shows" if len(errors) < results else ""
    problems = failed_devices(errors)
    strict = bool(environment.get("strict"))
    new = failing(findings, strict)
    if len(new):
        problems.append(counted(len(new), "new problem"))
    good, told = not problems, "; ".join(problems) or "No new problems"
    if own := environment.get("kernels"):
        paces = environment.get("paces", {})
        texts = {
            name: verdict(tables, name, torchs, strict=strict, pace=paces.get(name)) for name, torchs in own.items()
        }
        heads = [text.partition(":")[0] for text in texts.values()]
        good, told = good and all(" not sound" not in head for head in heads), "; ".join(heads)
        questions = [(f"{name}?", text) for name, text in texts.items()]
    else:
        questions = [
            ("Can my KL come out negative by rounding?", _negative(errors)),
            ("Which way of computing it should I use?", _best(errors, shown)),
            ("Do CPU and GPU agree?", _agree(errors)),
            ("Softmax and then its logarithm, or log_softmax?", _stable(errors, shown)),
        ]
        questions += _models(tables["statistics"]) if "statistics" in tables else []
    return Answer(
        told,
        good,
        new,
        _ran(errors, results, environment),
        [(question, said) for question, said in questions if said],
        _limits(findings),
        [] if own else [said for said in (_thread(tables), origin(tables)) if said],
    )


def _ran(errors: pd.DataFrame, results: int, environment: Mapping[str, Any]) -> str:
    """torch, the devices' models, how many results, how long it took, and when."""
    torch, seconds = environment.get("torch", {}), environment.get("seconds", {})
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
    """The values that these paths give for rows of logits."""
    alike = errors["kind"].eq("kl") & errors["reduction"].eq("none") & errors["target_kind"].eq("logits")
    return errors[alike & errors["path"].isin(paths)]


def _by_dtype(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each dtype, in the order in which people ask."""
    return sorted(((str(dtype), group) for dtype, group in rows.groupby("dtype")), key=lambda g: ASKED.index(g[0]))


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def closeness(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the cases near_*, with the size of the logits' differences in column `closeness`."""
    near = rows[rows["case"].str.startswith("near_")]
    return near.assign(closeness=near["case"].str.removeprefix("near_").astype(float))


def _negative(errors: pd.DataFrame) -> str:
    """From which closeness of the logits on, by dtype, and how often from there."""
    near = closeness(_rows(errors, STABLE))
    parts, never = [], []
    for dtype, rows in _by_dtype(near):
        limit = rows.loc[rows["negative"].eq(True), "closeness"].max()
        if limit == limit:
            share = rows.loc[rows["closeness"] <= limit, "negative"].astype(float).mean()
            parts.append(f"about {limit:g} in {dtype} ({share:.0%} of such rows)")
        else:
            never.append(dtype)
    if not parts:
        return f"No: none of {len(near):,} nearly equal rows did." if len(near) else ""
    tried = near["closeness"].unique()
    said = (
        f"Yes, once logits agree to {_listed(parts)}, of {len(tried)} distances from {max(tried):g} to {min(tried):g}"
    )
    said += f"; not in {_listed(never)}." if never else "."
    remedy = _rows(errors, REMEDY)["negative"].dropna()
    if len(remedy):
        said += f" {REMEDY} gave {int(remedy.sum()) or 'none'} in {len(remedy):,} rows."
    return said


def _best(errors: pd.DataFrame, shown: str) -> str:
    """The remedy beside the call that torch documents: median correct bits of the same rows."""
    parts = []
    for dtype, bits in _by_dtype(side_by_side(_rows(errors, STABLE, REMEDY), "correct_bits", STABLE, REMEDY)):
        middle, every = bits.median().clip(lower=0), FORMATS[dtype].precision  # below 0 the error is the larger
        parts.append(f"{middle[REMEDY]:.1f} against {middle[STABLE]:.1f} of {every} bits in {dtype}")
    if not parts:
        return ""
    return (
        f"audit.{REMEDY}, which keeps {_listed(parts)}, the median over all rows{shown} where both have some. Without "
        "it: kl_div of log_softmax(input) and softmax(target)."
    )


def _stable(errors: pd.DataFrame, shown: str) -> str:
    """The two compared, row by row: which is nearer the exact value, and which of them gives no finite value."""
    rows = _rows(errors, STABLE, FIRST)
    if rows["path"].nunique() < 2:
        return ""
    error = side_by_side(rows, "abs_error", STABLE, FIRST)
    lost = rows[~rows["result_class"].isin(["finite", "not_computed"])]["path"].value_counts()
    better, other = sorted((STABLE, FIRST), key=lambda path: lost.get(path, 0))
    few, many = lost.get(better, 0), lost.get(other, 0)
    said = (
        f"{better}, which gives inf or NaN in {few:,} rows where {other} does in {many:,}."
        if few < many
        else f"Either: inf or NaN in {few:,} rows of both."
    )
    if error.empty:
        return said
    won, lost_to = ((error[path] < error[than]).mean() for path, than in ((better, other), (other, better)))
    return (
        f"{said} Of the {len(error):,} rows{shown} where both are finite, {better} is nearer the exact value in "
        f"{won:.0%} and {other} in {lost_to:.0%}; in the others they are equally near."
    )


def failed_devices(errors: pd.DataFrame) -> list[str]:
    """A line for each device that computed nothing, or was lost on the way: neither may pass."""
    lines = []
    for device, rows in errors.groupby("device", sort=False):
        missing = rows[rows["result_class"] == "not_computed"]
        lost = missing[missing["note"].str.startswith("device lost")]
        if len(missing) == len(rows):
            lines.append(f"{device} computed nothing: {missing['note'].mode().iloc[0]}")
        elif len(lost):
            lines.append(f"{lost['note'].iloc[0]}: {len(lost):,} results of {device} are not computed")
    return lines


def agreement(errors: pd.DataFrame) -> pd.DataFrame:
    """The CPU against each accelerator, of the rows of errors.csv: a row per path, dtype and device.

    `same` is the share of results that are the same bit for bit. `agree`: both are finite or both the same, and they
    are no further apart than their two bounds together, of which `apart` is the largest share. `cpu_nearer` and
    `device_nearer` are the shares whose result is nearer the exact value; `nearer` names the device of the two where
    they differ by more than chance, else "neither".
    """
    key = ["case", "row", "path", "reduction", "dtype"]
    judged = errors[errors["kind"].isin(GATED) & (errors["result_class"] != "not_computed")]
    judged = judged[[*key, "device", "computed", "abs_error", "bound"]]
    there, here = judged[judged["device"] != CPU], judged[judged["device"] == CPU].drop(columns="device")
    both = there.merge(here, on=key, suffixes=("", "_cpu"))
    computed, other = both["computed"], both["computed_cpu"]
    same = computed.eq(other) | (computed.isna() & other.isna())
    # Of two infinities, or NaN and a number, the difference is no number, which is no agreement.
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = ((computed - other).abs() / (both["bound"] + both["bound_cpu"])).mask(same, 0.0)
    near, far = both["abs_error"] < both["abs_error_cpu"], both["abs_error"] > both["abs_error_cpu"]
    both = both.assign(same=same, agree=apart <= 1, apart=apart, cpu_nearer=far, device_nearer=near)
    table = both.groupby(["path", "dtype", "device"], sort=False, as_index=False).agg(
        results=("same", "size"),
        same=("same", "mean"),
        agree=("agree", "all"),
        apart=("apart", "max"),
        cpu_nearer=("cpu_nearer", "mean"),
        device_nearer=("device_nearer", "mean"),
    )
    # A fair coin leaves its mean by more than three standard deviations once in 370 times.
    won = (table["device_nearer"] - table["cpu_nearer"]) * table["results"]
    chance = 3 * np.sqrt((table["device_nearer"] + table["cpu_nearer"]) * table["results"])
    return table.assign(nearer=np.select([won > chance, won < -chance], [table["device"], CPU], "neither"))


def _agree(errors: pd.DataFrame) -> str:
    """`agreement` in words, a sentence or two an accelerator; "" where the CPU and one do not both have results."""
    told = []
    for device, ways in agreement(errors).groupby("device", sort=False):
        wrong = ways[~ways["agree"]].sort_values("apart", ascending=False, na_position="first", kind="stable")
        names = [f"{path} in {dtype}" for path, dtype in zip(wrong["path"], wrong["dtype"], strict=True)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        results, nearer = ways["results"].sum(), ways["nearer"].value_counts()
        said = (
            f"No: {device} and the CPU give what two sound results cannot both be by {', '.join(names[:3])}{more}."
            if names
            else f"Yes: {device} and the CPU are no further apart than rounding allows in {results:,} results."
        )
        same = (ways["same"] * ways["results"]).sum() / results
        told.append(
            f"{said} {same:.0%} are the same bit for bit; of {len(ways)} ways and dtypes {device} is nearer the exact "
            f"value in {nearer.get(device, 0)}, the CPU in {nearer.get(CPU, 0)}."
        )
    return " ".join(told)


def _models(statistics: pd.DataFrame) -> list[tuple[str, str]]:
    """How far the rows of a file are apart, and how fine a difference each dtype shows: questions and answers."""
    exact = statistics[statistics["path"] == "exact"].drop_duplicates("direction").set_index("direction")
    if exact.empty:  # of tokens
        return []
    one, other = exact.loc["target_input"], exact.loc["input_target"]
    said = (
        f"KL(target || input) is {one['mean']:.4g} ± {one['standard_error']:.2g} in the mean of "
        f"{one['n'] - one['non_finite']:,} rows (median {one['p50']:.3g}, 99.9th percentile {one['p99_9']:.3g}, "
        f"largest {one['maximum']:.3g}), the other direction {other['mean']:.4g}; "
        f"{one['same_top_class']:.1%} of the rows have the same top class."
    )
    if one["non_finite"]:
        said += f" {one['non_finite']:,} rows are not finite and left out."
    floors = []
    for (dtype, device), rows in statistics[statistics["path"] != "exact"].groupby(["dtype", "device"], sort=False):
        ways = dict(zip(rows["path"], rows["error_p99"], strict=True))
        path = STABLE if STABLE in ways else next(iter(ways))
        floors.append(
            f"Below {ways[path]:.1g} the differences you see are rounding of the evaluation in {dtype} on {device}: "
            f"99 % of {path}'s errors are smaller."
        )
    return [
        ("How far apart are the two models?", said),
        ("How small a difference can be seen?", " ".join(floors)),
    ]


def _limits(findings: pd.DataFrame) -> list[tuple[str, str]]:
    """What is understood, by its name: of how many results, and why. What is lossy comes last, its worst told."""
    limits = []
    for name, group in findings[findings["status"] == ACKNOWLEDGED].groupby("acknowledged_by", sort=False):
        reason, dot, _ = str(group["reason"].iloc[0]).partition(". ")
        limits.append((str(name), f"{counted(int(group['results'].sum()), 'result')}: {reason}{dot.strip()}"))
    lossy = findings[findings["status"] == LOSSY]
    if len(lossy):
        worst = lossy.sort_values("worst_ratio").to_dict("records")[-1]
        told = f"{counted(int(lossy['results'].sum()), 'result')} of {', '.join(lossy['path'].unique())}"
        limits.append((LOSSY, f"{told}; {worst['path']} {worst['dtype']} in {worst['case']} is {example(worst)}"))
    return limits


def _thread(tables: Tables) -> str:
    if "thread" not in tables:
        return ""
    quotes = tables["thread"].query("subject == 'KLDivLoss, equal logits'")
    parts = []
    for (implementation, device), rows in quotes.groupby(["implementation", "device"], sort=False):
        name = "today's torch" if implementation == "today" else "the kernels of 2017, emulated,"
        reproduced, size = (rows["reproduced"] == "yes").sum(), rows["median_magnitude"].iloc[0]
        parts.append(f"{name} on {device} in {reproduced} of {len(rows)} numbers (median magnitude {size:.1e})")
    if not parts:
        return ""
    return (
        "The forum thread that started this audit quotes a KLDivLoss of 1.4934e-12, 1.8763e-11 and -2.3461e-11 for "
        f"equal inputs, where 0 is exact; such values are what rounding gives with {_listed(parts)}."
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
        f"What float32 gives for equal logits, where 0 is exact, is made by {PARTS[first]} ({shares.iloc[0]:.0%} of "
        f"the parts' sizes), and {PARTS[second]} ({shares.iloc[1]:.0%}); its sign is that of the mass of the rounded "
        f"probabilities less that of the rounded log-probabilities' exponentials, in {signs} of {len(rows)} rows."
    )
