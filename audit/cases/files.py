"""Logits of the user's own: `input`, `target` and `mask` in one file or many, a block of rows in memory."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from glob import glob
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.base.formats import FORMATS, Format
from audit.base.kinds import TOKENS
from audit.base.text import plain
from audit.base.usage import UsageError, check_word
from audit.cases import Case, Rows
from audit.cases.tensors import READERS, UNPACKED, Source, open_tensors
from audit.reference.values import TENSOR_KINDS, check_kind, undefined

NAMES = ("input", "target", "mask")
SEEN = 64, 2**20  # rows, and numbers, that are looked at for what they seem to be


@dataclass(frozen=True)
class Side:
    """Input or target of a kind: one tensor in files, row after row, cut to its first `classes`."""

    sources: list[Source]
    classes: int
    kind: str

    @cached_property
    def starts(self) -> list[int]:
        return list(accumulate((source.count for source in self.sources), initial=0))

    @property
    def dtype(self) -> str:
        return self.sources[0].dtype

    def rows(self, start: int, stop: int) -> Tensor:
        parts = [
            source.rows(max(start - first, 0), min(stop - first, source.count))[:, : self.classes]
            for first, source in zip(self.starts, self.sources, strict=False)
            if first < stop and start < first + source.count
        ]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def place(self, row: int) -> tuple[str, int]:
        """The file and tensor that a row is in, and which row of that it is."""
        shard = int(np.searchsorted(self.starts, row, "right")) - 1
        return f"{self.sources[shard].file}: {self.sources[shard].name}", row - self.starts[shard]


@dataclass(frozen=True)
class Pair:
    """Input and target of one shape (rows, classes), and which rows the mask keeps.

    `notes` say what a person should know before anything is judged.
    """

    name: str
    input: Side
    target: Side
    mask: NDArray[np.bool_]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        logits: pathlib.Path,
        input_kind: str = "logits",
        target_kind: str = "logits",
        *,
        target: pathlib.Path | None = None,
        names: Sequence[str] = NAMES,
        classes: int | None = None,
        limit: int = UNPACKED,
    ) -> Pair:
        """Tensors of any number of dimensions, of which the last is the classes: a file, a folder's, or a glob's.

        Where `target` lies apart, a file may hold one tensor of any name. Raises UsageError for files, names, shapes,
        dtypes and kinds that do not fit, saying what was found and the option that would read it.
        """
        known = *TENSOR_KINDS, TOKENS
        for name, kind in zip(names, (input_kind, target_kind), strict=False):
            check_word(kind, known, f"{name} kind")
        if (input_kind == TOKENS) != (target_kind == TOKENS):
            raise UsageError(f"{TOKENS} is a kind of both sides: give --input-kind and --target-kind {TOKENS}")
        held = [open_tensors(file, limit) for file in _files(logits)]
        apart = held if target is None else [open_tensors(file, limit) for file in _files(target)]
        inputs = [_chosen(tensors, names, 0, target is not None) for tensors in held]
        targets = [_chosen(tensors, names, 1, target is not None) for tensors in apart]
        if input_kind == TOKENS:  # every number is a row of one class
            inputs, targets = ([replace(s, shape=(*s.shape, 1)) for s in side] for side in (inputs, targets))
        masks = [tensors[names[2]] for tensors in held if names[2] in tensors]
        if len(masks) not in (0, len(held)) or (not masks and names[2] != NAMES[2]):
            raise UsageError(f"{logits}: {len(masks)} of {len(held)} files hold a mask named {names[2]}")
        width, counts = _classes(inputs, targets, classes), [sum(s.count for s in side) for side in (inputs, targets)]
        if counts[0] != counts[1]:
            given = f"{counts[0]:,} rows of {names[0]} and {counts[1]:,} of {names[1]}"
            raise UsageError(f"{logits}: expected as many, got {given}")
        mask = _mask(inputs, masks)
        if not mask.any():
            raise UsageError(f"{logits}: no row is left to judge of {len(mask):,}")
        pair = cls(_case_name(logits), Side(inputs, width, input_kind), Side(targets, width, target_kind), mask)
        pair.notes.extend(_notes(pair))
        return pair

    @property
    def dtype(self) -> str:
        """The wider of the two."""
        both = (getattr(torch, side.dtype) for side in (self.input, self.target))
        return str(torch.promote_types(*both)).removeprefix("torch.")

    @property
    def identity(self) -> str:
        """What tells it from another pair, and from itself before a file was changed."""
        sources = [(s.file, s.name, s.shape, s.file.stat()) for side in (self.input, self.target) for s in side.sources]
        files = [(str(f.resolve()), name, shape, st.st_size, st.st_mtime_ns) for f, name, shape, st in sources]
        return repr((files, self.input.classes, self.mask.tobytes(), self.input.kind, self.target.kind))

    def kept(self, start: int, stop: int) -> NDArray[np.int64]:
        """Of these rows those the mask keeps, as numbers of rows of the file."""
        return start + np.flatnonzero(self.mask[start:stop])

    def tensors(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """What the mask keeps of these rows, input and target, both in the wider dtype."""
        dtype, mask = getattr(torch, self.dtype), self.mask[start:stop]
        kept = slice(None) if mask.all() else torch.from_numpy(mask)  # a slice copies nothing
        return self.input.rows(start, stop)[kept].to(dtype), self.target.rows(start, stop)[kept].to(dtype)

    def case(self, rows: slice) -> Case:
        """Some of its rows as a case. What was rounded to make the file is not known: it is native.

        Making it raises UsageError for rows that cannot be read, or hold what no probability is. A row of logits with
        a NaN is a row whose exact value is NaN.
        """
        start, stop, _ = rows.indices(len(self.mask))

        def make(_: Format) -> tuple[Rows, Rows]:
            input, target = (tensor.double().numpy() for tensor in self.tensors(start, stop))
            for numbers, side in ((input, self.input), (target, self.target)):
                if side.kind == "probs" and (numbers < 0).any():
                    row = int((numbers < 0).any(axis=1).argmax())
                    check_kind(numbers[[row]], side.kind, *side.place(int(self.kept(start, stop)[row])))
            return input, target

        kinds = self.target.kind, self.input.kind
        return Case(self.name, "given by the user", make, target_kind=kinds[0], native=True, input_kind=kinds[1])


def read_pair(file: pathlib.Path, names: Sequence[str] = NAMES) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, target and mask (None where the file has none) of one file, whole, of whatever shapes and dtypes.

    Raises UsageError for a file that cannot be read, and for other names.
    """
    held = open_tensors(file)
    if names[2] not in (NAMES[2], *held):
        raise UsageError(f"{file}: expected a mask named {names[2]}, found {_listed(held)}")
    input, target = (_whole(_chosen(held, names, side)) for side in (0, 1))
    return input, target, _whole(held[names[2]]) if names[2] in held else None


