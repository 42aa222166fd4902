"""The plots: each a function of one table, which gives nothing where the rows it needs are not there."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from audit.base.formats import FORMATS
from audit.base.workers import Later, Submit, later
from audit.publish.answer import PARTS, closeness
from audit.publish.verdict import Tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAIN = ("softmax_log", "log_softmax", "cross_entropy_minus_entropy", "generalised", "kl_div_from_logits")
# Of errors.csv, whose other columns need not travel to another process.
_NEEDED = ["case", "path", "reduction", "dtype", "device", "kind", "classes", "abs_error", "bound", "correct_bits",
           "false_zero"]  # fmt: skip
# Okabe and Ito's colours: told apart by colour-blind readers, legible on white and on black.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888"]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters
    "axes.prop_cycle": f"cycler('color', {COLOURS})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "font.size": 9,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "text.parse_math": False,  # a name is no formula
}


@dataclass(frozen=True)
class Plot:
    """`svg` takes the colour of the text around it for its lines and letters."""

    svg: str
    title: str
    text: str

    @property
    def file(self) -> str:
        """The drawing by itself, on white whatever surrounds it."""
        return self.svg.replace("<svg ", '<svg style="background:#fff" ', 1)


def draw(tables: Tables, submit: Submit = later) -> Later[dict[str, Plot]]:
    """Begins every plot that the tables allow, and waits for them when called; by name.

    Of several devices the last is drawn, which is no CPU, but for the thread's plot.
    """
    begun = {}
    for name, (table, _) in _PLOTS.items():
        rows = tables.get(table, pd.DataFrame())
        if len(rows) and table != "thread":
            rows = rows[rows["device"] == rows["device"].iloc[-1]]
        if len(rows):
            begun[name] = submit(_drawn, name, rows[_NEEDED] if table == "errors" else rows)
    return lambda: {name: plot for name, wait in begun.items() if (plot := wait()) is not None}


def _drawn(name: str, rows: pd.DataFrame) -> Plot | None:
    import matplotlib

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):  # the same numbers give the same file
        return _PLOTS[name][1](rows)


def _figure(height: float, rows: int = 1, columns: int = 1, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, height), layout="constrained")  # legible on a phone
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharex=sharex).flat)


def _log(axes: Axes, *directions: Literal["x", "y"]) -> None:
    for direction in directions:
        axes.set(**{f"{direction}scale": "log"})
        getattr(axes, f"{direction}axis").set_major_formatter("{x:.0e}")
        axes.tick_params(axis=direction, labelsize=7)
    axes.minorticks_off()


def _plot(figure: Figure, title: str, text: str, source: str) -> Plot:
    """The source and the size of the sample stand in the drawing too: it is also a file of its own."""
    label = " · ".join(filter(None, (figure.get_supxlabel(), source)))
    figure.supxlabel(label, fontsize=7, x=0.99, ha="right")
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = out.getvalue()[out.getvalue().index("<svg") :]
    # Groups' ids repeat from plot to plot; nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("#000000", "currentColor")
    return Plot(svg, title, f"{text} Source: {source}.")


def _thread(thread: pd.DataFrame) -> Plot | None:
    rows = thread[(thread["histogram"] != "") & thread["percentile"].notna() & (thread["reference"] == "0")]
    if rows.empty:
        return None
    subjects = rows.groupby("subject", sort=False)
    figure, panels = _figure(4.6, len(subjects))
    for axes, (subject, group) in zip(panels, subjects, strict=True):
        drawn = group[(group["implementation"] == "today") | (group["device"] == rows["device"].iloc[0])]
        drawn = drawn.drop_duplicates(["implementation", "device"])
        scale = drawn[["minimum", "maximum"]].abs().to_numpy().max()
        for row, colour in zip(drawn.itertuples(), COLOURS, strict=False):
            counts = np.array(row.histogram.split(), dtype=float)
            edges = np.linspace(row.minimum, row.maximum, len(counts) + 1)
            density = counts / counts.sum() / (edges[1] - edges[0]) * scale
            name = f"today's torch, {row.device}" if row.implementation == "today" else "kernels of 2017, emulated"
            axes.stairs(density, edges, color=colour, fill=True, alpha=0.35)
            axes.stairs(density, edges, color=colour, label=name)
        for i, quote in enumerate(group["quoted"].unique()):
            axes.axvline(float(quote), color="#000000", linewidth=1, linestyle="--")
            place, height = axes.get_xaxis_transform(), 0.95 - 0.14 * i
            axes.annotate(f"quoted: {quote}", (float(quote), height), (0.28, height), place, "axes fraction",
                          {"arrowstyle": "->", "linewidth": 0.6}, ha="right", va="center")  # fmt: skip
        axes.set(title=f"{subject}: exactly 0", xlabel="result, nats", ylabel="density of draws", yticks=[])
        axes.legend()
    text = "What the thread's two checks give over many seeds, and the numbers it quotes (dashed)."
    return _plot(
        figure,
        "Is a KLDivLoss of 1e-11 for equal inputs rounding?",
        text,
        f"thread.csv, {rows['draws'].max():,} draws a curve, float32",
    )


def _training(_: pd.DataFrame) -> Plot:
    rows = pd.read_csv(str(files("audit.publish") / "training.csv"))
    figure, (wrong, right) = _figure(5, 2, sharex=True)
    runs = {name: run.set_index("epoch") for name, run in rows.groupby("training")}
    stable = runs["KLDivLoss of log_softmax"]
    wrong.plot(runs["KLDivLoss of softmax"]["loss"], "o-", label="KLDivLoss of softmax")
    right.plot(stable["loss"], "o-", label="KLDivLoss of log_softmax")
    right.plot(stable["cross_entropy"] / 10, "x", markersize=9, label="cross_entropy / 10, same outputs")
    right.plot(runs["cross_entropy"]["loss"] / 10, "^:", label="cross_entropy / 10, trained by itself")
    wrong.set(ylabel="loss, nats", ylim=(-0.1, 0))
    right.set(xlabel="epoch", ylabel="loss, nats", ylim=(0, None))
    wrong.legend()
    right.legend()
    text = (
        "The thread's network, trained three times from one seed. Softmax output taken for log-probabilities gives "
        "-mean(p_label)/10: negative, and falling as training succeeds. log_softmax gives a tenth of cross_entropy."
    )
    source = "audit/publish/training.csv, recorded by references/digits/make.py"
    return _plot(figure, "Does a negative loss train?", text, f"{source}, {len(rows)} means of 200 mini-batches of 4")


def _closeness(errors: pd.DataFrame) -> Plot | None:
    near = closeness(errors[errors["reduction"].eq("none") & errors["kind"].eq("kl")])
    paths = list(near["path"].unique())
    paths = paths if len(paths) <= len(COLOURS) else [path for path in MAIN if path in paths]
    near = near[near["path"].isin(paths)]
    dtypes = [d for d in ("float32", "bfloat16") if d in set(near["dtype"])] or list(near["dtype"].unique())[:2]
    if near.empty:
        return None
    # 0 for what is not 0 has no digit right, whatever its logarithm.
    near = near.assign(bits=near["correct_bits"].mask(near["false_zero"].fillna(False).astype(bool), 0.0).clip(lower=0))
    figure, panels = _figure(2.9 * len(dtypes), len(dtypes))
    for axes, dtype in zip(panels, dtypes, strict=True):
        rows = near[near["dtype"] == dtype]
        every = FORMATS[dtype].precision
        for path, colour in zip(paths, COLOURS, strict=False):
            line = rows[rows["path"] == path].groupby("closeness")["bits"].median()
            if len(line):
                axes.plot(line, marker="o", markersize=4, color=colour, label=path)
        _named_at_ends(axes)
        for level, name in ((every, "every digit right"), (0, "no digit right")):
            axes.axhline(level, color="#000000", linewidth=0.8, linestyle=":")
            axes.annotate(name, (0, level), (3, 2), ("axes fraction", "data"), "offset points", fontsize=7)
        _log(axes, "x")
        axes.invert_xaxis()
        axes.set(title=dtype, ylabel="correct bits, median", ylim=(-every / 20, every * 1.12))
    panels[-1].set_xlabel("how far the logits of the two sides differ")
    text = (
        "Correct bits of each way of computing as the two sides come together. A result of 0 where the value is not 0 "
        "counts as no digit right."
    )
    return _plot(
        figure, "How many digits are left when the two sides agree?", text, _sample(near[near["dtype"].isin(dtypes)])
    )


def _named_at_ends(axes: Axes) -> None:
    """Each line's name at its right end, apart from the others' and in its colour."""
    lines = sorted(axes.get_lines(), key=lambda line: float(np.asarray(line.get_ydata())[0]))
    top = axes.get_ylim()[1]
    places: list[float] = []
    for line in lines:
        height = float(np.asarray(line.get_ydata())[0])
        places.append(max(height, places[-1] + 0.07 * top if places else height))
        axes.annotate(str(line.get_label()), (1.01, places[-1]), xycoords=("axes fraction", "data"),
                      color=line.get_color(), fontsize=8, va="center")  # fmt: skip


def _growth(growth: pd.DataFrame) -> Plot | None:
    rows = growth[growth["path"].isin(MAIN)] if growth["path"].isin(MAIN).any() else growth
    dtypes = list(rows["dtype"].unique())
    worst = rows.assign(worst=rows[["first", "random", "last"]].max(axis=1).clip(lower=0.01))
    figure, panels = _figure(5.4, (len(dtypes) + 1) // 2, 2 if len(dtypes) > 1 else 1, sharex=True)
    for axes, dtype in zip(panels, dtypes, strict=False):
        drawn = worst[rows["dtype"] == dtype].pivot(index="classes", columns="path", values="worst")
        drawn.reindex(columns=rows["path"].unique()).plot(ax=axes, style=".-", legend=False)
        _log(axes, "x", "y")
        axes.set(title=dtype, xlabel="classes", ylabel="scaled error, u")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    laws = rows.drop_duplicates(["path", "dtype"])
    laws = laws[laws["growth"].isin(["sqrt n", "n"])]
    grows = ", ".join(laws["path"] + " in " + laws["dtype"] + " with " + laws["growth"])
    text = "The worst error of rows with one likely class, the first, a random one or the last, as they grow wider."
    text += f" It grows: {grows}." if grows else ""
    return _plot(figure, "Error against classes", text, f"growth.csv, {3 * len(rows):,} results")


def _attribution(attribution: pd.DataFrame) -> Plot | None:
    rows = attribution[attribution["dtype"] == "float32"]
    if rows.empty:
        return None
    sizes = rows[list(PARTS)].abs().groupby([rows["path"], rows["case"]], sort=False).mean()
    shares = sizes.div(sizes.sum(axis=1), axis=0)[::-1]
    names = [case if rows["path"].nunique() == 1 else f"{path}: {case}" for path, case in shares.index]
    figure, (axes,) = _figure(1.9 + 0.3 * len(shares))
    shares = shares.set_axis(names).rename(columns=lambda part: PARTS[part].removeprefix("the rounding of "))
    shares.plot.barh(stacked=True, ax=axes, legend=False, width=0.8, edgecolor="#ffffff", linewidth=0.8)
    axes.set(xlim=(0, 1), xlabel="share of the error that the rounding of each makes")
    figure.legend(loc="outside upper center", ncols=2)
    same = (np.sign(rows["mass_difference"]) == np.sign(rows["drift"])).sum()
    text = (
        f"Which rounding makes the drift of {', '.join(rows['path'].unique())} in float32; the parts, signed, add up "
        f"to it. Its sign is that of mass(p) - mass(exp log q) as rounded in {same} of {len(rows)} rows."
    )
    return _plot(figure, "Which rounding makes the error?", text, f"attribution.csv, {len(rows)} rows")


def _time(benchmarks: pd.DataFrame) -> Plot | None:
    rows = benchmarks.query(
        "direction == 'forward' and classes in (1_000, 32_000) and dtype in ('float32', 'bfloat16')"
    ).dropna(subset=["seconds", "correct_bits"])
    if rows.empty:
        return None
    panels = rows.groupby(["rows", "classes", "dtype"], sort=False)
    figure, every = _figure(2.6 * ((len(panels) + 1) // 2), (len(panels) + 1) // 2, 2)
    for axes, ((size, classes, dtype), group) in zip(every, panels, strict=False):
        best = group[group["pareto"]].sort_values("seconds")
        axes.plot(group["seconds"], group["correct_bits"], "o", color=COLOURS[-1], markersize=3)
        axes.step(best["seconds"], best["correct_bits"], "o-", where="post", markersize=5)
        for path, *place in best[["path", "seconds", "correct_bits"]].itertuples(index=False):
            axes.annotate(path, tuple(place), (3, -3), textcoords="offset points", fontsize=7, va="top")
        _log(axes, "x")
        axes.margins(x=0.3, y=0.15)
        axes.set(title=f"{dtype}, {size:,} x {classes:,}", xlabel="time of a call, s", ylabel="correct bits, median")
    text = (
        f"A call's time on {rows['device'].iloc[0]} and its correct bits, for two sizes; paths that no other beats in "
        "both are named. From the last `make bench`, which may be older than this audit."
    )
    return _plot(figure, "What does accuracy cost?", text, f"bench.json, {len(rows)} benchmarks, forward")


def _sample(rows: pd.DataFrame) -> str:
    return f"errors.csv, {len(rows):,} results on {rows['device'].iloc[0]}"


_PLOTS: dict[str, tuple[str, Callable[[pd.DataFrame], Plot | None]]] = {
    "thread": ("thread", _thread),
    "training": ("errors", _training),
    "closeness": ("errors", _closeness),
    "growth": ("growth", _growth),
    "attribution": ("attribution", _attribution),
    "time": ("bench", _time),
}
