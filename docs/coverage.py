"""docs/coverage.md, from the registries: `python docs/coverage.py` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's audit, wherever it is called from

from audit import cases, paths  # noqa: E402
from audit.base.formats import FORMATS  # noqa: E402
from audit.base.kinds import KINDS  # noqa: E402
from audit.explain import all_cases, all_paths  # noqa: E402
from audit.paths.execution import EXECUTIONS  # noqa: E402

FILE = ROOT / "docs" / "coverage.md"
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


def page() -> str:
    profiles = [
        (name, purpose, str(len(cases.registered(name))), *measured) for name, (purpose, *measured) in _PROFILES.items()
    ]
    parts = [_HEAD, _table("profile, for, cases, first time, again, memory", profiles)]
    for kind, text in KINDS.items():
        rows = [
            (p.name, p.reduction.replace("none", ""), p.summary, _kinds(p), _dtypes(p), ", ".join(p.cases))
            for p in all_paths()
            if p.kind == kind
        ]
        columns = "path, reduction, what it computes, input and target, dtypes, only on cases"
        parts += [f"\n## Paths: {kind}\n\n{text}\n\n", _table(columns, rows)]
    checks = [(name, _COSTLY if check.costly else check.where) for name, check in EXECUTIONS.items()]
    parts.append("\n## Invariance\n\nWhat should change nothing, for every path that gives a value a row.\n\n")
    parts += [_table("check, where", checks), "\n## Cases\n\n"]
    shapes = {c.name: "x".join(map(str, cases.build(c, c.dtypes[0]).input.shape)) for c in all_cases()}
    made = [(c.name, c.profile, shapes[c.name], _kinds(c), _dtypes(c), c.summary) for c in all_cases()]
    parts.append(_table("case, smallest profile, rows x classes, input and target, dtypes, what", made))
    return "".join(parts)


def _kinds(of: cases.Case | paths.Path) -> str:
    return "" if of.input_kind == of.target_kind == "logits" else f"{of.input_kind}, {of.target_kind}"


def _dtypes(of: cases.Case | paths.Path) -> str:
    return "" if tuple(of.dtypes) == tuple(FORMATS) else ", ".join(of.dtypes)


def _table(columns: str, rows: Iterable[Sequence[str]]) -> str:
    names = columns.split(", ")
    escaped = [[field.replace("|", "\\|").replace("*", "\\*") for field in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in (names, ["---"] * len(names), *escaped))


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