def _whole(source: Source) -> Tensor:
    return source.rows(0, source.count).reshape(source.shape)


def _files(given: pathlib.Path) -> list[pathlib.Path]:
    """A file, those of a folder, or those a pattern matches, in the order of their names."""
    if given.is_dir():
        files = sorted(f for f in given.iterdir() if f.suffix in READERS)
    else:
        files = [given] if given.exists() else sorted(map(pathlib.Path, glob(str(given))))
    if not files:
        what = f"no file of {', '.join(READERS)} in it" if given.is_dir() else "no such file"
        raise UsageError(f"{given}: {what}")
    return files


def _case_name(given: pathlib.Path) -> str:
    return plain(re.sub(r"[*?\[\]]+", "", given.stem).strip("-_.") or given.absolute().parent.name)


def _listed(tensors: Mapping[str, Source]) -> str:
    return ", ".join(map(str, tensors.values())) or "no tensor"


def _chosen(tensors: Mapping[str, Source], names: Sequence[str], side: int, apart: bool = False) -> Source:
    """The input's (side 0) or target's (1) tensor of a file, by name, or where it lies `apart` the only one."""
    others = [s for s in tensors.values() if s.dtype != "bool"]
    if names[side] in tensors:
        return tensors[names[side]]
    if apart and len(others) == 1 and names[side] == NAMES[side]:
        return others[0]
    file, numbers = others[0].file if others else "the file", [s.name for s in others if s.dtype in FORMATS]
    if len(numbers) == 1:
        hint = "; run --target-logits FILE is for a target that lies in a file of its own"
    elif numbers:
        options = (f"--{name}-name {found}" for name, found in zip(NAMES, numbers, strict=False))
        hint = f"; {' '.join(options)} would read the first two" if not apart else f"; --{NAMES[side]}-name says which"
    else:
        hint = ""
    raise UsageError(f"{file}: expected a tensor named {names[side]}, found {_listed(tensors)}{hint}")


