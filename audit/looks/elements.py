"""softmax, log_softmax and log(softmax), element by element, in ulp."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from audit.base.formats import FORMATS
from audit.base.workers import Later, Submit, later
from audit.cases import Problem
from audit.looks import Look, Run
from audit.machine.devices import here, lasting
from audit.reference.softmax import Pair, exact_softmax

Begun = tuple[Problem, Later[tuple[Pair, Pair]]]
ROWS = 2
NARROW = 1_000  # classes that can be had exactly one by one
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "log(softmax)": lambda x: torch.log(torch.softmax(x, -1)),
}


def begin(run: Run) -> Later[pd.DataFrame]:
    """Exact softmaxes of all but wide problems, whatever the device."""
    logits = [trial.problem for trial in run.trials if trial.problem.case.input_kind == "logits"]
    # How errors go with the number of classes is growth.csv's to say.
    narrow = [p for p in logits if p.input.shape[1] <= NARROW and not p.case.name.startswith("width_")]
    begun = [begin_problem(problem, run.submit) for problem in narrow]
    return lambda: measure_elements(begun, run.devices)


LOOK = Look("elements", ("whole",), begin)


def begin_problem(problem: Problem, submit: Submit = later) -> Begun:
    """With the exact softmax and its logarithm, of its first rows."""
    return problem, submit(exact_softmax, problem.input[:ROWS].double().numpy())


def measure_elements(begun: Sequence[Begun], devices: Sequence[str]) -> pd.DataFrame:
    """The rows of elements.csv: a case x operation x dtype on a device."""
    return pd.DataFrame(lasting(devices, begun, _elements, "elements"))


def _elements(begun: Begun, device: str) -> Iterator[dict[str, object]]:
    problem, exact = begun
    x = problem.input[:ROWS]
    p, log_p = exact()
    format = FORMATS[problem.dtype]
    for name, operation in OPERATIONS.items():
        high, low = p if name == "softmax" else log_p
        computed = here(operation(x.to(device))).double().numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            exponent = np.clip(np.floor(np.log2(np.abs(high))), format.minimum, format.maximum)
            error = ((computed - high) - low) / np.exp2(exponent - format.precision + 1)
        errors = pd.Series(error[np.isfinite(error)])
        sizes = errors.abs()
        row, column = np.unravel_index(int(np.argmax(np.nan_to_num(np.abs(error), nan=-1.0, posinf=-1.0))), error.shape)
        yield {
            "case": problem.case.name,
            "operation": name,
            "dtype": problem.dtype,
            "device": device,
            "elements": error.size,
            "worst": sizes.max(),
            "p99": sizes.quantile(0.99),
            "mean_signed": errors.mean(),
            "above_1": (sizes > 1).mean(),
            "non_finite": error.size - errors.size,
            "worst_row": row,
            "worst_class": column,
            "worst_input": float(x[row, column]).hex(),
        }
