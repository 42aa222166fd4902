"""The smallest input that shows a finding, and a script that reproduces it with torch and mpmath alone."""

from __future__ import annotations

import ast
import base64
import inspect
import textwrap
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from types import FunctionType

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from audit.errors import UsageError
from audit.judge.bounds import Exact, bound, within_bound
from audit.judge.errors import error_columns
from audit.judge.findings import symptoms
from audit.judge.references import reduced
from audit.measure import measure
from audit.paths import Path
from audit.reference.exact import row_references

TRIALS = 80
SECONDS = 3.0
MAX_RUNS = 64
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Reproducer:
    """One row of a finding, shrunk; `input` and `target` are hexadecimal floats with repeats, empty where too long."""

    classes: int
    input: str
    target: str
    script: str


class Shrinker:
    """Finds the smallest input that shows each finding; what was small for one is tried first for the next."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.dtype, str, str], list[tuple[Tensor, Tensor]]] = {}

    def reproduce(self, path: Path, input: Tensor, target: Tensor, device: str, symptom: str) -> Reproducer | None:
        """Shrinks a row (both of shape (1, classes), on the CPU) while the path shows the symptom on it.

        None where the row alone does not show it.
        """

        def shows(x: Tensor, y: Tensor) -> bool:
            return _symptom(path, x, y, device) == symptom

        known = self._known.setdefault((input.dtype, path.target_kind, symptom), [])
        smallest = next(((x, y) for x, y in known if x.shape[1] <= input.shape[1] and shows(x, y)), None)
        if smallest is None:
            if not shows(input, target):
                return None
            smallest = _shrunk(shows, input, target, path.target_kind)
            known.append(smallest)
        x, y = smallest
        return Reproducer(x.shape[1], _hexadecimal(x), _hexadecimal(y), _script(path, x, y, device))


def _shrunk(
    shows: Callable[[Tensor, Tensor], bool], input: Tensor, target: Tensor, target_kind: str
) -> tuple[Tensor, Tensor]:
    """Rounder numbers where they show it too, then ever smaller runs of classes left out."""
    trials, deadline = 0, perf_counter() + SECONDS
    for x, y in _simpler(input, target, target_kind):
        if shows(x, y):
            input, target = x, y
            break
    chunk = input.shape[1] // 2
    while chunk:
        start = 0
        while start < input.shape[1] > chunk and trials < TRIALS and perf_counter() < deadline:
            x, y = (torch.cat((side[:, :start], side[:, start + chunk :]), 1) for side in (input, target))
            trials += 1
            if shows(x, y):
                input, target = x, y
            else:
                start += chunk
        chunk //= 2
    return input, target


def _simpler(input: Tensor, target: Tensor, target_kind: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Rounder numbers to try, the simplest first. Probabilities stay as they are."""
    for step in (torch.zeros_like, torch.round):
        yield step(input), step(target) if target_kind == "logits" else target


def _symptom(path: Path, input: Tensor, target: Tensor, device: str) -> str:
    result = measure(path, input.to(device, copy=True), target.to(device, copy=True))
    if result.note:
        return "not_computed"
    dtype = str(input.dtype).removeprefix("torch.")
    numbers = input.double().numpy(), target.double().numpy()
    if any(
        row.max() == (0 if kind == "probs" else -np.inf)
        for row, kind in zip(numbers, ("logits", path.target_kind), strict=True)
    ):
        return ""  # no distribution is left
    (computed,) = result.computed
    if np.isnan(computed) or computed == -np.inf:
        # Neither KL nor 0 is that; the exact value need not be known.
        return "not_a_number" if np.isnan(computed) else "minus_infinity"
    exact = Exact.of(*numbers, path.target_kind)
    try:
        references = ["0"] if path.kind == "identity" else row_references(*numbers, target_kind=path.target_kind)
    except UsageError:
        return ""
    row = pd.DataFrame(
        {
            "kind": path.kind,
            "computed": result.computed,
            "result_dtype": result.dtype,
            "result_class": "",
            "reference": reduced(references, path.reduction, input.shape[1]),
            "scale": 1.0,
            "bound": bound(path, exact, dtype),
            "rest": np.nan,
        }
    )
    row = pd.concat([row.drop(columns="result_class"), error_columns(row)], axis=1)
    return str(symptoms(row.assign(within_bound=within_bound(row))).iloc[0])


