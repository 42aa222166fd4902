"""Which results are what a known defect gives: the column `cause`.

A result matches a cause that predicts v, where the divergence is e, if it is within t of v: what roundings may do of
which the cause does not speak. How likely is that by chance? An error whose density falls off on both sides of 0 has a
density of at most 1 / |v - e| at v - e, so c = 2 t / (|v - e| - t). Of a result that is not finite there are no digits,
only that it is not: c = 1/2. Where v is not told from e, c = 1: a match there is evidence of nothing.

A cause is shown for a path where it is borne out by at least half of the results that it should explain, and by the
product over them of 0.001 + 0.999 / c for each that matches and of 0.001 for each that does not. By chance the
expectation is at most 1: it is an e-value, as is the mean of several (Vovk and Wang, Annals of Statistics 49, 2021),
which is taken over results whose predictions are one multiple of e, as they say the same thing. By Markov's inequality
it exceeds a million times the number of causes with a probability below one in a million, for all of them together.
Where a path has a cause by construction nothing need be shown: a result within t of what the defect gives has no other
error above t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.base.formats import FORMATS
from audit.base.kinds import divisor
from audit.causes import CAUSES, Cause, Rows, Terms
from audit.paths.rounding import Rounding

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
CHANCE = 1e-6
STAKE = 0.999  # of each row's evidence, on a match
SHARE = 0.5  # of the results that a cause should explain, what it must
SAMPLE = 2**14  # numbers of a problem on which causes are tried that are not shown yet
FEWEST, MOST = 8, 2**18  # problems, and numbers of all together, of those that fail and of the others


class Hypothesis(NamedTuple):
    """One variant of a cause."""

    cause: Cause
    terms: Callable[[Rows], Terms]


HYPOTHESES = [Hypothesis(cause, variant) for cause in CAUSES for variant in cause.variants]


@dataclass(frozen=True, eq=False)
class Given:
    """What a path was given, rows x classes, and its roundings. `predicted` keeps what causes gave for it."""

    input: Tensor
    target: Tensor
    kinds: tuple[str, str]
    rounding: Rounding
    predicted: dict[tuple[Hypothesis, str], Floats] = field(default_factory=dict)

    def some(self, rows: NDArray[np.int64]) -> Given:
        return Given(self.input[rows], self.target[rows], self.kinds, self.rounding)

    @cached_property
    def errors(self) -> tuple[Floats, Floats]:
        """Of each row, what sums made in pairs in the format computed in may do, and what tensors stored in theirs."""
        rows = _rows(self)
        logs = torch.where(rows.log_p.isfinite() & rows.log_q.isfinite(), rows.log_p.abs() + rows.log_q.abs(), 0.0)
        size = 1 + ((rows.p + rows.q) * logs).sum(-1).numpy()
        stored, computed = (torch.finfo(t.dtype).eps / 2 for t in (rows.stored(self.input), rows.shifted(self.input)))
        return (math.log2(self.input.shape[-1]) + 10) * computed * size, 3 * stored * size


@lru_cache(maxsize=2)
def _rows(given: Given) -> Rows:
    """Of the last ones alone: those of all wide problems are gigabytes."""
    return Rows(given.input, given.target, given.kinds, given.rounding)


@dataclass(frozen=True, eq=False)
class Results:
    """What a path gave for some rows, or for all in one, beside the exact values; `failing`: which are to be named.

    `dtype` is the results' own.
    """

    path: str
    device: str
    reduction: str
    given: Given
    computed: Floats
    exact: Floats
    failing: Bools
    dtype: str

    def sample(self) -> Results:
        """So few rows that many causes can be tried, those first that are to be named; a reduced result as it is."""
        most = max(1, SAMPLE // self.given.input.shape[-1])
        if self.reduction != "none" or len(self.computed) <= most:
            return self
        some = np.argsort(~self.failing, kind="stable")[:most]
        few = self.given.some(some)
        return replace(
            self, given=few, computed=self.computed[some], exact=self.exact[some], failing=self.failing[some]
        )

    @cached_property
    def rounding(self) -> tuple[Floats, Floats]:
        """The errors of what was given, reduced as the path reduces."""
        sums, stored = self.given.errors
        if self.reduction == "none":
            return sums, stored
        rows, classes = self.given.input.shape
        divided = divisor(self.reduction, rows, classes)
        return sums.sum(keepdims=True) / divided, stored.sum(keepdims=True) / divided

    def matches(self, hypotheses: Sequence[Hypothesis]) -> tuple[Floats, Bools, Bools, Floats]:
        """What each predicts, hypotheses x results; which of it is off; which was computed, and by what chance."""
        known = self.given.predicted
        for h in hypotheses:
            if (h, self.reduction) not in known:
                known[h, self.reduction] = _total(h.terms(_rows(self.given)), self.reduction)
        values = np.stack([known[h, self.reduction] for h in hypotheses])
        format = FORMATS[self.dtype]
        sums, stored = self.rounding
        emulation = np.zeros_like(sums) if (stored > sums).all() else sums
        within = 2 * format.unit_roundoff * np.abs(values) + 2 * format.smallest_subnormal
        within += np.where([[h.cause.emulated] for h in hypotheses], emulation, sums + stored)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            gap = np.abs(values - self.exact)
            off = ~((gap <= 2 * within) & np.isfinite(values)) & (values != self.exact)
            # Nothing rounds a sum of zeros.
            close = np.abs(self.computed - values) <= np.where(values == 0, 0.0, within)
            chance = np.where(np.isfinite(gap), np.where(off, 2 * within / (gap - within), 1.0), 0.5)
        alike = (values == self.computed) | (np.isnan(values) & np.isnan(self.computed))
        return (
            values,
            off,
            np.where(np.isfinite(values), close, alike),
            np.clip(chance, [[max(h.cause.chance, 2.0**-50)] for h in hypotheses], 1.0),
        )


_REDUCED: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda terms: terms.sum(-1),
    "sum": torch.sum,
    "mean": torch.mean,
    "batchmean": lambda terms: terms.sum() / len(terms),
}


def _total(terms: Terms, reduction: str) -> Floats:
    """Summed over the classes, and reduced as a path reduces, in the terms' own format."""
    sums = [_REDUCED[reduction](part) for part in (terms if isinstance(terms, tuple) else (terms,))]
    return np.asarray(sum(sums[1:], start=sums[0]).double().reshape(-1).numpy())


