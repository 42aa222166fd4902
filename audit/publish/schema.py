"""The tables' columns, from which they are typed, checked, read back and documented."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
from pandas.api.types import infer_dtype

SCHEMA_VERSION = 1
TEXT, INTEGER, FLOAT, BOOLEAN = "str", "Int64", "float64", "boolean"


@dataclass(frozen=True)
class Column:
    """`dtype` as pandas reads it back; `empty` says when the field is."""

    name: str
    dtype: str
    meaning: str
    unit: str = ""
    empty: str = "never"


_KEY = [
    Column("case", TEXT, "what was fed in"),
    Column("path", TEXT, "the way of computing"),
    Column("reduction", TEXT, "none (a value a row), sum, mean or batchmean"),
    Column("dtype", TEXT, "format of the input and target"),
    Column("device", TEXT, "where it was computed"),
    Column("kind", TEXT, "kl, identity, estimator or misuse; the first two are gated"),
]
_CASE, _PATH, _REDUCTION, _DTYPE, _DEVICE, _KIND = _KEY
_WHERE = [_PATH, _DTYPE, _DEVICE]
_UNCOMPUTED = "nothing was computed"
_FINITE = "no value is finite"
_UNNAMED = "none was recognised, or nothing is wrong"
_RAISED = "an exception was observed"

# Of a group of results.
_FIGURES = [
    Column("n", INTEGER, "results"),
    Column("scaled_error_median", FLOAT, "median of scaled_error", "u", "no row has one"),
    Column("scaled_error_p99", FLOAT, "99th percentile of scaled_error", "u", "no row has one"),
    Column("scaled_error_max", FLOAT, "largest scaled_error", "u", "no row has one"),
    Column("correct_bits_median", FLOAT, "median of correct_bits", "bits", "no row has one"),
    Column("negative_share", FLOAT, "share of computed results that are negative", "", _UNCOMPUTED),
    Column("false_zero_share", FLOAT, "share of computed results that are a false zero", "", _UNCOMPUTED),
    Column("non_finite", INTEGER, "computed results that are not finite"),
    Column("findings", INTEGER, "gated results beyond their bound"),
    Column("computed_digest", TEXT, "SHA-256 of the results as little-endian binary64, in key order"),
]

SCHEMAS: dict[str, list[Column]] = {
    "errors": [
        _CASE,
        Column("row", INTEGER, "the case's row, from 0", empty="the result is reduced over rows"),
        *_KEY[1:],
        Column("rows", INTEGER, "rows of the case"),
        Column("classes", INTEGER, "classes of the case"),
        Column("target_kind", TEXT, "logits, log_probs or probs"),
        Column(
            "input_digest", TEXT, "SHA-256 of dtype, shape, input bytes and target bytes: of the row, or of the case"
        ),
        Column(
            "reference",
            TEXT,
            "exact value of what the path means to compute, 50 digits; screened, the certain ones",
            "nats",
        ),
        Column("exact_kl", TEXT, "KL of the same input and target, 50 significant digits", "nats"),
        Column("reference_source", TEXT, "gold, computed, screened, or exact where it is decided by proof"),
        Column("computed", FLOAT, "what the path returned", "nats", _UNCOMPUTED),
        Column("result_dtype", TEXT, "format of the result", empty=_UNCOMPUTED),
        Column("result_class", TEXT, "finite, not_a_number, plus_infinity, minus_infinity or not_computed"),
        Column("note", TEXT, "why nothing was computed", empty="something was computed"),
        Column("drift", FLOAT, "computed - reference, rounded once", "nats", "either is not finite"),
        Column("abs_error", FLOAT, "magnitude of the drift", "nats", "drift is empty"),
        Column("rel_error", FLOAT, "abs_error / |reference|", "", "drift is empty or the reference is 0"),
        Column("ulp_error", FLOAT, "abs_error / the spacing of result_dtype at the reference", "ulp", "drift is empty"),
        Column("correct_bits", FLOAT, "min(precision, -log2(rel_error))", "bits", "rel_error is empty"),
        Column(
            "scaled_error",
            FLOAT,
            "abs_error / (u (1 + sum p (|log p| + |log q|)))",
            "u",
            "drift is empty, or the sum infinite",
        ),
        Column(
            "input_error",
            FLOAT,
            "exact KL of the rounded numbers - that of the numbers before rounding",
            "nats",
            "there were none, or one of the two is infinite",
        ),
        Column("bound", FLOAT, "largest error of a sound implementation", "nats", "misuse and estimators"),
        Column("within_bound", BOOLEAN, "whether the drift keeps the bound", empty="bound is empty"),
        Column(
            "attainable",
            FLOAT,
            "largest error of an implementation in the same formats whose sums are made in pairs",
            "nats",
            "misuse and estimators",
        ),
        Column("lossy", BOOLEAN, "within bound, but not within attainable", empty="bound is empty"),
        Column("cause", TEXT, "the known defect whose formula gives this result (`list causes`)", empty=_UNNAMED),
        Column("negative", BOOLEAN, "computed < 0", empty=_UNCOMPUTED),
        Column("false_zero", BOOLEAN, "computed = 0 though the reference rounds to another number", empty=_UNCOMPUTED),
    ],
    "summary": [*_KEY, *_FIGURES],
    "history": [
        Column("run", INTEGER, "its number, from 1"),
        Column("created", TEXT, "when, in UTC"),
        Column("audit", TEXT, "version of the audit"),
        Column("torch", TEXT, "version of torch"),
        Column("driver", TEXT, "version of NVIDIA's driver", empty="there is none"),
        Column("cpu_capability", TEXT, "instructions of the CPU that torch uses"),
        *_WHERE,
        Column("model", TEXT, "model of the device"),
        Column("source", TEXT, "digest of the file of a kernel of one's own", empty="it is a path of the audit"),
        _KIND,
        Column("input_digest", TEXT, "SHA-256 of the input_digest of its results: of equal ones alone numbers compare"),
        *_FIGURES,
    ],
    "statistics": [
        Column("path", TEXT, "the way of computing, or exact for the exact values"),
        _DTYPE,
        Column("device", TEXT, "where it was computed", empty="of exact values"),
        Column("direction", TEXT, "target_input is KL(target || input), input_target the other"),
        Column("n", INTEGER, "rows"),
        Column("non_finite", INTEGER, "rows whose value is not finite; the others count below"),
        Column("mean", FLOAT, "mean", "nats", _FINITE),
        Column("standard_error", FLOAT, "standard deviation over the square root of the rows", "nats", _FINITE),
        Column("minimum", FLOAT, "smallest", "nats", _FINITE),
        *(
            Column(f"p{p:g}".replace(".", "_"), FLOAT, f"percentile {p:g}", "nats", _FINITE)
            for p in (1, 5, 10, 50, 90, 95, 99, 99.9)
        ),
        Column("maximum", FLOAT, "largest", "nats", _FINITE),
        Column("same_top_class", FLOAT, "share of rows whose largest input and target are of one class"),
        Column("error_p99", FLOAT, "99th percentile of the magnitude of the path's errors", "nats", "of exact values"),
    ],
    "findings": [
        Column(
            "status",
            TEXT,
            "new, lossy (sound, but less accurate than attainable), shared (of a kernel of the user's own: torch's "
            "path has it on the same rows), or acknowledged",
        ),
        *_WHERE,
        Column(
            "symptom",
            TEXT,
            "beyond_bound, narrow_result (it is, and of a coarser dtype than the logits), lossy, or the "
            "result_class; for a gradient input_gradient_ or target_gradient_, followed by "
            "beyond_bound or not_finite; changes, for what should change nothing",
        ),
        Column("cause", TEXT, "the known defects that give some of these results, or all", empty=_UNNAMED),
        Column("acknowledged_by", TEXT, "name of the acknowledgement", empty="the finding is not acknowledged"),
        Column("reason", TEXT, "its reason", empty="the finding is not acknowledged"),
        Column("results", INTEGER, "results it stands for"),
        Column("cases", TEXT, "the cases they are of"),
        Column("reductions", TEXT, "the reductions they are of"),
        Column(
            "worst_ratio", FLOAT, "largest abs_error / bound; of what is lossy, / attainable", "", "no result is finite"
        ),
        Column("case", TEXT, "case of the example: the result with the fewest classes; of what is lossy, the worst"),
        Column("row", INTEGER, "its row", empty="it is reduced over rows"),
        Column("reduction", TEXT, "its reduction"),
        Column("reference", TEXT, "its exact value, 50 significant digits; of a gradient, 17", "nats"),
        Column("computed", FLOAT, "what the path returned", "nats"),
        Column("bound", FLOAT, "largest error of a sound implementation", "nats"),
        Column("scaled_error", FLOAT, "its scaled_error", "u", "it has none, or is a gradient"),
        Column("note", TEXT, "why nothing was computed, or what a change or a backward was", empty="there is none"),
        Column("fails_at", TEXT, "numbers of classes at which some result has the symptom", empty="it is a change"),
        Column("passes_at", TEXT, "numbers of classes at which none has", empty="there are none"),
        Column("classes", INTEGER, "classes of the smallest input found that shows it", empty="it was not shrunk"),
        Column("input", TEXT, "that input, hexadecimal floats", empty="it was not shrunk, or has over 64 runs"),
        Column("target", TEXT, "its target, hexadecimal floats", empty="it was not shrunk, or has over 64 runs"),
        Column("script", TEXT, "reproduces it with torch and mpmath", empty="it was not shrunk"),
    ],
    "attribution": [
        _CASE,
        Column("row", INTEGER, "the case's row, from 0"),
        *_WHERE,
        Column("drift", FLOAT, "computed - exact KL, the sum of the parts", "nats"),
        Column("softmax", FLOAT, "part of the rounding of the target's probabilities", "nats"),
        Column("shift", FLOAT, "part that the input's log-probabilities have in common: log sum exp", "nats"),
        Column("log_softmax", FLOAT, "the rest of the log-probabilities' rounding", "nats"),
        Column("log", FLOAT, "part of the logarithm of the target's probabilities", "nats"),
        Column("product", FLOAT, "part of subtraction and product", "nats"),
        Column("summation", FLOAT, "part of the sum over classes", "nats"),
        Column("output", FLOAT, "part of the rounding of the result", "nats"),
        Column("mass_difference", FLOAT, "sum of probabilities - sum of exp(log-probabilities): the drift's sign"),
        Column(
            "input_error",
            FLOAT,
            "what rounding the logits had changed before, as in errors.csv",
            "nats",
            "there were none",
        ),
    ],
    "elements": [
        Column("case", TEXT, "what was fed in; its first rows"),
        Column("operation", TEXT, "softmax, log_softmax or log(softmax)"),
        Column("dtype", TEXT, "format of input and result"),
        Column("device", TEXT, "where it was computed"),
        Column("elements", INTEGER, "elements compared"),
        Column("worst", FLOAT, "largest error", "ulp", "no element is finite"),
        Column("p99", FLOAT, "99th percentile of the error's magnitude", "ulp", "no element is finite"),
        Column("mean_signed", FLOAT, "mean error, signed", "ulp", "no element is finite"),
        Column("above_1", FLOAT, "share of elements that are off by more than 1 ulp", "", "no element is finite"),
        Column("non_finite", INTEGER, "elements that are not finite, or whose exact value is not"),
        Column("worst_row", INTEGER, "where the worst stands: its row"),
        Column("worst_class", INTEGER, "and its class"),
        Column("worst_input", TEXT, "and its logit, as a hexadecimal float"),
    ],
    "growth": [
        *_WHERE,
        Column("classes", INTEGER, "classes of the row, of which one has a probability of 0.9"),
        Column("first", FLOAT, "scaled error where that is the first class", "u", "no number, or an infinite one"),
        Column("random", FLOAT, "where it is a random one", "u", "no number, or an infinite one"),
        Column("last", FLOAT, "where it is the last", "u", "no number, or an infinite one"),
        Column(
            "growth",
            TEXT,
            "how the largest of the three grows with the classes, for this path, dtype and device: flat, log n, sqrt n "
            "or n, whichever is nearest in the mean square of logarithms, from 16 classes on",
            empty="fewer than three numbers of classes have one",
        ),
    ],
    "gradients": [
        Column("case", TEXT, "what was fed in; its first and last row"),
        _PATH,
        _REDUCTION,
        _DTYPE,
        _DEVICE,
        Column("side", TEXT, "with respect to the logits of input or target; of a mean, times what it divides by"),
        Column("backward", TEXT, "how it was asked for", empty="as it is, of all rows weighted unequally"),
        Column("classes", INTEGER, "classes of the case"),
        Column("elements", INTEGER, "elements compared"),
        Column("worst_in_u", FLOAT, "largest |computed - exact|", "u", "no element is finite"),
        Column("worst_relative", FLOAT, "the same over the largest exact element", "", "the gradient is 0"),
        Column("worst_of_bound", FLOAT, "largest |computed - exact| / bound", "", "no element is finite"),
        Column("within_bound", BOOLEAN, "whether every element is finite and keeps its bound"),
        Column("symptom", TEXT, "what is wrong, as findings.csv says it", empty="nothing is"),
        Column("not_a_number", INTEGER, "elements that are NaN"),
        Column("infinite", INTEGER, "elements that are infinite"),
        Column("row", INTEGER, "where the element furthest beyond its bound, or nearest to it, stands: its row"),
        Column("class", INTEGER, "and its class"),
        Column("reference", FLOAT, "exact gradient there"),
        Column("computed", FLOAT, "what autograd gave there"),
        Column("bound", FLOAT, "largest error of a sound implementation there"),
        Column(
            "breaks_at_gap",
            FLOAT,
            "of two classes, the smallest gap tried between that side's logits where its gradient is not finite",
            "nats",
            "it stays finite up to 30,000, or the path runs on a few cases alone",
        ),
    ],
    "invariance": [
        *_WHERE,
        Column("check", TEXT, "what should change nothing"),
        Column("rows", INTEGER, "rows compared"),
        Column("changed_share", FLOAT, "share of rows whose result changes in any bit"),
        Column("largest_ulp", FLOAT, "largest change", "ulp of the result", "no result is finite"),
        Column("largest_of_bound", FLOAT, "largest change / bound", "", "no result is finite"),
        Column("non_finite", INTEGER, "rows that were finite and are not any more"),
        Column("case", TEXT, "where the largest change is"),
        Column("row", INTEGER, "its row"),
    ],
    "bench": [
        *_WHERE,
        Column("rows", INTEGER, "rows of the input"),
        Column("classes", INTEGER, "classes of the input"),
        Column("direction", TEXT, "forward, or backward to the input's logits"),
        Column("seconds", FLOAT, "a call's time, the median of its rounds", "s"),
        Column("gigabytes_per_second", FLOAT, "inputs read, and gradient written, in that time", "GB/s", "older files"),
        Column(
            "copy_gigabytes_per_second", FLOAT, "what a copy of 256 MB reads and writes there", "GB/s", "older files"
        ),
        Column("ratio", FLOAT, "a call's time / that of exp and sum over the same tensor, timed in turn"),
        Column("correct_bits", FLOAT, "of the value, or of the gradient as a whole; median over rows", "bits", "none"),
        Column("scaled_error", FLOAT, "the same, as in errors.csv; of a gradient over max(p + q)", "u", "none"),
        Column("pareto", BOOLEAN, "no other path is both as fast and as accurate at this size"),
    ],
    "thread": [
        Column("subject", TEXT, "what the thread speaks of"),
        Column("quoted", TEXT, "the number or words it quotes"),
        Column("implementation", TEXT, "today (this torch) or thread_era (the kernels of 2017, emulated)"),
        Column("device", TEXT, "where it was measured"),
        Column("explanation", TEXT, "what it is"),
        Column("draws", INTEGER, "seeds measured"),
        Column("reference", TEXT, "exact value", empty="it depends on the draw"),
        Column("minimum", FLOAT, "smallest draw", "nats", _RAISED),
        Column("p05", FLOAT, "5th percentile of the draws", "nats", _RAISED),
        Column("median", FLOAT, "median of the draws", "nats", _RAISED),
        Column("p95", FLOAT, "95th percentile of the draws", "nats", _RAISED),
        Column("maximum", FLOAT, "largest draw", "nats", _RAISED),
        Column("median_magnitude", FLOAT, "median of the draws' magnitudes", "nats", _RAISED),
        Column("negative_share", FLOAT, "share of negative draws", "", _RAISED),
        Column("zero_share", FLOAT, "share of draws that are exactly 0", "", _RAISED),
        Column(
            "histogram",
            TEXT,
            "counts of the draws in 40 bins of equal width from minimum to maximum",
            empty=f"all draws are equal, or {_RAISED}",
        ),
        Column("percentile", FLOAT, "share of draws no larger in magnitude than the quote", "%", "no number is quoted"),
        Column("reproduced", TEXT, "yes, no, or mechanism (sign and range, but not the value)"),
        Column("why", TEXT, "the evidence for that"),
        Column("observed", TEXT, "the range of the draws, or the exception's message"),
    ],
    "columns": [
        Column("file", TEXT, "a file of this report"),
        Column("name", TEXT, "a column of it"),
        Column("dtype", TEXT, "as pandas names it: str, Int64, float64 or boolean"),
        Column("unit", TEXT, "of its numbers", empty="they have none"),
        Column("meaning", TEXT, "what it holds"),
        Column("empty", TEXT, "when a field is empty"),
    ],
}


def described(names: Iterable[str]) -> pd.DataFrame:
    """The rows of columns.csv: what the columns of the tables `names` are, for whatever reads them."""
    rows = [vars(column) | {"file": f"{name}.csv"} for name in names for column in SCHEMAS[name]]
    return typed(pd.DataFrame(rows), "columns")


def typed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The columns of table `name`, in order and of their dtypes; one that is not there is empty."""
    wanted = frame.reindex(columns=[c.name for c in SCHEMAS[name]])
    return pd.DataFrame({c.name: _convert(wanted[c.name], c.dtype) for c in SCHEMAS[name]})


def _convert(series: pd.Series, dtype: str) -> pd.Series:
    if dtype == TEXT:
        return series.astype(object).where(series.notna(), "").astype(str)
    return pd.Series(series, dtype=dtype)


def check(frame: pd.DataFrame, name: str) -> None:
    """Raises ValueError where a frame is not the table `name`: its columns in order, each of its dtype."""
    columns = SCHEMAS[name]
    wanted = [c.name for c in columns]
    if list(frame.columns) != wanted:
        missing, extra = set(wanted) - set(frame.columns), set(frame.columns) - set(wanted)
        raise ValueError(f"{name}: missing {sorted(missing)}, unknown {sorted(extra)}, or in another order")
    for column in columns:
        if not _fits(frame[column.name], column.dtype):
            raise ValueError(f"{name}.{column.name}: expected {column.dtype}, got {frame[column.name].dtype}")


def _fits(series: pd.Series, dtype: str) -> bool:
    if dtype == TEXT:
        return infer_dtype(series, skipna=False) in ("string", "empty")
    return str(series.dtype) == dtype