def _hexadecimal(tensor: Tensor) -> str:
    """The row's numbers as hexadecimal floats, with how often each repeats; empty for more than MAX_RUNS runs."""
    bits = tensor[0].contiguous().view(_INTEGERS[tensor.element_size()])
    runs, counts = torch.unique_consecutive(bits, return_counts=True)
    if len(runs) > MAX_RUNS:
        return ""
    pairs = zip(runs.view(tensor.dtype).tolist(), counts.tolist(), strict=True)
    return " ".join(v.hex() if n == 1 else f"{v.hex()}*{n}" for v, n in pairs)


def _literal(tensor: Tensor) -> str:
    if text := _hexadecimal(tensor):
        return f"row({text!r})"
    packed = base64.b85encode(zlib.compress(tensor.view(torch.uint8).numpy().tobytes(), 9)).decode()
    return f"packed({packed!r})"


def _script(path: Path, input: Tensor, target: Tensor, device: str) -> str:
    sources, call = _sources(path.function)
    kind = "y = list(map(mp.mpf, target[0].double().tolist()))"
    if path.target_kind == "logits":
        kind = "y = softmax(target)"
    exact = (
        "0" if path.kind == "identity" else "mp.fsum(p * mp.log(p / q) if p else 0 for p, q in zip(y, softmax(input)))"
    )
    if path.reduction == "mean":
        exact = f"({exact}) / input.numel()"
    return f"""\
import base64, functools, zlib
from functools import partial

import torch
from mpmath import mp
from torch import Tensor, nn
from torch.nn import functional as F

{sources}

def row(text):
    pairs = [run.partition("*")[::2] for run in text.split()]
    values = [float.fromhex(v) for v, n in pairs for _ in range(int(n or 1))]
    return torch.tensor([values], dtype=torch.float64).to({input.dtype})


def packed(text):
    data = bytearray(zlib.decompress(base64.b85decode(text)))
    return torch.frombuffer(data, dtype={input.dtype})[None]


def softmax(logits):
    weights = [mp.exp(mp.mpf(v)) for v in logits[0].double().tolist()]
    total = mp.fsum(weights)
    return [w / total for w in weights]


mp.prec = 2000
input = {_literal(input)}
target = {_literal(target)}
{kind}
print("computed", {call}(input.to("{device}"), target.to("{device}")).item())
print("exact   ", mp.nstr({exact}, 17))
"""


def _sources(function: Callable[..., object]) -> tuple[str, str]:
    """The source of a function and of the functions and numbers of its module that it uses, and how it is called."""
    if isinstance(function, partial):
        sources, name = _sources(function.func)
        given = ", ".join(f"{key}={value!r}" for key, value in function.keywords.items())
        return sources, f"partial({name}, {given})"
    if not isinstance(function, FunctionType):
        return f"# {function!r} has no source to show", "None"
    seen: dict[str, str] = {}
    _collect(function, seen)
    return "\n\n".join(seen.values()), function.__name__


def _collect(function: FunctionType, seen: dict[str, str]) -> None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, SyntaxError):
        return
    assert isinstance(tree, ast.FunctionDef)
    tree.decorator_list = []
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for name in sorted(names - {function.__name__} - set(seen)):
        used = function.__globals__.get(name)
        if isinstance(used, FunctionType) and used.__module__ == function.__module__:
            _collect(used, seen)
        elif isinstance(used, (int, float, str, tuple)):
            seen[name] = f"{name} = {used!r}"
    seen[function.__name__] = ast.unparse(tree)
