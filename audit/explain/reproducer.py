"""The smallest input that shows a finding, and a script that reproduces it with torch and mpmath alone."""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from importlib.resources import files
from time import perf_counter
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from audit.base.kinds import LOSSY
from audit.base.usage import UsageError
from audit.judge.bounds import Exact, bounds
from audit.judge.errors import exact_error, result_class, within_bound
from audit.judge.gradients import Gradient, Truth
from audit.judge.references import reduced
from audit.machine.devices import lost
from audit.machine.measure import TOO_SLOW, bits, measure
from audit.machine.plan import Plan
from audit.paths import Path
from audit.reference.exact import row_references
from audit.reference.quantities import quantity_references

TRIALS = 80
SECONDS = 3.0
MAX_RUNS = 64
GIVEN = {"torch", "Tensor", "nn", "F", "partial"}  # what every script imports


class Shrinker:
    """Finds the smallest input that shows each finding; what was small for one is tried first for the next."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.dtype, str, str], list[tuple[Tensor, Tensor]]] = {}

    def reproduce(self, path: Path, input: Tensor, target: Tensor, device: str, symptom: str) -> dict[str, object]:
        """Shrinks a row (both of shape (1, classes), on the CPU) while the path shows the symptom on it.

        The columns of findings.csv that tell of it: how many `classes`, `input` and `target` as hexadecimal floats with
        repeats, empty where too long, and `script`. None of them where the row alone does not show it.
        """
        side = symptom.partition("_gradient_")[0] if "_gradient_" in symptom else ""

        def shows(x: Tensor, y: Tensor) -> bool:
            if not side:
                return _shows(path, x, y, device, symptom)
            with suppress(RuntimeError):  # of a row that autograd finds nothing in to differentiate
                return any(g.symptom == symptom for g in _gradients(path, x, y, device))
            return False

        known = self._known.setdefault((input.dtype, path.target_kind, symptom), [])
        smallest = next(((x, y) for x, y in known if x.shape[1] <= input.shape[1] and shows(x, y)), None)
        if smallest is None:
            if not shows(input, target):
                return {}
            smallest = _shrunk(shows, input, target, path.target_kind)
            known.append(smallest)
        texts = [_hexadecimal(row) for row in smallest]
        x_text, y_text = (text if text.count(" ") < MAX_RUNS else "" for text in texts)
        script = _script(path, *smallest, texts, device=device, side=side)
        return {"classes": smallest[0].shape[1], "input": x_text, "target": y_text, "script": script}


def with_examples(findings: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """The rows of findings.csv, each with the columns of its smallest example; empty where there is none."""
    shrinker = Shrinker()
    found: list[dict[str, object]] = []
    for finding in findings.to_dict("records"):
        # A reduced result does not say which row it is of.
        rows = slice(None) if pd.isna(finding["row"]) else slice(int(finding["row"]), int(finding["row"]) + 1)
        problem = plan.problem(str(finding["case"]), str(finding["dtype"]), rows)
        key = (finding["path"], finding["reduction"], problem.case.target_kind)
        here = [p for p in plan.paths if p.runs_on(str(finding["device"]))]
        path = next(p for p in here if (p.name, p.reduction, p.target_kind) == key)
        # The script that reproduces a finding normalises logits; what is too slow is too slow to be tried again, and
        # what makes a sum lossy is its length, of which nothing is left after shrinking.
        given = "log_probs" in problem.case.kinds or path.input_kind != "logits"
        device, symptom = str(finding["device"]), str(finding["symptom"])
        if given or symptom in (LOSSY, "changes") or TOO_SLOW in str(finding["note"]) or lost(device):
            found.append({})
            continue
        tries = (
            shrinker.reproduce(path, problem.input[[row]], problem.target[[row]], device, symptom)
            for row in range(len(problem.input))
        )
        found.append(next((example for example in tries if example), {}))
    return findings.join(pd.DataFrame(found, index=findings.index))


def _shrunk(
    shows: Callable[[Tensor, Tensor], bool], input: Tensor, target: Tensor, target_kind: str
) -> tuple[Tensor, Tensor]:
    """Rounder numbers where they show it too, then ever smaller runs of classes left out."""
    trials, deadline = 0, perf_counter() + SECONDS
    for simpler in (torch.zeros_like, torch.round):
        x, y = simpler(input), simpler(target) if target_kind == "logits" else target  # probabilities stay as they are
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


def _shows(path: Path, input: Tensor, target: Tensor, device: str, symptom: str) -> bool:
    result = measure(path, input.to(device, copy=True), target.to(device, copy=True))
    if result.note:
        return symptom == "not_computed"
    (computed,), (given,) = result.computed, result_class(result.computed)
    numbers = input.double().numpy(), target.double().numpy()
    lost = [
        row.max() == (0 if kind == "probs" else -np.inf)
        for row, kind in zip(numbers, ("logits", path.target_kind), strict=True)
    ]
    sought = "finite" if symptom in ("beyond_bound", "narrow_result") else symptom
    if given != sought or any(lost):  # no distribution is left
        return False
    if given in ("not_a_number", "minus_infinity"):
        return True  # neither KL nor 0 is that; the exact value need not be known
    try:
        if path.quantity == "kl":
            references = row_references(*numbers, target_kind=path.target_kind)
        else:
            references = ["0"] if path.quantity == "zero" else quantity_references(path.quantity, *numbers)
    except UsageError:
        return False
    reference = reduced(references, path.reduction, input.shape[1])
    exact = Exact.of(*numbers, path.target_kind)
    allowed, _ = bounds([path.promise], exact, str(input.dtype).removeprefix("torch."))[path.promise]
    error = exact_error(computed, reference, result.dtype)
    row = {"computed": computed, "reference": reference, "abs_error": error, "bound": allowed, "rest": np.nan}
    table = pd.DataFrame(row | {"result_dtype": result.dtype, "result_class": given})
    return not within_bound(table).all()


def _gradients(path: Path, input: Tensor, target: Tensor, device: str) -> list[Gradient]:
    return Truth(input, target, target_kind=path.target_kind).gradients(path, device)


def _hexadecimal(tensor: Tensor) -> str:
    """The row's numbers as hexadecimal floats, with how often each repeats."""
    runs, counts = torch.unique_consecutive(bits(tensor[0].contiguous()), return_counts=True)
    pairs = zip(runs.view(tensor.dtype).tolist(), counts.tolist(), strict=True)
    return " ".join(v.hex() if n == 1 else f"{v.hex()}*{n}" for v, n in pairs)


