"""Which results a gate objects to, each kind once, and which of them are understood."""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Iterable, Iterator
from configparser import ConfigParser
from configparser import Error as ParserError
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from audit.base.formats import FORMATS
from audit.base.kinds import ACKNOWLEDGED, GATED, LOSSY, NEW, SHARED
from audit.base.text import plain
from audit.base.usage import UsageError

SCOPE = ("path", "case", "dtype", "device", "symptom", "cause")
_WHERE = ["path", "dtype", "device"]
_KEY = [*_WHERE, "case"]
GROUP = [*_WHERE, "symptom", "shared", "acknowledged_by"]
_EXAMPLE = ["case", "row", "reduction", "reference", "computed", "bound", "scaled_error", "note"]
_DTYPES = ("dtype", "result_dtype")
# Two results that each keep their bound lie no further apart than two of them.
APART = 2.0
UNTOLD = "…"  # as a reason, what the stanza that is printed has
COMMITTED = pathlib.Path(__file__).parents[1] / "acknowledgements.ini"


@dataclass(frozen=True)
class Acknowledgement:
    """A finding that is understood: `scope` has globs, several to a field; a field left out is any."""

    name: str
    scope: dict[str, list[str]]
    reason: str

    @property
    def of_gradients(self) -> bool:
        return "gradient" in " ".join(self.scope.get("symptom", ()))

    def covers(self, rows: pd.DataFrame) -> pd.Series:
        """Which rows of a table with the scope's columns are in the scope, of those columns the table has."""
        inside = pd.Series(True, rows.index)
        for field in self.scope.keys() & set(rows):
            globs = self.scope[field]
            fits = [value for value in rows[field].unique() if any(fnmatchcase(value, glob) for glob in globs)]
            inside &= rows[field].isin(fits)
        return inside


def read_acknowledgements(*files: pathlib.Path) -> list[Acknowledgement]:
    """The stanzas of the files. Raises UsageError for a file that cannot be read, or a stanza without a reason."""
    return [stanza for file in files for stanza in _stanzas_of(file)]


