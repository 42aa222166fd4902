"""Which results are what a known defect gives: the column `cause`.

A result matches a cause that predicts v, where the divergence is e, if it is within t of v: what roundings may do of
which the cause does not speak. How likely is that by chance? An error whose density falls off on both sides of 0 has a
density of at most 1 / |v - e| at v - e, so c = 2 t / (|v - e| - t). Of a result that is not finite there are no digits,
only that it is not: c = 1/2. Results whose predictions are one multiple of e say the same thing, and count once.

A cause is shown for a path by the product, over its results, of 0.1 + 0.9 / c for each that matches and of 0.1 for each
that should and does not. By chance its expectation is at most 1 (it is an e-value: Vovk and Wang, Annals of Statistics
49, 2021), so that by Markov's inequality it exceeds a million times the number of causes with a probability below one
in a million for all of them together. Where a path has a cause by construction nothing need be shown: a result
within t of what the defect gives has no other error above t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.base.formats import FORMATS
from audit.causes import Rows, Variant, registered

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
CHANCE = 1e-6
STAKE = 0.9  # of each row's evidence, on a match
SAMPLE = 2**16  # numbers of a problem on which causes are tried that are not shown yet


class Hypothesis(NamedTuple):
    """One variant of a cause; see Cause."""

    name: str
    variant: Variant
    paths: tuple[str, ...]
    emulated: bool


@dataclass(frozen=True, eq=False)
class Results:
    """What a path gave for some rows, or for all in one, beside the exact values; `failing`: which are to be named.

    `dtype` is the results' own.
    """

    path: str
    device: str
    reduction: str
    rows: Rows
    computed: Floats
    exact: Floats
    failing: Bools
    dtype: str

    def sample(self) -> Results:
        """So few rows that many causes can be tried, those first that are to be named; a reduced result as it is."""
        most = max(1, SAMPLE // self.rows.input.shape[-1])
        if self.reduction != "none" or len(self.computed) <= most:
            return self
        some = np.argsort(~self.failing, kind="stable")[:most]
        rows = Rows.of(self.rows.input[some], self.rows.target[some], self.rows.kinds, self.rows.rounding)
        return replace(
            self, rows=rows, computed=self.computed[some], exact=self.exact[some], failing=self.failing[some]
        )

    @cached_property
    def rounding(self) -> tuple[Floats, Floats]:
        """What sums made in pairs may do in the format computed in, and what tensors stored in theirs may do."""
        rows = self.rows
        logs = torch.where(rows.log_p.isfinite() & rows.log_q.isfinite(), rows.log_p.abs() + rows.log_q.abs(), 0.0)
        size = 1 + ((rows.p + rows.q) * logs).sum(-1).numpy()
        if self.reduction != "none":
            size = np.array([size.mean() if self.reduction == "batchmean" else size.sum()])
            size /= rows.x.numel() if self.reduction == "mean" else 1
        stored, computed = (torch.finfo(t.dtype).eps / 2 for t in (rows.stored(rows.input), rows.shifted(rows.input)))
        return (math.log2(rows.x.shape[-1]) + 10) * computed * size, 3 * stored * size

    def matches(self, hypotheses: Sequence[Hypothesis]) -> tuple[Floats, Bools, Bools, Floats]:
        """What each predicts, hypotheses x results; which of it is off, which of that matches, and by what chance."""
        for h in hypotheses:
            if (h, self.reduction) not in self.rows.values:
                self.rows.values[h, self.reduction] = _total(h.variant(self.rows), self.reduction)
        values = np.stack([self.rows.values[h, self.reduction] for h in hypotheses])
        format = FORMATS[self.dtype]
        sums, stored = self.rounding
        emulation = np.zeros_like(sums) if (stored > sums).all() else sums
        within = 2 * format.unit_roundoff * np.abs(values) + 2 * format.smallest_subnormal
        within += np.where([[h.emulated] for h in hypotheses], emulation, sums + stored)
        with np.errstate(invalid="ignore", divide="ignore"):
            gap = np.abs(values - self.exact)
            off = ~((gap <= 2 * within) & np.isfinite(values)) & (values != self.exact)
            close = np.abs(self.computed - values) <= within
            chance = np.where(np.isfinite(gap), 2 * within / (gap - within), 0.5)
        alike = (values == self.computed) | (np.isnan(values) & np.isnan(self.computed))
        return values, off, off & np.where(np.isfinite(values), close, alike), np.clip(chance, 2.0**-50, 1.0)


def _total(terms: Tensor | tuple[Tensor, ...], reduction: str) -> Floats:
    """Summed over the classes, and reduced as a path reduces, in the terms' own format."""
    parts = terms if isinstance(terms, tuple) else (terms,)
    if reduction == "none":
        sums = [part.sum(-1) if part.dim() == 2 else part for part in parts]
    elif reduction == "mean":
        sums = [part.mean() for part in parts]
    else:
        sums = [part.sum() / (len(part) if reduction == "batchmean" else 1) for part in parts]
    return np.asarray(sum(sums[1:], start=sums[0]).double().reshape(-1).numpy())


