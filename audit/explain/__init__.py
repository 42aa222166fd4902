"""What a result means: a diagnosis, the smallest example of a finding; and here what there is, a line each."""

from __future__ import annotations

from audit.base.kinds import KINDS
from audit.base.usage import UsageError
from audit.cases import Case
from audit.cases import registered as registered_cases
from audit.causes import CAUSES
from audit.machine import devices
from audit.paths import Path
from audit.paths import registered as registered_paths


def listing(what: str) -> list[tuple[str, str]]:
    """Name and one line for each case, path, device or cause. Raises UsageError for anything else."""
    if what == "cases":
        return [(c.name, f"{c.profile:9s} {c.summary}") for c in all_cases()]
    if what == "paths":
        return [
            (p.name, f"{p.kind:9s} {p.reduction:9s} {p.summary}" + (f" (absent: {p.absent})" if p.absent else ""))
            for p in all_paths()
        ]
    if what == "causes":
        return [(c.name, c.summary) for c in CAUSES]
    if what == "devices":
        return [(d.name, f"absent: {d.absent}" if d.absent else d.model) for d in devices.found()]
    raise UsageError(f"list: {what!r} is not one of cases, paths, devices, causes")


def all_cases() -> list[Case]:
    """In an order that does not depend on imports, as that of the paths."""
    return sorted(registered_cases(), key=lambda c: c.name)


def all_paths() -> list[Path]:
    kinds = list(KINDS)
    return sorted(
        registered_paths(), key=lambda p: (kinds.index(p.kind), p.name, p.input_kind, p.target_kind, p.reduction)
    )