def _stanzas_of(file: pathlib.Path) -> Iterator[Acknowledgement]:
    parser = ConfigParser(interpolation=None)
    try:
        with open(file, encoding="utf-8") as text:
            parser.read_file(text)
    except (OSError, ParserError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as acknowledgements: {error}") from None
    for name in parser.sections():
        fields = dict(parser[name])
        reason = plain(" ".join(fields.pop("reason", "").split()))
        if unknown := sorted(set(fields) - set(SCOPE)):
            raise UsageError(f"{file}: [{name}]: {', '.join(unknown)} is none of {', '.join(SCOPE)}, reason")
        if reason in ("", UNTOLD) or not fields.get("path"):
            raise UsageError(f"{file}: [{name}]: expected a path, and a reason in the place of {UNTOLD}")
        scope = {field: globs.replace(",", " ").split() for field, globs in fields.items()}
        yield Acknowledgement(plain(name), scope, reason)


def stanzas(findings: pd.DataFrame) -> str:
    """The text that would acknowledge these findings: a stanza for each path and symptom."""
    columns = {"path": "path", "case": "cases", "dtype": "dtype", "device": "device", "symptom": "symptom"}
    texts = []
    for (path, symptom), group in findings.groupby(["path", "symptom"], sort=False):
        scope = {n: " ".join(dict.fromkeys(" ".join(group[column]).split())) for n, column in columns.items()}
        texts.append(
            "\n".join([f"[{path}-{symptom}]", *(f"{n} = {v}" for n, v in scope.items()), f"reason = {UNTOLD}"])
        )
    return "\n".join(texts)


def symptoms(errors: pd.DataFrame) -> pd.Series:
    """What is wrong with each row of errors.csv, or "": a result_class, "beyond_bound", "narrow_result", "lossy"."""
    gated = errors["kind"].isin(GATED)
    wrong = gated & ~errors["within_bound"].fillna(True).astype(bool)
    lossy = (gated & errors["lossy"].fillna(False).astype(bool)).map({True: LOSSY, False: ""})
    given, returned = (errors[name].map({f.name: f.precision for f in FORMATS.values()}) for name in _DTYPES)
    beyond = (returned < given).map({True: "narrow_result", False: "beyond_bound"})
    return errors["result_class"].where(errors["result_class"] != "finite", beyond).where(wrong, lossy)


def _as_errors(gradients: pd.DataFrame) -> pd.DataFrame:
    """Rows of gradients.csv with the columns that a finding is made of."""
    error = (gradients["computed"] - gradients["reference"]).abs()
    how = gradients["backward"].where(gradients["backward"] == "", ", " + gradients["backward"])
    off = gradients["worst_relative"].map(", off by {:.2g} of the largest".format)
    off = off.where(gradients["worst_relative"].notna(), "")
    numbers = zip(gradients["computed"], gradients["reference"], strict=True)
    given = [f": computed {computed:.6g}, exact {exact:.6g}" for computed, exact in numbers]
    note = "class " + gradients["class"].astype(str) + given + off + how
    note = note.where(gradients["symptom"] != "", "")
    return gradients.assign(abs_error=error, reference=gradients["reference"].map(repr), note=note)


def _uncomputed(errors: pd.DataFrame, own: Collection[str], asked: bool) -> pd.DataFrame:
    """What a path gave no number for anywhere on a device, unless it is a mistake, which may raise.

    Of a kernel of the user's own, every number it did not give; but for a dtype that it takes nowhere, though it takes
    others, and that was not `asked` for. What no path computes is the device's limit and no finding; a device that was
    lost, or computes nothing, fails the run by itself.
    """
    missing = (errors["result_class"] == "not_computed") & ~errors["note"].str.startswith("device lost")

    def all_missing(*columns: str) -> pd.Series:
        return missing.groupby([errors[column] for column in columns]).transform("all")

    limit = all_missing("case", "dtype", "device")
    judged = errors["path"].isin(own) if own else all_missing("path", "device") & (errors["kind"] != "misuse")
    if own and not asked:
        limit |= all_missing("path", "dtype", "device") & ~all_missing("path", "device")
    # Where a path took too long is what there is to tell, not where it was not tried again.
    idle = errors["note"].str.startswith("not run: ")
    idle &= _within(errors, errors[missing & ~idle], ["path", "device"])
    return errors[missing & judged & ~limit & ~idle].assign(symptom="not_computed")


def _changed(invariance: pd.DataFrame) -> pd.DataFrame:
    """Checks under which a path gave what two sound results cannot both be."""
    apart = invariance[(invariance["largest_of_bound"] > APART) | (invariance["non_finite"] > 0)]
    change = apart["largest_of_bound"].map("{:.3g} times its bound away".format)
    note = apart["check"] + ": " + change.where(apart["non_finite"] == 0, "not finite")
    named = apart.assign(symptom="changes", reduction="none", reference="nan", note=note)
    return named.assign(classes=np.nan, computed=np.nan, abs_error=np.nan, bound=np.nan)


def _within(rows: pd.DataFrame, others: pd.DataFrame, columns: list[str]) -> NDArray[np.bool_]:
    """Which rows have in these columns what some of the others have."""
    known = pd.MultiIndex.from_frame(others[columns])
    return np.asarray(pd.MultiIndex.from_frame(rows[columns]).isin(known))


def _shared(rows: pd.DataFrame, torchs: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows torch's paths have too: the same symptom of the same case, row and dtype.

    Of a gradient, of any row; of what should change nothing, by the same check.
    """

    def keyed(table: pd.DataFrame) -> pd.DataFrame:
        change, gradient = table["symptom"].eq("changes"), table["symptom"].str.contains("gradient")
        row = table["row"].astype("Int64").fillna(-1).mask(gradient | change, -1)
        return table.assign(row=row, case=table["case"].mask(change, table["note"].astype(str).str.split(":").str[0]))

    return _within(keyed(rows), keyed(torchs), ["dtype", "device", "reduction", "symptom", "row", "case"])


def _together(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Their rows; columns that have nothing in a table are left to the others, as pandas would have it."""
    columns = list(dict.fromkeys(name for table in tables for name in table))
    some = [table.dropna(axis=1, how="all") for table in tables if len(table)]
    return pd.concat(some, ignore_index=True).reindex(columns=columns) if some else tables[0]


def _numbers(classes: Iterable[float]) -> str:
    return " ".join(map(str, sorted({int(n) for n in classes if pd.notna(n)})))


def _words(values: pd.Series) -> str:
    return " ".join(name for name in dict.fromkeys(values) if name)


def find(
    errors: pd.DataFrame,
    acknowledgements: list[Acknowledgement],
    gradients: pd.DataFrame | None = None,
    *,
    own: Collection[str] = (),
    invariance: pd.DataFrame | None = None,
    asked: bool = False,
) -> tuple[pd.DataFrame, list[str]]:
    """The findings, a row a group, and the acknowledgements that no longer meet one though their scope ran.

    `gradients` has the rows of gradients.csv. Where there are paths of the user's `own`, they alone are judged, by
    `invariance` too, and what torch's path beside them has on the same rows is shared; `asked`: their dtypes were asked
    for. The rows have the columns of findings.csv but for the reproducer; their example is the result with the fewest
    classes, the furthest beyond its bound of those; of what is lossy, the worst.
    """
    uncomputed = _uncomputed(errors, own, asked)
    errors = errors.assign(symptom=symptoms(errors))
    slopes = errors.iloc[:0] if gradients is None else _as_errors(gradients)
    changed = errors.iloc[:0] if invariance is None or not own else _changed(invariance)
    torchs = _together([errors, slopes, changed])
    torchs = torchs[~torchs["path"].isin(own) & (torchs["symptom"] != "")]
    if own:
        errors, slopes, changed = (table[table["path"].isin(own)] for table in (errors, slopes, changed))
    # One defect is not to be two findings: a gradient is judged where the value is right, and what a kernel has beyond
    # its bound in one place is no less wrong where it is near to it.
    if own:
        beyond = _within(errors, errors[errors["symptom"] == "beyond_bound"], _WHERE)
        errors["symptom"] = errors["symptom"].mask(beyond & errors["symptom"].eq(LOSSY), "")
    wrong = pd.concat([errors[~errors["symptom"].isin(["", LOSSY])], uncomputed])
    slopes = slopes[~_within(slopes, wrong, _KEY)]
    rows = _together([errors, slopes, uncomputed, changed])
    rows = rows[rows["symptom"] != ""].assign(acknowledged_by="").fillna({"cause": ""})
    rows["shared"] = _shared(rows, torchs) if own else False
    values = errors[errors["kind"].isin(GATED) & (errors["result_class"] != "not_computed")]
    stale = _acknowledge(rows, acknowledgements, values, slopes, next(iter(torchs["path"]), ""))
    findings = _summed_up(rows, values, slopes)
    findings["reason"] = findings["acknowledged_by"].map({a.name: a.reason for a in acknowledgements}).fillna("")
    return findings, stale


def _acknowledge(
    rows: pd.DataFrame, acknowledgements: list[Acknowledgement], values: pd.DataFrame, slopes: pd.DataFrame, torchs: str
) -> list[str]:
    """Says in the rows by what they are `acknowledged_by`, and returns what is stale of what ran."""
    # Whatever is known of torch's path is the reason of what is shared with it.
    known_of, stale = rows.assign(path=rows["path"].mask(rows["shared"], torchs)), []
    ran = {of_gradients: table[_KEY].drop_duplicates() for of_gradients, table in ((True, slopes), (False, values))}
    for known in acknowledgements:
        covered = known.covers(known_of)
        rows.loc[covered & (rows["acknowledged_by"] == ""), "acknowledged_by"] = known.name
        # That no input of a run shows a cause says nothing of it.
        if "cause" not in known.scope and known.covers(ran[known.of_gradients]).any() and not covered.any():
            stale.append(known.name)
    return stale


def _summed_up(rows: pd.DataFrame, values: pd.DataFrame, slopes: pd.DataFrame) -> pd.DataFrame:
    """A row a group, by status, with an example; `values` and `slopes` are what was judged."""
    lossy = rows["symptom"] == LOSSY
    with np.errstate(divide="ignore", invalid="ignore"):
        rows["ratio"] = rows["abs_error"] / rows["bound"].mask(lossy, rows["attainable"])
    rows["width"] = rows["classes"].mask(lossy, 0)
    examples = rows.sort_values(["width", "ratio"], ascending=[True, False], kind="stable").drop_duplicates(GROUP)
    table = rows.groupby(GROUP, sort=False).agg(
        cause=("cause", _words),
        results=("case", "size"),
        cases=("case", _words),
        reductions=("reduction", _words),
        worst_ratio=("ratio", "max"),
        notes=("note", lambda notes: "; ".join(dict.fromkeys(notes))),
        classes=("classes", set),
    )
    table = table.join(examples.set_index(GROUP)[_EXAMPLE]).reset_index()
    table["note"] = table["note"].mask(table["symptom"] == "changes", table["notes"])
    kinds = [table["shared"].astype(bool), table["acknowledged_by"] != "", table["symptom"] == LOSSY]
    table["status"] = np.select(kinds, [SHARED, ACKNOWLEDGED, LOSSY], NEW)
    widths = [judged.groupby(_WHERE)["classes"].agg(set).to_dict() for judged in (values, slopes)]
    of = table["symptom"].str.contains("gradient").astype(int)
    everywhere = [widths[i].get(tuple(where), set()) for i, *where in zip(of, *(table[n] for n in _WHERE), strict=True)]
    table["fails_at"] = [_numbers(some) for some in table["classes"]]
    table["passes_at"] = [_numbers(every - some) for every, some in zip(everywhere, table["classes"], strict=True)]
    order = [NEW, SHARED, LOSSY, ACKNOWLEDGED]
    table = table.sort_values("status", key=lambda s: s.map(order.index), kind="stable", ignore_index=True)
    return table.drop(columns=["notes", "classes"]).astype({"row": "Int64"})