def _classes(inputs: Sequence[Source], targets: Sequence[Source], asked: int | None) -> int:
    """How many classes are compared. Every tensor must be of a floating dtype, one a side, and have as many."""
    for sources in (inputs, targets):
        for source in sources:
            if source.dtype not in FORMATS or not source.shape or 0 in source.shape:
                raise UsageError(f"{source.file}: expected numbers of {', '.join(FORMATS)}, not empty, got {source}")
            if (source.dtype, source.shape[-1]) != (sources[0].dtype, sources[0].shape[-1]):
                raise UsageError(f"{source.file}: {source} has other classes or another dtype than {sources[0].file}")
    for input, target in zip(inputs, targets, strict=False):
        if len(inputs) == len(targets) and input.shape[:-1] != target.shape[:-1]:
            row = min(input.count, target.count)
            files = input.file if input.file == target.file else f"{input.file} and {target.file}"
            raise UsageError(f"{files}: expected one shape, got {input} and {target}: they part at row {row}")
    x, y = inputs[0], targets[0]
    smaller = min(x.shape[-1], y.shape[-1])
    if asked is None and x.shape[-1] != y.shape[-1]:
        raise UsageError(f"{x.file}: {x} and {y}: --classes {smaller} takes the first {smaller} classes of both")
    if asked is not None and not 0 < asked <= smaller:
        raise UsageError(f"--classes {asked}: expected 1 to {smaller}, as {x} and {y} have")
    return asked or smaller


def _mask(inputs: Sequence[Source], masks: Sequence[Source]) -> NDArray[np.bool_]:
    for input, mask in zip(inputs, masks, strict=False):
        if mask.dtype != "bool" or mask.shape != input.shape[:-1]:
            raise UsageError(f"{mask.file}: expected a mask (bool, {input.shape[:-1]}), a value a row, got {mask}")
    if not masks:
        return np.ones(sum(s.count for s in inputs), bool)
    return np.concatenate([_whole(mask).numpy().ravel() for mask in masks])


def _notes(pair: Pair) -> list[str]:
    notes = []
    if pair.input.dtype != pair.target.dtype:
        both = f"the input is {pair.input.dtype} and the target {pair.target.dtype}"
        notes.append(f"{both}: they are taken to {pair.dtype}, exactly")
    if not pair.mask.all():
        notes.append(f"the mask keeps {pair.mask.sum():,} of {len(pair.mask):,} rows")
    first = int(pair.mask.argmax())
    last = min(first + max(1, min(SEEN[0], SEEN[1] // pair.input.classes)), len(pair.mask))
    for name, side in (("input", pair.input), ("target", pair.target)):
        seen = side.rows(first, last)[pair.mask[first:last]].double().numpy()
        if side.kind == "logits" and (other := _seems(seen, FORMATS[side.dtype])):
            sums = "sum to 1" if other == "probs" else "are logarithms of numbers that sum to 1"
            notes.append(
                f"the {name}'s rows {sums}, and are taken as logits: if they are {other}, give --{name}-kind {other}"
            )
    return notes


def _seems(rows: Rows, format: Format) -> str:
    """What rows given as logits look like: probs, log_probs, or "". A sum may be off by what rounding makes of it."""
    rows = rows[np.isfinite(rows).any(axis=1) & ~undefined(rows, "logits")]
    probs = bool((rows >= 0).all())
    if not len(rows) or rows.shape[1] < 2 or not (probs or (rows <= 0).all()):
        return ""
    p = rows if probs else np.exp(rows)
    sizes = 1 if probs else 1 + (p * np.abs(np.maximum(rows, -1e30))).sum(axis=1)
    slack = 2 * format.unit_roundoff * sizes + rows.shape[1] * format.smallest_subnormal + 1e-6
    return ("probs" if probs else "log_probs") if (np.abs(p.sum(axis=1) - 1) <= slack).all() else ""
