"""What is audited: every way of computing KL is one plain function, registered by `path`.

A function takes input and target, both of shape (rows, classes) on one device, as logits unless `input_kind` and
`target_kind` say otherwise, and returns one value a row, or one value in all where it declares a reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from audit.base.formats import FORMATS
from audit.base.kinds import KINDS, TOKENS
from audit.base.text import plain
from audit.base.usage import UsageError, check_word, several
from audit.paths.rounding import Promise, Rounding
from audit.reference.quantities import QUANTITIES
from audit.reference.values import REDUCTIONS as REDUCTIONS
from audit.reference.values import TENSOR_KINDS

if TYPE_CHECKING:
    from torch import Tensor

    Function = Callable[[Tensor, Tensor], Tensor]
    Registered = TypeVar("Registered", bound=Function)

UNDECLARED = Rounding()
_WORDS: dict[str, Collection[str]] = {
    "kind": KINDS,
    "dtypes": FORMATS,
    "reduction": REDUCTIONS,
    "input_kind": (*TENSOR_KINDS, TOKENS),
    "target_kind": (*TENSOR_KINDS, TOKENS),
    "quantity": ("kl", "zero", *QUANTITIES),
    "where": ("", "cpu", "accelerator"),
}


@dataclass(frozen=True)
class Path:
    """One way of computing a value, and what it means to compute.

    `quantity` is that value's name: "kl", "zero" (every identity), or one of reference.quantities. `reduction` says
    how rows become one value, "none" where they do not. `cases`: globs of the only cases it runs on, none for all.
    `rounding`: what its bound needs. `compiles`: its first call on a shape takes seconds, which are counted apart.
    `absent`: why it cannot run here, empty where it can. `where`: "cpu" or "accelerator" for what runs there alone.
    """

    name: str
    function: Function
    summary: str
    kind: str = "kl"
    reduction: str = "none"
    target_kind: str = "logits"
    dtypes: tuple[str, ...] = tuple(FORMATS)
    quantity: str = "kl"
    cases: tuple[str, ...] = ()
    rounding: Rounding = UNDECLARED
    compiles: bool = False
    absent: str = ""
    input_kind: str = "logits"
    where: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise UsageError(f"expected a function fn(input_logits, target_logits), got {self.function!r}")
        for lists in ("dtypes", "cases"):  # a path is hashable
            object.__setattr__(self, lists, tuple(several(getattr(self, lists))))
        if not isinstance(self.rounding, Rounding):
            raise UsageError(f"path {self.name!r}: expected a Rounding, got {self.rounding!r}")
        for text in (self.name, self.summary, self.absent, *self.cases):
            if not isinstance(text, str):
                raise UsageError(f"path {self.name!r}: expected text, got {text!r}")
        for what, known in _WORDS.items():
            value = getattr(self, what)
            for word in value if what == "dtypes" else (value,):
                check_word(word, known, f"path {self.name!r}: {what}")
        if self.kind == "identity" and self.quantity == "kl":
            object.__setattr__(self, "quantity", "zero")
        for shown in ("name", "summary"):
            object.__setattr__(self, shown, plain(getattr(self, shown)))

    @property
    def promise(self) -> Promise:
        return Promise(self.kind, self.reduction, self.rounding, self.quantity if self.input_kind == TOKENS else "")

    def runs_on(self, device: str) -> bool:
        return self.where in ("", "cpu" if device == "cpu" else "accelerator")

    def takes(self, case: str, dtype: str, target_kind: str, input_kind: str) -> bool:
        """Whether it runs on a case of this name and these kinds, in this dtype."""
        meant = not self.cases or any(fnmatchcase(case, glob) for glob in self.cases)
        return (target_kind, input_kind) == (self.target_kind, self.input_kind) and dtype in self.dtypes and meant


PATHS: dict[tuple[str, ...], Path] = {}
_MODULES = ("functional", "execution", "foreign", "remedy", "thread_era", "sampled", "misuse")


def path(name: str, *, summary: str = "", **declared: Any) -> Callable[[Registered], Registered]:
    """Decorator: registers a function under `name`; one name may stand once for each reduction, kinds and where.

    `declared` are the other fields of Path: kind, reduction, input_kind, target_kind, dtypes, quantity, cases,
    rounding, compiles, absent, where. `summary` defaults to the first line of the docstring. Raises UsageError for a
    word that is not known and for a name that is taken.
    """

    if unknown := set(declared) - {f.name for f in fields(Path)}:
        raise UsageError(f"path {name!r}: there is no {', '.join(sorted(unknown))} to declare")

    def register(function: Registered) -> Registered:
        first_line = (function.__doc__ or str(name)).strip().partition("\n")[0].removesuffix(".")
        made = Path(name, function, first_line if summary == "" else summary, **declared)
        key = (name, made.reduction, made.input_kind, made.target_kind, made.where)
        if key in PATHS:
            raise UsageError(
                f"path {name!r} with reduction {made.reduction!r} for {made.input_kind} and {made.target_kind} is "
                "registered already"
            )
        PATHS[key] = made
        return function

    return register


def registered() -> list[Path]:
    """Every path, in the order of registration."""
    for module in _MODULES:
        import_module(f"audit.paths.{module}")
    return list(PATHS.values())


def own_path(function: Function) -> Path:
    """A callable of the user's own, as a path named after it: per-row KL from two tensors of logits."""
    name = getattr(function, "__name__", type(function).__name__)
    for known in registered():
        if known.function is function:
            return known
    if name in {known.name for known in registered()}:
        raise UsageError(f"path {name!r} is one of the audit's own: give your function another name")
    return Path(name, function, (function.__doc__ or "").strip().partition("\n")[0] or "given by the user")
