"""Tensors of the user's own: `input` and `target` from .npz, .pt or .safetensors."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audit.cases import Case, Rows
from audit.errors import UsageError
from audit.formats import FORMATS, Format


@dataclass(frozen=True)
class Pair:
    """A file's input and target, of shape (rows, classes), and whether its target is logits or probs."""

    name: str
    input: Tensor
    target: Tensor
    target_kind: str

    @classmethod
    def read(cls, file: Path, target_kind: str) -> Pair:
        """Raises UsageError, as read_pair does, and for tensors that are not rows x classes."""
        input, target = read_pair(file)
        if input.dim() != 2:
            raise UsageError(f"{file}: expected shape (rows, classes), got {tuple(input.shape)}")
        return cls(file.stem, input, target, target_kind)

    @property
    def dtype(self) -> str:
        return str(self.input.dtype).removeprefix("torch.")

    def case(self, rows: slice) -> Case:
        """Some of its rows as a case. What was rounded to make the file is not known: it is native."""

        def make(_: Format) -> tuple[Rows, Rows]:
            input, target = self.input[rows].double().numpy(), self.target[rows].double().numpy()
            return input, target

        return Case(self.name, "given by the user", make, target_kind=self.target_kind, native=True)


def read_pair(file: Path) -> tuple[Tensor, Tensor]:
    """`input` and `target` of a file, of one shape and one floating dtype, memory-mapped where the format allows it.

    A .pt file must hold a dictionary of tensors; it is loaded without running any code of its own. Raises UsageError
    for a file that cannot be read so, and for other names, shapes and dtypes.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    readers = {".npz": _npz, ".pt": _pt, ".pth": _pt, ".safetensors": _safetensors}
    if file.suffix not in readers:
        raise UsageError(f"{file}: expected one of {', '.join(readers)}")
    try:
        tensors = readers[file.suffix](file)
    except UsageError:
        raise
    except pickle.UnpicklingError:
        raise UsageError(
            f"{file}: holds more than tensors, which would run code; save {{'input': …, 'target': …}}"
        ) from None
    except Exception as error:
        raise UsageError(f"{file}: cannot be read as {file.suffix}: {type(error).__name__}: {error}") from None
    for name in ("input", "target"):
        if not isinstance(tensors.get(name), Tensor):
            raise UsageError(
                f"{file}: expected tensors named input and target, found {', '.join(map(str, tensors)) or 'none'}"
            )
        if str(tensors[name].dtype).removeprefix("torch.") not in FORMATS:
            raise UsageError(f"{file}: {name} is {tensors[name].dtype}, expected one of {', '.join(FORMATS)}")
    input, target = tensors["input"], tensors["target"]
    if input.shape != target.shape or input.dtype != target.dtype or not input.numel():
        described = " and ".join(f"{t.dtype} {tuple(t.shape)}" for t in (input, target))
        raise UsageError(f"{file}: expected input and target of one shape and dtype, not empty, got {described}")
    return input, target


def _npz(file: Path) -> dict[str, Tensor]:
    with np.load(file, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in ("input", "target") if name in arrays}


def _pt(file: Path) -> dict[str, Tensor]:
    loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(loaded, dict):
        raise UsageError(f"{file}: expected a dictionary with input and target, found {type(loaded).__name__}")
    return loaded


def _safetensors(file: Path) -> dict[str, Tensor]:
    if find_spec("safetensors") is None:
        raise UsageError(f"{file}: safetensors is not installed; install it, or save as .pt or .npz")
    from safetensors.torch import load_file

    loaded: dict[str, Tensor] = load_file(file)
    return loaded
