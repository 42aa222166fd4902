"""What is fed in: a case makes a pair of input and target in binary64; a problem is that pair rounded to a dtype."""

from __future__ import annotations

import hashlib
import math
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


CASES: dict[str, Case] = {}


def register(case: Case) -> None:
    """Adds a case; its name must be new."""
    if case.name in CASES:
        raise ValueError(f"case {case.name!r} is registered already")
    CASES[case.name] = case


def registered(profile: str = "full") -> list[Case]:
    """The cases of `profile`, which has those of every smaller one."""
    for module in ("shapes", "extreme", "vocabulary", "worst"):
        import_module(f"audit.cases.{module}")
    return [c for c in CASES.values() if PROFILES.index(c.profile) <= PROFILES.index(profile)]


def _raw(seed: str, count: int) -> NDArray[np.uint64]:
    """Random numbers that are promised to stay: the same bits on every machine and in every version.

    torch.randn and numpy's Generator methods may change their streams; numpy promises those of a bit generator's raw
    output (NEP 19). All that is made of it is integer arithmetic, scaled by a power of two, so that no library's log or
    cos has a say in a digit.
    """
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "little")
    return np.asarray(np.random.Philox(key=key).random_raw(count), dtype=np.uint64)


def uniform(seed: str, *shape: int) -> Rows:
    """Multiples of 2^-53 in [0, 1)."""
    integers = _raw(seed, math.prod(shape)) >> np.uint64(11)
    return np.asarray(integers * 2.0**-53, dtype=np.float64).reshape(shape)


def normal(seed: str, *shape: int) -> Rows:
    """Mean 0, variance 1, multiples of 2^-48: twelve uniform numbers summed (Irwin-Hall), so within +-6."""
    count = math.prod(shape)
    integers = (_raw(seed, 12 * count) >> np.uint64(16)).astype(np.int64).reshape(12, count)
    return np.asarray((integers.sum(axis=0) - 6 * 2**48) * 2.0**-48).reshape(shape)


def normals(seed: str, rows: int, classes: int, scale: float = 1.0) -> tuple[Rows, Rows]:
    """Input and target of `normal` numbers times `scale`, each from a seed of its own."""
    return scale * normal(f"{seed} input", rows, classes), scale * normal(f"{seed} target", rows, classes)


def logarithm(values: Rows) -> Rows:
    """log to a multiple of 2^-20, so that a libm's last place does not show."""
    return np.asarray(np.round(np.log(values) * 2**20) * 2.0**-20)