def _script(path: Path, input: Tensor, target: Tensor, texts: Sequence[str], *, device: str, side: str) -> str:
    call, sources = _sources(path.function)
    exact = "mp.fsum(p * mp.log(p / q) if p else 0 for p, q in zip(y, x))"
    if path.kind == "identity" and path.rounding.temperature == 1:
        exact = "0"
    degree = f" / {path.rounding.temperature}" if path.rounding.temperature != 1 else ""
    scale = f" * {path.rounding.temperature ** (1 if side else 2)}" if degree else ""
    scale += f" / {input.shape[1]}" if path.reduction == "mean" else ""
    value = f'{call}(input.to("{device}"), target.to("{device}"))'
    if side:
        gradient = next(g for g in _gradients(path, input, target, device) if g.side == side)
        i = int(np.argmax(gradient.ratio))
        value = f"torch.autograd.grad({value}.sum(), {side}, materialize_grads=True)[0][0, {i}]"
        exact = f"x[{i}] * mp.fsum(y) - y[{i}]" if side == "input" else f"y[{i}] * (mp.log(y[{i}] / x[{i}]) - {exact})"
    given = path.target_kind == "probs"
    return (
        (files("audit.explain") / "script.txt")
        .read_text(encoding="utf-8")
        .format(
            sources=sources,
            dtype=input.dtype,
            input=texts[0],
            target=texts[1],
            degree=degree,
            probabilities="target[0].double().tolist()" if given else f"distribution(target.double(){degree})",
            gradients="input.requires_grad_(), target.requires_grad_()" if side else "",
            value=value,
            exact=exact,
            scale=scale,
        )
    )


@cache
def _sources(function: Callable[..., object]) -> tuple[str, str]:
    """How a function is called, and its source after that of what it uses."""
    seen: dict[str, str] = {}
    return _written(function, "", seen), "\n\n".join(seen.values())


def _written(value: object, name: str, seen: dict[str, str], module: str = "") -> str:
    """A value as the script has it; what `name`, or a function's own, stands for is put into `seen`."""
    if isinstance(value, partial):
        given = [_written(v, "", seen) for v in (value.func, *value.args)]
        given += [f"{key}={_written(v, '', seen)}" for key, v in value.keywords.items()]
        return f"partial({', '.join(given)})"
    if isinstance(value, (FunctionType, type)):
        if value.__name__ not in seen:
            _collect(value, seen)
    elif isinstance(value, BuiltinFunctionType) and name:
        seen[name] = f"from {value.__module__ or 'torch'} import {value.__name__} as {name}"
    elif isinstance(value, ModuleType) and name:
        seen[name] = f"import {value.__name__} as {name}"
    elif isinstance(value, (int, float, str, tuple, dict)):
        if not name:
            return repr(value)
        seen[name] = f"{name} = {value!r}"
    elif name:
        seen[name] = f"from {module} import {name}"
    return getattr(value, "__name__", repr(value))


def _collect(used: FunctionType | type, seen: dict[str, str]) -> None:
    """The source of a function or class, after that of what it uses; an import where it is torch's or has no source."""
    tree = None
    module = used.__module__ or "your_module"  # of what was made by exec
    if module.partition(".")[0] not in ("torch", *sys.stdlib_module_names):
        with suppress(OSError, TypeError, SyntaxError):
            tree = ast.parse(textwrap.dedent(inspect.getsource(used))).body[0]
    if not isinstance(tree, (ast.FunctionDef, ast.ClassDef)):
        seen[used.__name__] = f"from {module} import {used.__name__}"
        return
    tree.decorator_list = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Name("object")
    seen[used.__name__] = ""  # for one that calls itself
    if isinstance(used, type):
        known = vars(sys.modules[module])
    else:
        around = zip(used.__code__.co_freevars, used.__closure__ or (), strict=True)
        known = used.__globals__ | {name: cell.cell_contents for name, cell in around}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(vars(builtins)) - GIVEN
    for name in sorted(names & set(known) - set(seen)):
        _written(known[name], name, seen, module)
    del seen[used.__name__]
    seen[used.__name__] = ast.unparse(tree)
