"""Whatever a file of a user's own holds: it is read, or refused in one line, in little time; and runs no code."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch

from audit.base.usage import UsageError
from audit.cases.files import Pair, read_pair

SECONDS = 5.0
RAN: list[str] = []


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return RAN.append, ("code of the file ran",)


def sound(chance: random.Random) -> dict[str, bytes]:
    """A whole file of every kind that is read, by its suffix."""
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    rows, classes = chance.randrange(1, 5), chance.randrange(1, 9)
    input, target = (torch.randn(rows, classes, generator=generator) for _ in range(2))
    npz, pt, npy = io.BytesIO(), io.BytesIO(), io.BytesIO()
    chance.choice([np.savez, np.savez_compressed])(npz, input=input.numpy(), target=target.numpy())
    torch.save({"input": input, "target": target}, pt, _use_new_zipfile_serialization=chance.random() < 0.7)
    np.save(npy, input.numpy())
    data, size = input.numpy().tobytes() + target.numpy().tobytes(), 4 * rows * classes
    fields = {"dtype": "F32", "shape": [rows, classes]}
    header = {"input": fields | {"data_offsets": [0, size]}, "target": fields | {"data_offsets": [size, 2 * size]}}
    text = json.dumps(header).encode()
    safetensors = struct.pack("<Q", len(text)) + text + data
    return {".npz": npz.getvalue(), ".pt": pt.getvalue(), ".npy": npy.getvalue(), ".safetensors": safetensors}


def made(chance: random.Random) -> tuple[str, bytes]:
    """A file that no one writes on purpose, or someone does."""
    suffix, data = chance.choice(sorted(sound(chance).items()))
    how = chance.randrange(9)
    if how < 3:  # some bytes are others
        torn = bytearray(data)
        for _ in range(chance.choice([1, 1, 4, 32])):
            torn[chance.randrange(len(torn))] = chance.randrange(256)
        return suffix, bytes(torn)
    if how == 3:
        return suffix, data[: chance.randrange(len(data))]
    if how == 4:
        return suffix, data + chance.randbytes(chance.randrange(200))
    if how == 5:
        place = chance.randrange(len(data))
        return suffix, data[:place] + chance.randbytes(chance.randrange(1, 40)) + data[place:]
    if how == 6:  # a header that promises something else
        old, new = chance.choice(
            [(b"F32", b"F16"), (b"F32", b"I64"), (b"<f4", b"|O8"), (b"<f4", b"<U9"), (b"<f4", b">f8"), (b"(", b"(-"),
             (b"shape", b"sharp"), (b"[", b"[99999999999,"), (b"(", b"(99999999999,"), (b"input", b"inqut"),
             (b"False", b"True "), (b"offsets", b"0ffsets"), (b"{", b"["), (b"4", b"9"), (b"0", b"7")]
        )  # fmt: skip
        return suffix, data.replace(old, new)
    if how == 7:
        trap = {"input": Trap(), "target": Trap()}
        array = np.array([Trap()], dtype=object)
        held = io.BytesIO()
        if suffix == ".pt":
            torch.save(trap, held) if chance.random() < 0.5 else pickle.dump(trap, held)
        elif suffix == ".npz":
            np.savez(held, input=array, target=array)
        else:
            np.save(held, array)
        return suffix, held.getvalue()
    packed = io.BytesIO()  # an archive of odd members
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("input.npy", "target.npy", "../../etc/x.npy", "input.npy/x"):
            archive.writestr(name, chance.choice([b"", data, bytes(chance.choice([10, 10**6]))]))
    return chance.choice([".npz", ".pt"]), packed.getvalue()


def files(folder: Path, number: int) -> Iterator[Path]:
    chance = random.Random(17)
    for i in range(number):
        suffix, data = made(chance)
        file = folder / f"{i}{suffix}"
        file.write_bytes(data)
        yield file
        file.unlink()


def read_all(file: Path) -> tuple[int, int]:
    """How often it was refused, and read."""
    refused = 0
    for read in (read_pair, whole):
        start = perf_counter()
        try:
            read(file)
        except UsageError as error:
            refused += 1
            assert str(error)
        except Exception as error:
            raise AssertionError(f"{file.name}: {error!r}") from error
        assert perf_counter() - start < SECONDS, file.name
    assert not RAN
    return refused, 2 - refused


def whole(file: Path) -> None:
    pair = Pair.open(file, "logits", "logits")
    case = pair.case(slice(0, 10))
    from audit.cases import build

    build(case, pair.dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [200, pytest.param(2_000, marks=pytest.mark.slow)])
def test_a_hostile_file_is_refused_or_read(tmp_path: Path, number: int) -> None:
    counts = np.array([read_all(file) for file in files(tmp_path, number)]).sum(0)
    print(f"\n{number} hostile files, read in two ways: refused {counts[0]} times, read {counts[1]} times")
    assert counts.min() > number / 10
