"""Which results a gate objects to, each kind once, and which of them are understood."""

from __future__ import annotations

from configparser import ConfigParser
from configparser import Error as ParserError
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd

from audit.errors import UsageError

GATED = ("kl", "identity")
NEW = "new"
SCOPE = ("path", "case", "dtype", "device", "symptom")
GROUP = ["path", "dtype", "device", "symptom", "acknowledged_by"]
# The chance that as many drifts of a sound implementation have one sign by accident: below 2^(1 - 60).
ONE_SIGNED = 60
COMMITTED = Path(__file__).parents[1] / "acknowledgements.ini"


@dataclass(frozen=True)
class Acknowledgement:
    """A finding that is understood: `scope` has globs, several to a field; a field left out is any."""

    name: str
    scope: dict[str, tuple[str, ...]]
    reason: str

    def covers(self, rows: pd.DataFrame) -> pd.Series:
        """Which rows of a table with the scope's columns are in the scope, of those columns the table has."""
        inside = pd.Series(True, rows.index)
        for field, globs in self.scope.items():
            if field in rows:
                fits = {v: any(fnmatchcase(v, glob) for glob in globs) for v in rows[field].unique()}
                inside &= rows[field].map(fits).astype(bool)
        return inside


def read_acknowledgements(*files: Path) -> list[Acknowledgement]:
    """The stanzas of the files. Raises UsageError for a file that cannot be read, or a stanza without a reason."""
    parser = ConfigParser(interpolation=None)
    for file in files:
        try:
            with open(file, encoding="utf-8") as text:
                parser.read_file(text)
        except (OSError, ParserError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: cannot be read as acknowledgements: {error}") from None
    stanzas = []
    for name in parser.sections():
        fields = dict(parser[name])
        reason = " ".join(fields.pop("reason", "").split())
        if unknown := sorted(set(fields) - set(SCOPE)):
            raise UsageError(f"acknowledgement [{name}]: {', '.join(unknown)} is none of {', '.join(SCOPE)}, reason")
        if not reason or "path" not in fields:
            raise UsageError(f"acknowledgement [{name}]: expected a path and a reason")
        stanzas.append(
            Acknowledgement(name, {k: tuple(v.replace(",", " ").split()) for k, v in fields.items()}, reason)
        )
    return stanzas


def stanza(finding: pd.Series) -> str:
    """The text that would acknowledge a finding."""
    fields = {"path": "path", "case": "cases", "dtype": "dtype", "device": "device", "symptom": "symptom"}
    lines = [f"{name} = {finding[column]}" for name, column in fields.items()]
    return "\n".join([f"[{finding['path']}-{finding['dtype']}-{finding['symptom']}]", *lines, "reason = …"])


def symptoms(errors: pd.DataFrame) -> pd.Series:
    """What is wrong with each row of errors.csv: a result_class, "beyond_bound", or "" where nothing is."""
    wrong = errors["kind"].isin(GATED) & ~errors["within_bound"].fillna(True).astype(bool)
    return errors["result_class"].where(errors["result_class"] != "finite", "beyond_bound").where(wrong, "")


def _one_signed(errors: pd.DataFrame) -> pd.DataFrame:
    """Groups whose drift, where rounding drowns the reference, is never negative: a sign was dropped on the way.

    Only drifts above eight times the reference and a thousandth of a roundoff of the terms count: an implementation
    that is accurate there, or exact, has none. A row of each such group is returned.
    """
    noisy = errors[
        errors["kind"].eq("kl")
        & errors["reduction"].eq("none")
        & (errors["abs_error"] > 8 * errors["reference"].map(float).abs())
        & (errors["scaled_error"] > 1e-3)
    ]
    groups = noisy.groupby(["path", "dtype", "device"], sort=False)
    suspects = [group for _, group in groups if len(group) >= ONE_SIGNED and (group["drift"] > 0).all()]
    return pd.concat([g.assign(symptom="one_signed") for g in suspects]) if suspects else noisy.iloc[:0]


def find(errors: pd.DataFrame, acknowledgements: list[Acknowledgement]) -> tuple[pd.DataFrame, list[str]]:
    """The findings, a row a group, and the acknowledgements that no longer meet one though their scope ran.

    The rows have the columns of findings.csv but for the reproducer, and `example`, the index in `errors` of the
    result with the fewest classes, the furthest beyond its bound of those.
    """
    wrong = symptoms(errors)
    rows = pd.concat([errors[wrong != ""].assign(symptom=wrong[wrong != ""]), _one_signed(errors)])
    rows["acknowledged_by"] = ""
    stale = []
    ran = errors.loc[errors["kind"].isin(GATED), [f for f in SCOPE if f != "symptom"]].drop_duplicates()
    for known in acknowledgements:
        covered = known.covers(rows)
        rows.loc[covered & (rows["acknowledged_by"] == ""), "acknowledged_by"] = known.name
        if known.covers(ran).any() and not covered.any():
            stale.append(known.name)
    reasons = {a.name: a.reason for a in acknowledgements}
    with np.errstate(divide="ignore", invalid="ignore"):
        rows["ratio"] = rows["abs_error"] / rows["bound"]
    findings = []
    for key, group in rows.groupby(GROUP, sort=False):
        example = group.sort_values(["classes", "ratio"], ascending=[True, False], kind="stable").iloc[0]
        findings.append(
            dict(zip(GROUP, key, strict=True))
            | {
                "status": "acknowledged" if key[-1] else NEW,
                "reason": reasons.get(str(key[-1]), ""),
                "results": len(group),
                "cases": " ".join(dict.fromkeys(group["case"])),
                "reductions": " ".join(dict.fromkeys(group["reduction"])),
                "worst_ratio": group["ratio"].max(),
                "case": example["case"],
                "row": example["row"],
                "reduction": example["reduction"],
                "reference": example["reference"],
                "computed": example["computed"],
                "bound": example["bound"],
                "example": example.name,
            }
        )
    table = pd.DataFrame(findings, columns=[*GROUP, *(_FIELDS)])
    return table.sort_values("status", ascending=False, kind="stable", ignore_index=True), stale


_FIELDS = [
    "status", "reason", "results", "cases", "reductions", "worst_ratio", "case", "row", "reduction", "reference",
    "computed", "bound", "example",
]  # fmt: skip
