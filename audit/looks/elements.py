"""softmax, log_softmax and log(softmax), element by element, in ulp."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from audit.base.formats import FORMATS, Format
from audit.base.workers import Later, Submit, later
from audit.cases import Problem
from audit.looks import Look, Run, together
from audit.machine.devices import here, lasting
from audit.reference.softmax import Pair, exact_softmax
from audit.reference.values import Rows

ROWS = 2
NARROW = 1_000  # classes that can be had exactly one by one
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "log(softmax)": lambda x: torch.log(torch.softmax(x, -1)),
}


def _ulp(exact: Rows, format: Format) -> Rows:
    with np.errstate(divide="ignore"):
        exponent = np.clip(np.floor(np.log2(np.abs(exact))), format.minimum, format.maximum)
    return np.asarray(np.exp2(np.maximum(exponent, format.minimum) - format.precision + 1))


def begin(run: Run) -> Later[pd.DataFrame]:
    """Exact softmaxes of all but wide problems, whatever the device."""
    problems = [trial.problem for trial in run.trials]
    narrow = [p for p in problems if p.input.shape[1] <= NARROW and p.case.input_kind == "logits"]
    # How errors go with the number of classes is growth.csv's to say.
    narrow = [p for p in narrow if not p.case.name.startswith("width_")]
    parts = [measure_elements(narrow, device, run.submit) for device in run.devices]
    return lambda: together(part() for part in parts)


LOOK = Look("elements", ("whole",), begin)


def measure_elements(problems: Sequence[Problem], device: str, submit: Submit = later) -> Later[pd.DataFrame]:
    """Begins the rows of elements.csv, and waits for them when called: a case x operation x dtype on one device.

    Taken are the cases' first rows.
    """
    begun = [(problem, submit(exact_softmax, problem.input[:ROWS].double().numpy())) for problem in problems]
    return lambda: pd.DataFrame(lasting(device, begun, lambda b: _elements(b[0], device, b[1]()), "elements"))


def _elements(problem: Problem, device: str, exact: tuple[Pair, Pair]) -> Iterator[dict[str, object]]:
    x = problem.input[:ROWS]
    p, log_p = exact
    format = FORMATS[problem.dtype]
    for name, operation in OPERATIONS.items():
        high, low = p if name == "softmax" else log_p
        computed = here(operation(x.to(device))).double().numpy()
        with np.errstate(invalid="ignore"):
            error = ((computed - high) - low) / _ulp(high, format)
        finite = np.isfinite(error)
        sizes = np.abs(error[finite])
        worst = np.unravel_index(int(np.argmax(np.where(finite, np.abs(error), -1.0))), error.shape)
        yield {
            "case": problem.case.name,
            "operation": name,
            "dtype": problem.dtype,
            "device": device,
            "elements": error.size,
            "worst": float(sizes.max()) if sizes.size else np.nan,
            "p99": float(np.quantile(sizes, 0.99)) if sizes.size else np.nan,
            "mean_signed": float(error[finite].mean()) if sizes.size else np.nan,
            "above_1": float((sizes > 1).mean()) if sizes.size else np.nan,
            "non_finite": int((~finite).sum()),
            "worst_row": int(worst[0]),
            "worst_class": int(worst[1]),
            "worst_input": float(x[worst[0], worst[1]]).hex(),
        }