@cache
def _hypotheses() -> list[Hypothesis]:
    return [Hypothesis(c.name, variant, c.paths, c.emulated) for c in registered() for variant in c.variants]


def name_causes(results: Sequence[Results]) -> list[list[str]]:
    """The cause of each result of each, "" where none is shown and where none need be named."""
    names = [np.full(len(r.computed), "", dtype=object) for r in results]
    for path, device in dict.fromkeys((r.path, r.device) for r in results if r.failing.any()):
        own = [i for i, r in enumerate(results) if (r.path, r.device) == (path, device) and r.failing.any()]
        for i in own:
            _name(results[i], names[i], [h for h in _hypotheses() if path in h.paths], (True, False))
        if all((names[i] != "")[results[i].failing].all() for i in own):
            continue
        for place, finite in _shown([results[i].sample() for i in own]):
            for i in own:
                _name(results[i], names[i], [_hypotheses()[place]], (finite,))
    return [list(n) for n in names]


def _name(
    results: Results, names: NDArray[np.object_], hypotheses: Sequence[Hypothesis], finite: tuple[bool, ...]
) -> None:
    """Names what matches one of the hypotheses and has no name yet, of results that are finite, or not, or both."""
    for hypothesis in hypotheses:
        wanted = results.failing & (names == "") & np.isin(np.isfinite(results.computed), finite)
        if wanted.any():
            _, _, matched, _ = results.matches([hypothesis])
            names[wanted & matched[0]] = hypothesis.name


def _shown(samples: Sequence[Results]) -> list[tuple[int, bool]]:
    """The hypotheses that are shown, those with the most evidence first, for finite results and for others apart."""
    parts = []
    for results in samples:
        values, off, matched, chance = results.matches(_hypotheses())
        place, row = np.nonzero(off | results.failing)
        matched, chance = matched[place, row], chance[place, row]
        with np.errstate(invalid="ignore", divide="ignore"):
            factor = values[place, row] / results.exact[row] - 1
            factor = np.sign(factor) * np.round(2**10 * np.log2(np.abs(factor)))
        columns = {
            "place": place,
            "finite": np.isfinite(results.computed[row]),
            # Rounded to ten bits; what did not match, or is not finite, stands for itself.
            "factor": np.where(matched, factor, np.nan),
            "evidence": np.log(1 - STAKE + np.where(matched, STAKE / chance, 0.0)),
        }
        parts.append(pd.DataFrame(columns))
    rows = pd.concat(parts, ignore_index=True)
    alone = ~np.isfinite(rows["factor"])
    rows.loc[alone, "factor"] = -1e9 - rows.index[alone]
    evidence = rows.groupby(["place", "finite", "factor"])["evidence"].max().groupby(["place", "finite"]).sum()
    shown = evidence[evidence > math.log(len(_hypotheses()) / CHANCE)]
    return list(shown.sort_values(ascending=False, kind="stable").index)
