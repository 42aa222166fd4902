"""What an audit covers, from the registries: the lines of `list`, and docs/coverage.md.

`python -m audit.explain.coverage > docs/coverage.md` writes the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from audit import cases, paths
from audit.base.formats import FORMATS
from audit.base.kinds import KINDS
from audit.base.usage import UsageError
from audit.causes import CAUSES
from audit.machine import devices
from audit.paths.execution import EXECUTIONS

_HEAD = """# What is audited

`python -m audit list cases|paths|devices|causes` prints the same lines, with what is absent on the machine at hand.

## Profiles

Each profile has the cases of the one before. Times are of the whole command, the first time and again, when
torch.compile finds what it compiled; memory is the main process's peak. Measured on two cores of an Intel Xeon with
AVX-512, torch 2.13, the CPU alone, everything installed, gold references in place.

"""
_PROFILES = {
    "quick": ("each commit: every path, small cases", "7 s", "7 s", "0.7 GB"),
    "standard": ("the audit: every family of inputs, vocabularies to 128,256 classes", "38 s", "20 s", "1.2 GB"),
    "full": ("a new torch or device: to 262,144 classes, the main paths compiled as well", "96 s", "37 s", "2.0 GB"),
}
_COSTLY = "standard: log_softmax; full: the main paths"


def listing(what: str) -> list[tuple[str, str]]:
    """Name and one line for each case, path, device or cause. Raises UsageError for anything else."""
    if what == "cases":
        return [(c.name, f"{c.profile:9s} {c.summary}") for c in _cases()]
    if what == "paths":
        return [
            (p.name, f"{p.kind:9s} {p.reduction:9s} {p.summary}" + (f" (absent: {p.absent})" if p.absent else ""))
            for p in _paths()
        ]
    if what == "causes":
        return [(c.name, c.summary) for c in CAUSES]
    if what == "devices":
        return [(d.name, f"absent: {d.absent}" if d.absent else d.model) for d in devices.found()]
    raise UsageError(f"list: {what!r} is not one of cases, paths, devices, causes")


def page() -> str:
    profiles = [
        (name, purpose, str(len(cases.registered(name))), *measured) for name, (purpose, *measured) in _PROFILES.items()
    ]
    parts = [_HEAD, _table("profile, for, cases, first time, again, memory", profiles)]
    for kind, text in KINDS.items():
        rows = [
            (p.name, p.reduction.replace("none", ""), p.summary, _kinds(p), _dtypes(p), ", ".join(p.cases))
            for p in _paths()
            if p.kind == kind
        ]
        columns = "path, reduction, what it computes, input and target, dtypes, only on cases"
        parts += [f"\n## Paths: {kind}\n\n{text}\n\n", _table(columns, rows)]
    checks = [(name, _COSTLY if check.costly else check.where) for name, check in EXECUTIONS.items()]
    parts.append("\n## Invariance\n\nWhat should change nothing, for every path that gives a value a row.\n\n")
    parts += [_table("check, where", checks), "\n## Cases\n\n"]
    shapes = {c.name: "x".join(map(str, cases.build(c, c.dtypes[0]).input.shape)) for c in _cases()}
    made = [(c.name, c.profile, shapes[c.name], _kinds(c), _dtypes(c), c.summary) for c in _cases()]
    parts.append(_table("case, smallest profile, rows x classes, input and target, dtypes, what", made))
    return "".join(parts)


def _cases() -> list[cases.Case]:
    """In an order that does not depend on which module was imported first."""
    return sorted(cases.registered(), key=lambda c: c.name)


def _paths() -> list[paths.Path]:
    kinds = list(KINDS)
    return sorted(
        paths.registered(), key=lambda p: (kinds.index(p.kind), p.name, p.input_kind, p.target_kind, p.reduction)
    )


def _kinds(of: cases.Case | paths.Path) -> str:
    return "" if of.input_kind == of.target_kind == "logits" else f"{of.input_kind}, {of.target_kind}"


def _dtypes(of: cases.Case | paths.Path) -> str:
    return "" if tuple(of.dtypes) == tuple(FORMATS) else ", ".join(of.dtypes)


def _table(columns: str, rows: Iterable[Sequence[str]]) -> str:
    names = columns.split(", ")
    escaped = [[field.replace("|", "\\|").replace("*", "\\*") for field in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in (names, ["---"] * len(names), *escaped))


if __name__ == "__main__":
    print(page(), end="")
