"""Makes the gold table of every standard case, and checks it in a second way."""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Iterator

from audit.base.usage import UsageError
from audit.base.workers import Workers
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
        pending = [(p, q, engine.request(p, q)) for p, q in _wanted()]
        for problem, quantity, wait in pending:
            for key, row in zip(reference_keys(problem, quantity), wait().rows, strict=True):
                if quantity != "kl" or row.value != "nan":  # of no distribution, which no table need tell
                    records.setdefault(key, sealed(key, row))
    write_records(folder, records.values())
    return len(records)


def verify(folder: pathlib.Path, everything: bool, cases: str | None = None) -> tuple[list[str], int]:
    """What is wrong with the table, each line naming case, row and dtype, and how many values were recomputed.

    All inputs are hashed and all checksums checked. Rows of up to CHECKED_ALWAYS classes are recomputed in a second
    way, and of the longer ones a seventh that changes from day to day, or all of them. `cases`, a name or glob, leaves
    out the others. Raises UsageError for a folder without a table.
    """
    if not (folder / NAME).is_file():
        raise UsageError(f"{folder} has no {NAME}: `references build` computes one, --folder names another")
    records = {r.key: r for r in read_records(folder)}
    gold = read_gold(folder)
    damaged = set(gold.damaged)
    problems: list[str] = []
    day = datetime.date.today().toordinal()
    checked: set[tuple[str, str]] = set()
    wanted: set[tuple[str, str]] = set()
    for problem, quantity in _wanted(cases):
        input, target = problem.numbers
        again: list[str] = []
        undefined = undefined_rows(problem)
        for row, key in enumerate(reference_keys(problem, quantity)):
            if key in wanted or undefined[row]:
                continue
            wanted.add(key)
            where = f"{problem.case.name} row {row} {problem.dtype} {quantity}"
            if key not in gold.values:
                name = record_name(*key)
                problems.append(f"{'damaged' if name in damaged else 'missing'}: {where}")
                damaged.discard(name)
                continue
            if not everything and input.shape[1] > CHECKED_ALWAYS and (int(key[0][:8], 16) + day) % ROTATION:
                continue
            checked.add(key)
            value = gold.values[key]
            if quantity == "kl":
                right = agrees(input[row], target[row], problem.case.target_kind, value, DIGITS)
            else:
                again = again or [
                    as_text(quantity, v, DIGITS) for v in evaluate(quantity, input, target, CHECKING_BITS)
                ]
                right = value == again[row]
            if not right:
                problems.append(f"wrong: {where}: {value}")
            elif (records[key].digits, records[key].radius) != (str(DIGITS), radius_of(value, DIGITS)):
                problems.append(f"wrong: {where}: {records[key].digits} digits, radius {records[key].radius}")
    if cases is not None:
        return problems, len(checked)
    problems += [f"damaged: record {name}, of no standard row" for name in sorted(damaged)]
    problems += [
        f"stale: record {record_name(*key)}, of no standard row" for key in sorted(gold.values.keys() - wanted)
    ]
    return problems, len(checked)
