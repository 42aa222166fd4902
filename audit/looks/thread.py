"""Every number and claim of the forum thread, explained and measured: the rows of thread.csv.

The thread is "Kullback-Leibler Divergence loss function giving negative values" on the PyTorch forum. What it says
stands in thread.csv beside this file; here is how that is measured.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from audit.base.text import describe
from audit.cases.shapes import recorded
from audit.looks import Look, together
from audit.machine.devices import here, lost
from audit.machine.measure import TORCH
from audit.paths import functional, thread_era

DRAWS = 2_000
CENTRAL = (2.5, 97.5)
BINS = 40
Draws = NDArray[np.float64]
_terms = partial(F.kl_div, reduction="none")

QUOTES = list(csv.DictReader((files("audit.looks") / "thread.csv").read_text(encoding="utf-8").splitlines()))
# What a quote claims of every draw; where it is none of these, what an exception says.
CLAIMS: dict[str, Callable[[Draws], NDArray[np.bool_]]] = {
    "negative": lambda draws: draws < 0,
    "zero": lambda draws: draws == 0,
    "between -0.1 and 0": lambda draws: (draws >= -0.1) & (draws <= 0),
}


@cache
def _logits(*shape: int) -> Tensor:
    """What a person types for each seed: torch.manual_seed(seed); torch.randn(shape). Float32, on the CPU."""
    generator = torch.Generator()
    return torch.stack([torch.randn(shape, generator=generator.manual_seed(seed)) for seed in range(DRAWS)])


def _softmax_output_loss(epoch: int, device: str) -> Draws:
    """KLDivLoss()(softmax(logits), one_hot(labels)) averaged over 200 mini-batches of 4 held-out images, resampled."""
    logits, labels = (torch.from_numpy(a).to(device) for a in recorded())
    terms = _terms(torch.softmax(logits[epoch], -1), F.one_hot(labels, 10).float())
    generator = torch.Generator().manual_seed(epoch)
    images = torch.randint(len(labels), (DRAWS, 800), generator=generator).to(device)
    return here(terms.mean(-1)[images].mean(-1)).double().numpy()


def _draws(formula: Callable[[Tensor], Tensor], *shape: int) -> Callable[[str], Draws]:
    """Measures a formula of the logits of every seed, draws x shape."""
    return lambda device: here(formula(_logits(*shape).to(device))).double().numpy()


def _of_equal(path: Callable[[Tensor, Tensor], Tensor], divisor: int = 1) -> Callable[[str], Draws]:
    """Measures a path of the same 1,000 logits twice; KLDivLoss() divides by the number of elements."""
    draws = _draws(lambda x: path(x, x), 1000)
    return lambda device: draws(device) / divisor


def _message(call: Callable[[Tensor], object]) -> Callable[[str], str]:
    """What torch says to a call with a small tensor."""

    def measure(device: str) -> str:
        try:
            call(torch.zeros(2, 3, device=device))
        except Exception as error:
            return describe(error)
        return "no exception"

    return measure


# By subject and implementation.
MEASURES: dict[tuple[str, str], Callable[[str], Draws | str]] = {
    **{(f"CNN loss, epoch {epoch + 1}", "today"): partial(_softmax_output_loss, epoch) for epoch in range(5)},
    ("KLDivLoss, equal logits", "today"): _of_equal(functional.log_softmax, 1000),
    ("KLDivLoss, equal logits", "thread_era"): _of_equal(thread_era.kl_div, 1000),
    ("log softmax - log_softmax", "today"): _of_equal(functional.difference),
    ("log softmax - log_softmax", "thread_era"): _of_equal(thread_era.difference),
    ("KLDivLoss(DATA1, DATA2)", "today"): _message(lambda x: nn.KLDivLoss(x, x)(x, x)),
    ("(64, 81), dims mixed up", "today"): _draws(
        lambda x: _terms(torch.log_softmax(x, 1), torch.softmax(x, 2)).sum((1, 2)) / 64, 64, 81
    ),
    ("LogSoftmax(preds)", "today"): _message(lambda x: nn.LogSoftmax(x)(x)),  # type: ignore[arg-type]
    ("(C, W, H) maps", "today"): _draws(
        lambda x: _terms(torch.log_softmax(x, 1), torch.softmax(x, 3)).sum((1, 2, 3)) / 3, 3, 32, 32
    ),
    ("target of mass 1/2", "today"): _draws(
        lambda x: _terms(torch.log_softmax(x, -1), 0.5 * torch.softmax(x, -1)).sum(-1), 1000
    ),
    ("log_target on both sides", "today"): _of_equal(functional.log_target),
    ("target = exp(log_softmax)", "today"): _draws(
        lambda x: _terms(torch.log_softmax(x, -1), torch.log_softmax(x, -1).exp()).sum(-1), 1000
    ),
}

LOOK = Look("thread", ("whole",), lambda run: lambda: together(measure_thread(device) for device in run.devices))


def measure_thread(device: str) -> pd.DataFrame:
    """The rows of thread.csv for one device: every quote, with the distribution of its draws there."""
    return pd.DataFrame([quote | {"device": device} | _row(quote, device) for quote in QUOTES])


def _row(quote: dict[str, str], device: str) -> dict[str, object]:
    """What was measured of a quote, and whether that reproduces it."""
    try:
        with TORCH:
            draws = lost(device) or MEASURES[quote["subject"], quote["implementation"]](device)
    except (RuntimeError, TypeError, TimeoutError) as error:
        return {"draws": 0, "reproduced": "no", "why": "not computed", "observed": describe(error)}
    if isinstance(draws, str):
        same = quote["claim"] in draws
        why = "torch still answers so" if same else "torch answers otherwise today"
        return {"draws": 1, "reproduced": "yes" if same else "no", "why": why, "observed": draws}
    held = quote["claim"] in CLAIMS and bool(CLAIMS[quote["claim"]](draws).all())
    reproduced, why = ("yes", f"in all of {DRAWS} draws") if held else ("no", f"not in all of {DRAWS} draws")
    percentile, value = np.nan, abs(pd.to_numeric(quote["quoted"], errors="coerce"))
    if not np.isnan(value):
        percentile = 100 * (np.abs(draws) <= value).mean()
        reproduced, why = _reproduced(value, percentile, held)
    low, high = draws.min(), draws.max()
    return {
        "draws": len(draws),
        "minimum": low,
        **dict(zip(("p05", "median", "p95"), np.quantile(draws, (0.05, 0.5, 0.95)), strict=True)),
        "maximum": high,
        "median_magnitude": np.median(np.abs(draws)),
        "negative_share": (draws < 0).mean(),
        "zero_share": (draws == 0).mean(),
        "histogram": "" if low == high else " ".join(map(str, np.histogram(draws, BINS)[0])),
        "percentile": percentile,
        "reproduced": reproduced,
        "why": why,
        "observed": f"{low:.4g} to {high:.4g}",
    }


def _reproduced(value: float, percentile: float, held: bool) -> tuple[str, str]:
    """Whether a number that was quoted, of this magnitude, is reproduced, and the evidence."""
    where = f"{value:.4g} is at percentile {percentile:.1f} of {DRAWS} magnitudes"
    if CENTRAL[0] <= percentile <= CENTRAL[1]:
        return "yes", where
    if held:
        why = f"same sign and range; the value itself depends on how far this network was trained ({where})"
        return "mechanism", why
    return "no", f"{where}, outside the central 95 %"
