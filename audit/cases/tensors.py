"""Tensors in files: .npz, .npy, .pt and .safetensors, of which a few rows at a time are in memory."""

from __future__ import annotations

import json
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from audit.base.usage import UsageError

UNPACKED = 256  # MB that a file may unpack to whatever its size
# Logits that are compressed take a third of their size at the least; a zip bomb a thousandth.
_PACKED = 20
_SAFE = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool", "I64": "int64"}


@dataclass(frozen=True)
class Source:
    """One tensor of a file, all dimensions but the last counted as one; `read` gives rows from, to, of a width.

    Nothing of the file stays mapped between two reads: mapped pages count as resident.
    """

    file: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int, int], Tensor]

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype}, {' x '.join(map(str, self.shape)) or 'a number'})"

    @property
    def count(self) -> int:
        return math.prod(self.shape[:-1])

    def rows(self, start: int, stop: int) -> Tensor:
        """Shape (stop - start, classes), in memory of its own. Raises UsageError where they cannot be read."""
        try:
            return self.read(start, stop, self.shape[-1] if self.shape else 1)
        except Exception as error:
            raise UsageError(f"{self.file}: {self.name}: row {start} on cannot be read: {error}") from None


def open_tensors(file: pathlib.Path, limit: int = UNPACKED) -> dict[str, Source]:
    """The tensors of a file by name; one that holds a single tensor without a name gives it the file's.

    A .pt file is loaded without running any code of its own. Raises UsageError for a file that cannot be read so, and
    for one that declares more than `limit` MB and twenty times its size.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    if file.suffix not in READERS:
        raise UsageError(f"{file}: expected one of {', '.join(READERS)}")
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                _refuse_bomb(file, sum(member.file_size for member in archive.infolist()), limit)
        sources = READERS[file.suffix](file)
    except UsageError:
        raise
    except pickle.UnpicklingError:
        raise UsageError(
            f"{file}: holds more than tensors, which would run code; save {{'input': …, 'target': …}}"
        ) from None
    except Exception as error:
        raise UsageError(f"{file}: cannot be read as {file.suffix}: {type(error).__name__}: {error}") from None
    for source in sources.values():
        _refuse_bomb(file, math.prod(source.shape), limit)  # a byte a number at least
    return sources


def _refuse_bomb(file: pathlib.Path, declared: int, limit: int) -> None:
    size = file.stat().st_size
    if declared > max(limit * 2**20, _PACKED * size):
        raise UsageError(
            f"{file}: {size / 2**20:,.1f} MB that unpack to {declared / 2**20:,.0f}; --unpacked-limit MB, now {limit}, "
            "takes more"
        )


@lru_cache(maxsize=4)
def _stream(file: pathlib.Path, member: str, changed: int) -> IO[bytes]:
    """A file, or a member of an archive, kept open as a compressed one is read forward alone."""
    return zipfile.ZipFile(file).open(member) if member else open(file, "rb")


def _raw(file: pathlib.Path, name: str, shape: tuple[int, ...], dtype: str, *, begin: int, member: str = "") -> Source:
    """A tensor that lies row after row in a file, or in a member of an archive, from byte `begin` on."""
    kind: Any = getattr(torch, dtype, None)

    def read(start: int, stop: int, width: int) -> Tensor:
        stream, size = _stream(file, member, file.stat().st_mtime_ns), width * kind.itemsize
        stream.seek(begin + start * size)
        data = bytearray(stream.read((stop - start) * size))
        if len(data) < (stop - start) * size:
            raise ValueError(f"the file ends in row {start + len(data) // size}")
        return torch.from_numpy(np.frombuffer(data, np.uint8)).view(kind).reshape(-1, width)

    return Source(file, name, shape, dtype, read)


def _loaded(file: pathlib.Path, name: str, tensor: Tensor, load: Callable[[], Tensor]) -> Source:
    """A tensor that is loaded whole for each read."""

    def read(start: int, stop: int, width: int) -> Tensor:
        return load().reshape(-1, width)[start:stop].clone()

    return Source(file, name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read)


def _npy(file: pathlib.Path) -> dict[str, Source]:
    """numpy's format, compressed or not. An array in Fortran's or foreign byte order is held whole."""
    if file.suffix == ".npy":
        return {file.stem: _array(file, file.stem, "")}
    with zipfile.ZipFile(file) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    return {member.removesuffix(".npy"): _array(file, member.removesuffix(".npy"), member) for member in members}


def _array(file: pathlib.Path, name: str, member: str) -> Source:
    stream = _stream(file, member, file.stat().st_mtime_ns)
    stream.seek(0)
    version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)  # type: ignore[no-untyped-call]
    if dtype.kind in "fb" and ((fortran and len(shape) > 1) or not dtype.isnative):
        loaded = np.load(file, allow_pickle=False)
        array = loaded[name] if member else loaded
        tensor = torch.from_numpy(array.astype(dtype.newbyteorder("="), order="C"))
        return _loaded(file, name, tensor, lambda: tensor)
    return _raw(file, name, shape, dtype.name, begin=stream.tell(), member=member)


def _pt(file: pathlib.Path) -> dict[str, Source]:
    """Mapped anew for each read where the format can be mapped: torch's own since 1.6."""
    mapped = zipfile.is_zipfile(file)

    def load() -> dict[str, Tensor]:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        if isinstance(loaded, Tensor):
            loaded = {file.stem: loaded}
        if not isinstance(loaded, dict):
            raise UsageError(f"{file}: expected a dictionary of tensors, found {type(loaded).__name__}")
        tensors = {str(name): value.detach() for name, value in loaded.items() if isinstance(value, Tensor)}
        for name, tensor in tensors.items():
            if tensor.is_meta:
                raise UsageError(f"{file}: {name} is a meta tensor, which holds no numbers")
        return tensors

    def source(name: str, tensor: Tensor) -> Source:
        return _loaded(file, name, tensor, (lambda: load()[name]) if mapped else (lambda: tensor))

    return {name: source(name, tensor) for name, tensor in load().items()}


def _safetensors(file: pathlib.Path) -> dict[str, Source]:
    """Eight bytes say how long a header in JSON is, which says where each tensor lies (the format's README)."""
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("its header is longer than the file")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    sources = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if end > file.stat().st_size:
            raise ValueError(f"{name} ends after the file does")
        dtype = _SAFE.get(entry["dtype"], entry["dtype"])
        sources[name] = _raw(file, name, tuple(entry["shape"]), dtype, begin=begin)
    return sources


READERS = {".npz": _npy, ".npy": _npy, ".pt": _pt, ".pth": _pt, ".safetensors": _safetensors}
