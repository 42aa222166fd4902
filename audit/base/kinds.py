"""The kinds of paths, and of findings: which of them a bound judges, and which fail a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

KINDS = {
    "kl": "Means to compute KL, and is gated by its bound.",
    "identity": "Means to give a known value, and is gated by its bound.",
    "estimator": "Estimates KL from a sampled token or in coarse steps; compared with what it means to give.",
    "misuse": "A known mistake: compared with the exact value of its own formula, beside the KL that was meant.",
}
GATED = ("kl", "identity")
# What a file may hold besides distributions: log-probabilities of sampled tokens, each a row of one number.
TOKENS = "token_log_probs"
NEW, SHARED, LOSSY, ACKNOWLEDGED = "new", "shared", "lossy", "acknowledged"


def failing(findings: pd.DataFrame, strict: bool = False) -> pd.DataFrame:
    """The findings that fail a run: the new ones, and where it is `strict`, what is lossy."""
    return findings[findings["status"].isin([NEW, LOSSY] if strict else [NEW])]


def divisor(reduction: str, rows: int, classes: int) -> int:
    """What a reduced value divides the sum over rows by, as torch does."""
    return {"none": 1, "sum": 1, "mean": rows * classes, "batchmean": rows}[reduction]