def name_causes(results: Sequence[Results]) -> list[list[str]]:
    """The cause of each result of each, "" where none is shown and where none need be named."""
    names = [np.full(len(r.computed), "", dtype=object) for r in results]
    for r, named in zip(results, names, strict=True):
        _name(r, named, [h for h in HYPOTHESES if r.path in h.cause.paths], (True, False))
    unnamed = [i for i, r in enumerate(results) if (names[i] == "")[r.failing].any()]
    for path, device in dict.fromkeys((results[i].path, results[i].device) for i in unnamed):
        own = [i for i, r in enumerate(results) if (r.path, r.device) == (path, device)]
        wrong = [i for i in own if results[i].failing.any()]
        failing = _sampled([results[i] for i in wrong])
        tried = list(dict.fromkeys(hypothesis for hypothesis, _ in _shown(failing, HYPOTHESES)))
        # What is shown where results are wrong must also be borne out where they are right.
        sound = _sampled([results[i] for i in own if i not in wrong]) if tried else []
        for hypothesis, finite in _shown([*failing, *sound], tried) if tried else ():
            for i in wrong:
                _name(results[i], names[i], [hypothesis], (finite,))
    return [list(n) for n in names]


def _sampled(results: Sequence[Results]) -> list[Results]:
    """Samples of the narrowest, as many as numbers may be tried."""
    samples = sorted((r.sample() for r in results), key=lambda r: r.given.input.numel())
    numbers = np.cumsum([r.given.input.numel() for r in samples])
    return samples[: max(FEWEST, int(np.searchsorted(numbers, MOST)))]


def _name(
    results: Results, names: NDArray[np.object_], hypotheses: Sequence[Hypothesis], finite: tuple[bool, ...]
) -> None:
    """Names what matches one of the hypotheses and has no name yet, of results that are finite, or not, or both."""
    for hypothesis in hypotheses:
        wanted = results.failing & (names == "") & np.isin(np.isfinite(results.computed), finite)
        if wanted.any():
            _, off, close, _ = results.matches([hypothesis])
            names[wanted & off[0] & close[0]] = hypothesis.cause.name


def _shown(samples: Sequence[Results], hypotheses: Sequence[Hypothesis]) -> list[tuple[Hypothesis, bool]]:
    """The hypotheses that are shown, those with the most evidence first, for finite results and for others apart."""
    parts = []
    for results in samples:
        values, off, close, chance = results.matches(hypotheses)
        place, row = np.nonzero((off & ~np.isnan(results.exact)) | results.failing)  # without a value nothing is off
        with np.errstate(invalid="ignore", divide="ignore"):
            factor = values[place, row] / results.exact[row] - 1
            factor = np.sign(factor) * np.round(2**6 * np.log2(np.abs(factor)))
        evidence = 1 - STAKE + np.where(close, STAKE / chance, 0.0)[place, row]
        finite = np.where(results.failing, np.isfinite(results.computed), np.isfinite(values))[place, row]
        columns = {"place": place, "finite": finite, "factor": factor, "evidence": evidence}
        parts.append(pd.DataFrame(columns | {"matched": (off & close)[place, row]}))
    rows = pd.concat(parts, ignore_index=True)
    alone = ~np.isfinite(rows["factor"])
    rows.loc[alone, "factor"] = -1e9 - rows.index[alone]
    by_factor = rows.groupby(["place", "finite", "factor"])["evidence"].mean()
    evidence = np.log(by_factor).groupby(["place", "finite"]).sum().sort_values(ascending=False, kind="stable")
    share = rows.groupby(["place", "finite"])["matched"].mean()
    shown = evidence.index[(evidence > math.log(len(HYPOTHESES) / CHANCE)) & (share[evidence.index] >= SHARE)]
    return [(hypotheses[place], finite) for place, finite in shown]
