"""What is fed in: a case makes a pair of input and target in binary64; a problem is that pair rounded to a dtype."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from audit.base.formats import FORMATS, Format

if TYPE_CHECKING:
    from torch import Tensor

Rows = NDArray[np.float64]
PROFILES = ("quick", "standard", "full")


@dataclass(frozen=True)
class Case:
    """`make` gives input and target, each rows x classes in binary64.

    The kinds say what they are: logits, log_probs or probs, the last two taken as they are, whatever they sum to.
    `profile` is the smallest profile that has the case; `native` says that `make` takes a format and builds its own
    numbers, so that nothing was there before rounding. A path is given the rows `repeats` times, one lot after the
    other, as a long batch, and each row is judged at one place of it.
    """

    name: str
    summary: str
    make: Callable[..., tuple[Rows, Rows]]
    profile: str = "standard"
    target_kind: str = "logits"
    native: bool = False
    dtypes: tuple[str, ...] = tuple(FORMATS)
    input_kind: str = "logits"
    repeats: int = 1

    @property
    def kinds(self) -> tuple[str, str]:
        """Of the target and of the input."""
        return self.target_kind, self.input_kind


@dataclass(frozen=True)
class Problem:
    """A case in one dtype: tensors on the CPU, and the same numbers in binary64, which holds them exactly."""

    case: Case
    dtype: str
    input: Tensor
    target: Tensor

    @cached_property
    def numbers(self) -> tuple[Rows, Rows]:
        """Input and target, rows x classes, in binary64."""
        return self.input.double().numpy(), self.target.double().numpy()

    @property
    def judged(self) -> NDArray[np.int64]:
        """Where in the batch each row is judged: the first one at the beginning, the last one at the end."""
        rows = len(self.input)
        return np.arange(rows) + rows * np.linspace(0, self.case.repeats - 1, rows).astype(np.int64)

    @cached_property
    def row_digests(self) -> list[str]:
        return [digest(self.input[i], self.target[i], self.dtype) for i in range(len(self.input))]

    def slim(self) -> Problem:
        """The same without its numbers: its rows' digests and its shape."""
        here = replace(self, input=self.input.to("meta"), target=self.target.to("meta"))
        vars(here)["row_digests"] = self.row_digests
        return here

    @cached_property
    def case_digest(self) -> str:
        return digest(self.input, self.target, self.dtype)


def digest(input: Tensor, target: Tensor, dtype: str) -> str:
    """SHA-256 of "dtype shape" in ASCII, then the input's bytes, then the target's: little-endian, row by row."""
    import torch

    shape = "x".join(map(str, input.shape))
    hasher = hashlib.sha256(f"{dtype} {shape}\n".encode())
    for tensor in (input, target):
        hasher.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def build(case: Case, dtype: str) -> Problem:
    """The case rounded to `dtype`, to nearest even."""
    import torch

    pair = _made(case, FORMATS[dtype] if case.native else None)
    input, target = (torch.from_numpy(rows).to(getattr(torch, dtype)) for rows in pair)
    return Problem(case, dtype, input, target)


@lru_cache(maxsize=1)
def _made(case: Case, format: Format | None) -> tuple[Rows, Rows]:
    """The last pair made: a run asks for a case in each dtype, and before it was rounded to it, in turn."""
    return case.make(format) if format else case.make()


_REGISTRY: dict[str, Case] = {}


def register(case: Case) -> None:
    """Adds a case; its name must be new."""
    if case.name in _REGISTRY:
        raise ValueError(f"case {case.name!r} is registered already")
    _REGISTRY[case.name] = case


def registered(profile: str = "full") -> list[Case]:
    """The cases of `profile`, which has those of every smaller one."""
    for module in ("shapes", "extreme", "vocabulary", "worst"):
        import_module(f"audit.cases.{module}")
    return [c for c in _REGISTRY.values() if PROFILES.index(c.profile) <= PROFILES.index(profile)]
