"""Makes the gold table of every standard case, and checks it in a second way."""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Callable, Iterator

from audit.base.usage import UsageError
from audit.base.workers import Workers, later
from audit.cases import Problem
from audit.cases import build as build_problem
from audit.judge.references import Engine, reference_keys, sealed, undefined_rows
from audit.machine.plan import plan
from audit.reference.enclosure import agrees
from audit.reference.gold import DIGITS, NAME, Record, radius_of, read_gold, read_records, record_name, write_records
from audit.reference.quantities import as_text, evaluate

CHECKED_ALWAYS = 1_000  # classes
ROTATION = 7
# Twice what the formulas were first settled with.
CHECKING_BITS = 600


def _wanted(cases: str | None = None) -> Iterator[tuple[Problem, str]]:
    """Every problem of a standard run, and the numbers before rounding, with the quantities it is asked for."""
    for case, dtype, paths in plan("standard", cases, devices="cpu").problems():
        problem = build_problem(case, dtype)
        for quantity in sorted({"kl", *(p.quantity for p in paths)} - {"zero"}):
            yield problem, quantity
        if not case.native:
            yield build_problem(case, "float64"), "kl"


def build(folder: pathlib.Path, workers: int) -> int:
    """Computes every reference of the standard cases anew, and drops what no case asks for; how many there are."""
    records: dict[tuple[str, str], Record] = {}
    with Workers(workers) as processes:
        engine = Engine(processes.submit)
        pending = [(reference_keys(p, q), q, engine.request(p, q)) for p, q in _wanted()]
        for keys, quantity, wait in pending:
            for key, row in zip(keys, wait().rows, strict=True):
                if quantity != "kl" or row.value != "nan":  # of no distribution, which no table need tell
                    records.setdefault(key, sealed(key, row))
    write_records(folder, records.values())
    return len(records)


def _second_way(problem: Problem, quantity: str) -> Callable[[int, str], bool]:
    """Whether a row's value is right."""
    input, target = problem.numbers
    if quantity == "kl":
        return lambda row, value: agrees(input[row], target[row], problem.case.target_kind, value, DIGITS)
    again = later(evaluate, quantity, input, target, CHECKING_BITS)
    return lambda row, value: value == as_text(quantity, again()[row], DIGITS)


def verify(folder: pathlib.Path, everything: bool, cases: str | None = None) -> tuple[list[str], int]:
    """What is wrong with the table, each line naming case, row and dtype, and how many values were recomputed.

    All inputs are hashed and all checksums checked. Rows of up to CHECKED_ALWAYS classes are recomputed in a second
    way, and of the longer ones a seventh that changes from day to day, or all of them. `cases`, a name or glob, leaves
    out the others. Raises UsageError for a folder without a table.
    """
    if not (folder / NAME).is_file():
        raise UsageError(f"{folder} has no {NAME}: `references build` computes one, --folder names another")
    records, gold = {r.key: r for r in read_records(folder) if r.intact}, read_gold(folder)
    today = datetime.date.today().toordinal()
    problems: list[str] = []
    wanted: set[tuple[str, str]] = set()
    checked = 0
    for problem, quantity in _wanted(cases):
        undefined, is_right = undefined_rows(problem), _second_way(problem, quantity)
        for row, key in enumerate(reference_keys(problem, quantity)):
            if key in wanted or undefined[row]:
                continue
            wanted.add(key)
            where = f"{problem.case.name} row {row} {problem.dtype} {quantity}"
            if key not in gold.values:
                problems.append(f"{'damaged' if record_name(*key) in gold.damaged else 'missing'}: {where}")
            elif everything or problem.input.shape[1] <= CHECKED_ALWAYS or not (int(key[0][:8], 16) + today) % ROTATION:
                checked += 1
                value, digits, radius = records[key].value, records[key].digits, records[key].radius
                if not is_right(row, value) or (digits, radius) != (str(DIGITS), radius_of(value, DIGITS)):
                    problems.append(f"wrong: {where}: {value}, {digits} digits, radius {radius}")
    if cases is None:
        lost = set(gold.damaged) - {record_name(*key) for key in wanted}
        problems += [f"damaged: record {name}, of no standard row" for name in sorted(lost)]
        stale = sorted(gold.values.keys() - wanted)
        problems += [f"stale: record {record_name(*key)}, of no standard row" for key in stale]
    return problems, checked
