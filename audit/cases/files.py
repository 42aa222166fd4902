"""Tensors of the user's own: `input` and `target` from .npz, .pt or .safetensors, a block of rows in memory."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audit.base.formats import FORMATS, Format
from audit.base.usage import UsageError
from audit.cases import Case, Rows
from audit.reference.values import TENSOR_KINDS, check_kind

NAMES = ("input", "target")


@dataclass(frozen=True)
class Source:
    """One tensor of a file; `read` gives some of its rows, in memory of their own.

    Nothing of the file stays mapped between two reads: mapped pages count as resident.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[slice], Tensor]


@dataclass(frozen=True)
class Pair:
    """A file's input and target, of shape (rows, classes), and the kind of each."""

    file: Path
    input: Source
    target: Source
    input_kind: str
    target_kind: str

    @classmethod
    def open(cls, file: Path, input_kind: str, target_kind: str) -> Pair:
        """Raises UsageError, as `read_pair` does, for tensors that are not rows x classes, and for unknown kinds."""
        for name, kind in (("input", input_kind), ("target", target_kind)):
            if kind not in TENSOR_KINDS:
                raise UsageError(f"{name} kind {kind!r} is not one of {', '.join(TENSOR_KINDS)}")
        input, target = _sources(file)
        if len(input.shape) != 2:
            raise UsageError(f"{file}: expected shape (rows, classes), got {input.shape}")
        return cls(file, input, target, input_kind, target_kind)

    def case(self, rows: slice) -> Case:
        """Some of its rows as a case. What was rounded to make the file is not known: it is native.

        Making it raises UsageError for rows that cannot be read, or hold what is no logit or probability.
        """

        def make(_: Format) -> tuple[Rows, Rows]:
            input, target = (_rows(self.file, s, rows).double().numpy() for s in (self.input, self.target))
            check_kind(input, self.input_kind, f"{self.file}: input", rows.start)
            check_kind(target, self.target_kind, f"{self.file}: target", rows.start)
            return input, target

        return Case(
            self.file.stem,
            "given by the user",
            make,
            input_kind=self.input_kind,
            target_kind=self.target_kind,
            native=True,
        )


def read_pair(file: Path) -> tuple[Tensor, Tensor]:
    """`input` and `target` of a file, whole, of one shape and one floating dtype.

    A .pt file must hold a dictionary of tensors; it is loaded without running any code of its own. Raises UsageError
    for a file that cannot be read so, and for other names, shapes and dtypes.
    """
    input, target = (_rows(file, source, slice(None)) for source in _sources(file))
    return input, target


def _rows(file: Path, source: Source, rows: slice) -> Tensor:
    try:
        return source.read(rows)
    except Exception as error:
        raise UsageError(f"{file}: cannot be read any more: {type(error).__name__}: {error}") from None


def _sources(file: Path) -> tuple[Source, Source]:
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    readers = {".npz": _npz, ".pt": _pt, ".pth": _pt, ".safetensors": _safetensors}
    if file.suffix not in readers:
        raise UsageError(f"{file}: expected one of {', '.join(readers)}")
    try:
        sources = readers[file.suffix](file)
    except UsageError:
        raise
    except pickle.UnpicklingError:
        raise UsageError(
            f"{file}: holds more than tensors, which would run code; save {{'input': …, 'target': …}}"
        ) from None
    except Exception as error:
        raise UsageError(f"{file}: cannot be read as {file.suffix}: {type(error).__name__}: {error}") from None
    for name in NAMES:
        if name not in sources:
            raise UsageError(f"{file}: expected tensors named input and target, found {', '.join(sources) or 'none'}")
        if sources[name].dtype not in FORMATS:
            raise UsageError(f"{file}: {name} is {sources[name].dtype}, expected one of {', '.join(FORMATS)}")
    input, target = (sources[name] for name in NAMES)
    if input.shape != target.shape or input.dtype != target.dtype or not math.prod(input.shape or (0,)):
        described = " and ".join(f"{s.dtype} {s.shape}" for s in (input, target))
        raise UsageError(f"{file}: expected input and target of one shape and dtype, not empty, got {described}")
    return input, target


def _npz(file: Path) -> dict[str, Source]:
    archive = zipfile.ZipFile(file)
    names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    return {name: _npy(file, archive, name) for name in names}


def _npy(file: Path, archive: zipfile.ZipFile, name: str) -> Source:
    """A member of an .npz, compressed or not, read forward. One in Fortran's or foreign byte order is held whole."""
    member = archive.open(f"{name}.npy")
    version = np.lib.format.read_magic(member)  # type: ignore[no-untyped-call]
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(member)  # type: ignore[no-untyped-call]
    if dtype.name in FORMATS and (fortran or not dtype.isnative):
        with np.load(file, allow_pickle=False) as arrays:
            return _held(torch.from_numpy(arrays[name].astype(dtype.newbyteorder("="), order="C")))
    begin, size = member.tell(), dtype.itemsize * math.prod(shape[1:])

    def read(rows: slice) -> Tensor:
        start, stop, _ = rows.indices(shape[0])
        member.seek(begin + start * size)
        data = bytearray(member.read((stop - start) * size))
        return torch.from_numpy(np.frombuffer(data, dtype).reshape(-1, *shape[1:]))

    return Source(shape, dtype.name, read)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _held(tensor: Tensor) -> Source:
    return Source(tuple(tensor.shape), _name(tensor), lambda rows: tensor[rows].clone())


def _pt(file: Path) -> dict[str, Source]:
    """Mapped anew for each read where the format can be mapped: torch's own since 1.6."""
    mapped = zipfile.is_zipfile(file)

    def load() -> dict[str, Tensor]:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        if not isinstance(loaded, dict):
            raise UsageError(f"{file}: expected a dictionary with input and target, found {type(loaded).__name__}")
        return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}

    def source(name: str, tensor: Tensor) -> Source:
        return Source(tuple(tensor.shape), _name(tensor), lambda rows: load()[name][rows].clone())

    return {name: source(name, tensor) if mapped else _held(tensor) for name, tensor in load().items()}


def _safetensors(file: Path) -> dict[str, Source]:
    if find_spec("safetensors") is None:
        raise UsageError(f"{file}: safetensors is not installed; install it, or save as .pt or .npz")
    from safetensors import safe_open

    def read(name: str, rows: slice) -> Tensor:
        with safe_open(file, framework="pt") as tensors:
            block: Tensor = tensors.get_slice(name)[rows]
            return block.clone()

    known = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
    with safe_open(file, framework="pt") as tensors:
        names = list(tensors.keys())
        slices = [tensors.get_slice(name) for name in names]
        return {
            name: Source(tuple(s.get_shape()), known.get(s.get_dtype(), s.get_dtype()), partial(read, name))
            for name, s in zip(names, slices, strict=True)
        }
