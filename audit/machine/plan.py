"""What a run covers: names and globs, a file's tensors, kernels of the user's own, resolved to cases and paths."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from inspect import getsource
from typing import Any

from torch import Tensor

from audit.base.formats import FORMATS
from audit.base.kinds import TOKENS
from audit.base.usage import UsageError, check_word, choose, several
from audit.cases import PROFILES, Case, Problem, build
from audit.cases import registered as registered_cases
from audit.cases.files import Pair
from audit.machine.devices import Device, select
from audit.paths import Path, own_path
from audit.paths import registered as registered_paths

Own = Callable[[Tensor, Tensor], Tensor]
Names = Iterable[str] | str | None
Chosen = Iterable[str | Own | Path] | str | Own | Path | None
RUNS = ("whole", "part", "kernel", "file")
# Beside a path of the user's own: for logits, for other kinds, and for what reduces.
COMPARISON, GIVEN, REDUCED = "log_softmax", "kl_div", "kl_div_loss"
MAIN = ("softmax_log", "log_softmax", "log_target", "kl_div_from_logits")


def beside(reduction: str) -> str:
    """Torch's path that a kernel of the user's own is compared with, which reduces likewise."""
    return COMPARISON if reduction == "none" else REDUCED


@dataclass(frozen=True)
class Plan:
    """What one run covers: all of a profile or a part of it, a kernel or a file of the user's own (`kind`, of RUNS).

    Where there are paths of the user's `own`, they alone are judged. `asked`: the dtypes were asked for.
    """

    profile: str
    cases: list[Case]
    paths: list[Path]
    dtypes: list[str]
    devices: list[Device]
    kind: str
    own: frozenset[str] = frozenset()
    file: Pair | None = None
    asked: bool = False

    @property
    def given(self) -> Pair:
        """The file's tensors, in a run over a file."""
        assert self.file is not None
        return self.file

    @property
    def identity(self) -> str:
        """What tells the rows of a run over a file from those of another, but for the versions."""
        paths = [(p.name, getsource(p.function) if p.name in self.own else "") for p in self.paths]
        return repr((self.given.identity, paths, self.dtypes, [d.name for d in self.devices]))

    def problems(self) -> Iterator[tuple[Case, str, list[Path]]]:
        """Each case in each dtype, with the paths that take it."""
        for case in self.cases:
            for dtype in self.dtypes:
                paths = [p for p in self.paths if p.takes(case.name, dtype, *case.kinds)]
                paths = [p for p in paths if p.reduction == "none" or case.repeats == 1]
                if paths and dtype in case.dtypes:
                    yield case, dtype, paths

    def problem(self, case: str, dtype: str, rows: slice) -> Problem:
        """Some rows of one of its cases in one dtype."""
        if self.file is not None:
            return build(self.file.case(rows), dtype)
        whole = build(next(c for c in self.cases if c.name == case), dtype)
        return replace(whole, input=whole.input[rows], target=whole.target[rows])


def plan(
    profile: str = "standard", cases: Names = None, paths: Chosen = None, dtypes: Names = None, devices: Names = None
) -> Plan:
    """Resolves names and globs. Raises UsageError, naming what there is, for one that matches nothing."""
    check_word(profile, PROFILES, "profile")
    # A case that is asked for by name is run whatever its profile.
    known = registered_cases(profile if cases is None else "full")
    names = choose(cases, [c.name for c in known], "case")
    chosen = _plan(profile, [c for c in known if c.name in names], paths, dtypes, devices)
    whole = cases is None and paths is None and dtypes is None
    return replace(chosen, kind="whole") if whole else chosen


def plan_file(
    file: pathlib.Path,
    input_kind: str = "logits",
    target_kind: str = "logits",
    *,
    paths: Iterable[str | Own] | None = None,
    dtypes: Names = None,
    devices: Names = None,
    **options: Any,
) -> Plan:
    """A plan for a file's `input` and `target`: by default the main paths, per row, in the file's wider dtype.

    Kinds other than logits are taken as they are, never normalised. A callable that declares no kinds is given what
    the file holds. `options` are those of Pair.open. Raises UsageError as that does, for kinds that no path asked for
    takes, and as `plan` does.
    """
    pair = Pair.open(file, input_kind, target_kind, **options)
    first = pair.case(slice(0, 1))
    main = ["token_*"] if input_kind == TOKENS else [*MAIN, GIVEN]
    return _plan("file", [first], paths or main, dtypes or pair.dtype, devices, file=pair)


def _plan(
    profile: str, cases: list[Case], paths: Chosen, dtypes: Names, devices: Names, *, file: Pair | None = None
) -> Plan:
    given = [] if paths is None else several(paths)
    wanted = None if paths is None else [p for p in given if isinstance(p, str)]
    known = registered_paths()
    own = [p if isinstance(p, Path) else own_path(p) for p in given if not isinstance(p, str)]
    if file is not None:
        own = [p if p in known else replace(p, input_kind=file.input.kind, target_kind=file.target.kind) for p in own]
    if own and wanted is not None:
        wanted.append(COMPARISON if file is None or file.input.kind == "logits" else GIVEN)
        # A reduced kernel is compared with what reduces likewise.
        wanted += [REDUCED] if any(p.reduction != "none" for p in own) else []
    standard = [p for p in known if not p.absent]
    there = list(dict.fromkeys(p.name for p in standard))
    for missing in (p for p in known if p.name in (wanted or ()) and p.name not in there):
        raise UsageError(f"path {missing.name!r} cannot run here: {missing.absent}")
    names = choose(wanted, there, "path")
    formats = choose(dtypes, list(FORMATS), "dtype")
    found = select(devices)
    asked = [*own, *(p for p in standard if p.name in names and p not in own)]
    able = [p for p in asked if any(p.runs_on(d.name) for d in found) and (file is None or p.reduction == "none")]
    kind = "file" if file is not None else "kernel" if own else "part"
    plan = Plan(
        profile, cases, able, formats, found, kind, frozenset(p.name for p in own), file, asked=dtypes is not None
    )
    taking = {path for _, _, paths in plan.problems() for path in paths}
    # A kernel that is given nothing is not sound.
    idle = [p for p in own if p not in taking] or ([] if taking else asked)
    if idle:
        listed = ", ".join(dict.fromkeys(p.name for p in idle))
        what = "case" if file is None else f"{file.input.kind} against {file.target.kind}, a value a row,"
        raise UsageError(f"none of {listed} takes any such {what} in {', '.join(formats)}")
    return replace(plan, paths=[p for p in able if p in taking])
