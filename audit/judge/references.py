"""What each row of the tables is compared with: exact values a row, reduced exactly where a path reduces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from functools import cache, cached_property, lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from audit.base.kinds import TOKENS, divisor
from audit.base.workers import Later, Submit, later
from audit.cases import Problem
from audit.reference.exact import Certified, certified_rows
from audit.reference.gold import DIGITS, Cache, Record, radius_of, versions
from audit.reference.quantities import quantity_references
from audit.reference.values import Rows, undefined

PUBLISHED_DIGITS = 50
GOLD, SCREENED = "gold", "screened"  # as an engine's name
_WIDE = Context(prec=400, Emin=MIN_EMIN, Emax=MAX_EMAX)
_PUBLISHED = Context(prec=PUBLISHED_DIGITS, Emin=MIN_EMIN, Emax=MAX_EMAX)
CLASSES_A_TASK = 4_000
Key = tuple[str, str]


@lru_cache(maxsize=2**16)
def published(value: str | Decimal) -> str:
    """`value` to 50 significant digits."""
    return str(_PUBLISHED.plus(Decimal(value))).replace("Infinity", "inf").replace("NaN", "nan").replace("E", "e")


def reduced(rows: Sequence[str], reduction: str, classes: int) -> str:
    """The reduced reference from its rows' references, to 50 digits.

    A sum of divergences cancels nothing; one of mistaken formulas has the ten digits that rows carry beyond 50.
    """
    total = Decimal(0)
    for row in rows:
        total = _WIDE.add(total, Decimal(row))
    return published(_WIDE.divide(total, Decimal(divisor(reduction, len(rows), classes))))


def reference_keys(problem: Problem, quantity: str) -> list[Key]:
    """What identifies each row's reference: a digest, and the quantity with all that it depends on besides."""
    if quantity == "kl":
        case = problem.case
        kinds = case.target_kind if case.input_kind == "logits" else f"{case.input_kind} {case.target_kind}"
        return [(digest, f"kl {kinds}") for digest in problem.row_digests]
    return [(problem.case_digest, f"{quantity} {row}") for row in range(len(problem.input))]


@dataclass(frozen=True)
class References:
    """A problem's exact values, one a row, as text of 60 digits."""

    rows: list[Certified]

    @cached_property
    def values(self) -> list[str]:
        return [row.value for row in self.rows]

    @cached_property
    def sources(self) -> list[str]:
        """ "exact" for an exact 0, an infinity or a NaN, which are decided, else "gold", "screened" or "computed"."""
        decided = [not number.is_finite() or not number for number in map(Decimal, self.values)]
        engines = [row.engine if row.engine in (GOLD, SCREENED) else "computed" for row in self.rows]
        return ["exact" if exact else engine for exact, engine in zip(decided, engines, strict=True)]


class Engine:
    """Asks for references once: values that were asked for before, stand in `gold` or in the `cache`, are there.

    The cache is given those that were computed.
    """

    def __init__(
        self, submit: Submit = later, gold: Mapping[Key, str] | None = None, cache: Cache | None = None
    ) -> None:
        self._submit, self._cache = submit, cache
        self._known: dict[Key, Later[Certified]] = {
            key: partial(Certified, value, GOLD) for key, value in (gold or {}).items()
        }

    def request(self, problem: Problem, quantity: str = "kl") -> Later[References]:
        """Starts the references of a problem; the callable returned waits for them.

        `quantity` is "kl", "zero", or one of reference.quantities.
        """
        (rows, classes), case = problem.input.shape, problem.case
        # One token of a distribution does not tell its KL.
        if quantity == "zero" or (quantity == "kl" and case.input_kind == TOKENS):
            lost = undefined(problem.numbers[0], case.input_kind) | (quantity == "kl")
            return lambda: References([Certified("nan" if row else "0", "proof") for row in lost])
        keys, step, work = reference_keys(problem, quantity), rows, partial(_formula, quantity)
        if quantity == "kl":
            undefined_keys = [keys[row] for row in np.flatnonzero(undefined_rows(problem))]
            self._known |= dict.fromkeys(undefined_keys, partial(Certified, "nan", "proof"))
            step = max(1, CLASSES_A_TASK // classes)
            work = partial(certified_rows, target_kind=case.target_kind, input_kind=case.input_kind)
        if self._cache is not None:
            cached = self._cache.read([key for key in keys if key not in self._known], versions())
            self._known |= {key: partial(Certified, record.value, record.engine) for key, record in cached.items()}
        fresh = [row for row, key in enumerate(keys) if key not in self._known]
        input, target = problem.numbers if fresh else (np.empty(0), np.empty(0))
        for start in range(0, len(fresh), step):
            part = fresh[start : start + step]
            answer = self._submit(work, input[part], target[part])
            self._known |= {keys[row]: partial(_take, answer, place) for place, row in enumerate(part)}

        def wait() -> References:
            references = References([self._known[key]() for key in keys])
            if self._cache is not None and fresh:
                self._cache.write([sealed(keys[row], references.rows[row]) for row in fresh])
            return references

        return cache(wait)


def undefined_rows(problem: Problem) -> NDArray[np.bool_]:
    """The rows whose KL is NaN, as one of their sides is no distribution."""
    (input, target), case = problem.numbers, problem.case
    return undefined(input, case.input_kind) | undefined(target, case.target_kind)


def _take(answer: Later[list[Certified]], place: int) -> Certified:
    return answer()[place]


def _formula(quantity: str, input: Rows, target: Rows) -> list[Certified]:
    return [Certified(value, "formula") for value in quantity_references(quantity, input, target)]


def sealed(key: Key, row: Certified) -> Record:
    """The record of a value that was computed here."""
    radius = radius_of(row.value, DIGITS)
    return Record(*key, row.value, radius, str(DIGITS), row.engine, versions()).sealed()
