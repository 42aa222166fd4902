"""softmax, log_softmax and log(softmax), element by element, in ulp; and the gradients of every path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from audit.cases import Problem
from audit.formats import FORMATS, Format
from audit.measure import TORCH
from audit.paths import Path
from audit.reference.softmax import exact_softmax
from audit.reference.values import Rows

ROWS = 2
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "log(softmax)": lambda x: torch.log(torch.softmax(x, -1)),
}


def _ulp(exact: Rows, format: Format) -> Rows:
    with np.errstate(divide="ignore"):
        exponent = np.clip(np.floor(np.log2(np.abs(exact))), format.minimum, format.maximum)
    return np.asarray(np.exp2(np.maximum(exponent, format.minimum) - format.precision + 1))


def measure_elements(problems: Sequence[Problem], device: str) -> pd.DataFrame:
    """The rows of elements.csv: a case x operation x dtype on one device, of the cases' first rows."""
    return pd.DataFrame([row for problem in problems for row in _elements(problem, device)])


def _elements(problem: Problem, device: str) -> Iterator[dict[str, object]]:
    x = problem.input[:ROWS]
    exact = dict(zip(("softmax", "log_softmax"), exact_softmax(x.double().numpy()), strict=True))
    format = FORMATS[problem.dtype]
    for name, operation in OPERATIONS.items():
        high, low = exact["softmax" if name == "softmax" else "log_softmax"]
        computed = operation(x.to(device)).double().cpu().numpy()
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


def measure_gradients(problems: Sequence[Problem], paths: Sequence[Path], device: str) -> pd.DataFrame:
    """The rows of gradients.csv: autograd's gradient of each path's sum over rows, against the exact one.

    With respect to the input it is q - p, to the target p (log(p / q) - KL).
    """
    return pd.DataFrame([row for problem in problems for row in _gradients(problem, paths, device)])


def _gradients(problem: Problem, paths: Sequence[Path], device: str) -> Iterator[dict[str, object]]:
    (q, _), (log_q, log_q_low) = exact_softmax(problem.input[:ROWS].double().numpy())
    (p, _), (log_p, log_p_low) = exact_softmax(problem.target[:ROWS].double().numpy())
    L = (log_p - log_q) + (log_p_low - log_q_low)
    kl = (p * L).sum(axis=1, keepdims=True)
    # q - p without cancellation.
    exact = {"input": np.where(np.abs(L) < 1, p * np.expm1(-L), q - p), "target": p * (L - kl)}
    u = FORMATS[problem.dtype].unit_roundoff
    for path in paths:
        if not path.takes(problem.case.name, problem.dtype, problem.case.target_kind):
            continue
        x, y = (t[:ROWS].to(device, copy=True).requires_grad_() for t in (problem.input, problem.target))
        try:
            with TORCH:
                grads = torch.autograd.grad(path.function(x, y).sum(), (x, y), allow_unused=True)
        except RuntimeError:
            continue
        for side, grad in zip(("input", "target"), grads, strict=True):
            if grad is None:
                continue
            computed = grad.double().cpu().numpy()
            with np.errstate(invalid="ignore"):
                error = np.abs(computed - exact[side])
            finite = np.isfinite(error)
            size = np.abs(exact[side]).max()
            worst = float(error[finite].max()) if finite.any() else np.nan
            yield {
                "case": problem.case.name,
                "path": path.name,
                "dtype": problem.dtype,
                "device": device,
                "side": side,
                "elements": error.size,
                "worst_in_u": worst / u,
                "worst_relative": worst / size if size else np.nan,
                "not_a_number": int(np.isnan(computed).sum()),
                "infinite": int(np.isinf(computed).sum()),
            }
