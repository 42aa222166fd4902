"""Tensors of the user's own: `input` and `target` from .npz, .pt or .safetensors."""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audit.errors import UsageError
from audit.formats import FORMATS


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
