"""Tensors in files: .npz, .npy, .pt and .safetensors, of which a few rows at a time are in memory."""

from __future__ import annotations

import json
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from audit.base.usage import UsageError

Reader = Callable[[int, int], Tensor]
Opened = Callable[[], tuple[IO[bytes], int]]
UNPACKED = 256  # MB that a file may unpack to whatever its size
# Logits that are compressed take a third of their size at the least; a zip bomb a thousandth.
_PACKED = 20
_SAFE = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "BOOL": "bool", "I64": "int64"}


@dataclass(frozen=True)
class Source:
    """One tensor of a file; `rows` gives some of them, all dimensions but the last counted as one.

    Nothing of the file stays mapped between two reads: mapped pages count as resident.
    """

    file: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Reader

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype}, {' x '.join(map(str, self.shape)) or 'a number'})"

    @property
    def count(self) -> int:
        return math.prod(self.shape[:-1])

    def split(self, tokens: bool) -> Source:
        """Itself, or where its numbers are `tokens` each a row of one class."""
        if not tokens or not self.shape:
            return self
        width = self.shape[-1]

        def read(start: int, stop: int) -> Tensor:
            first = start // width
            return self.read(first, -(-stop // width)).reshape(-1, 1)[start - first * width : stop - first * width]

        return replace(self, shape=(*self.shape, 1), read=read)

    def rows(self, start: int, stop: int) -> Tensor:
        """Shape (stop - start, classes), in memory of its own. Raises UsageError where they cannot be read."""
        try:
            return self.read(start, stop)
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


def _raw(file: pathlib.Path, name: str, shape: tuple[int, ...], dtype: str, opened: Opened) -> Source:
    """A tensor that lies row after row in a stream, from the place on that `opened` gives with it."""
    kind: Any = getattr(torch, dtype, None)
    width = shape[-1] if shape else 1

    def read(start: int, stop: int) -> Tensor:
        stream, begin = opened()
        size = width * kind.itemsize
        stream.seek(begin + start * size)
        data = bytearray(stream.read((stop - start) * size))
        if len(data) < (stop - start) * size:
            raise ValueError(f"the file ends in row {start + len(data) // max(size, 1)}")
        return torch.frombuffer(data, dtype=kind).reshape(-1, width) if data else torch.empty(0, width, dtype=kind)

    return Source(file, name, shape, dtype, read)


def _held(file: pathlib.Path, name: str, tensor: Tensor) -> Source:
    return Source(file, name, tuple(tensor.shape), _name(tensor), lambda *rows: _cut(tensor, *rows))


def _cut(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1)[start:stop].clone()


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@lru_cache(maxsize=4)
def _stream(file: pathlib.Path, member: str, changed: int) -> IO[bytes]:
    """A file, or a member of an archive, kept open as a compressed one is read forward alone."""
    return zipfile.ZipFile(file).open(member) if member else open(file, "rb")


def _opened(file: pathlib.Path, member: str, begin: int) -> tuple[IO[bytes], int]:
    return _stream(file, member, file.stat().st_mtime_ns), begin


def _npz(file: pathlib.Path) -> dict[str, Source]:
    with zipfile.ZipFile(file) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    return {name: _array(file, name, f"{name}.npy") for name in names}


def _npy(file: pathlib.Path) -> dict[str, Source]:
    return {file.stem: _array(file, file.stem, "")}


def _array(file: pathlib.Path, name: str, member: str) -> Source:
    """numpy's format, compressed or not. One in Fortran's or foreign byte order is held whole."""
    stream, _ = _opened(file, member, 0)
    stream.seek(0)
    version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)  # type: ignore[no-untyped-call]
    if dtype.kind in "fb" and ((fortran and len(shape) > 1) or not dtype.isnative):
        loaded = np.load(file, allow_pickle=False)
        array = loaded[name] if member else loaded
        return _held(file, name, torch.from_numpy(array.astype(dtype.newbyteorder("="), order="C")))
    return _raw(file, name, shape, dtype.name, partial(_opened, file, member, stream.tell()))


def _pt(file: pathlib.Path) -> dict[str, Source]:
    """Mapped anew for each read where the format can be mapped: torch's own since 1.6."""
    mapped = zipfile.is_zipfile(file)

    def load() -> dict[str, Tensor]:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        if isinstance(loaded, Tensor):
            return {file.stem: loaded}
        if not isinstance(loaded, dict):
            raise UsageError(f"{file}: expected a dictionary of tensors, found {type(loaded).__name__}")
        return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}

    def source(name: str, tensor: Tensor) -> Source:
        return Source(file, name, tuple(tensor.shape), _name(tensor), lambda *rows: _cut(load()[name], *rows))

    return {name: source(name, tensor) if mapped else _held(file, name, tensor) for name, tensor in load().items()}


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
        sources[name] = _raw(file, name, tuple(entry["shape"]), dtype, partial(_opened, file, "", begin))
    return sources


READERS: dict[str, Callable[[pathlib.Path], dict[str, Source]]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".pt": _pt,
    ".pth": _pt,
    ".safetensors": _safetensors,
}
