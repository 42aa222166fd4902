"""Every number and claim of the forum thread, explained and measured: the rows of thread.csv.

The thread is "Kullback-Leibler Divergence loss function giving negative values" on the PyTorch forum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

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


@cache
def _logits(*shape: int) -> Tensor:
    """What a person types for each seed: torch.manual_seed(seed); torch.randn(shape). Float32, on the CPU."""
    generator = torch.Generator()
    return torch.stack([torch.randn(shape, generator=generator.manual_seed(seed)) for seed in range(DRAWS)])


def _numbers(values: Tensor) -> Draws:
    return here(values).double().numpy()


def equal_logits(path: Callable[[Tensor, Tensor], Tensor], divisor: int, device: str) -> Draws:
    """What a path makes of x = randn(1, 1000) twice, divided: KLDivLoss() takes the mean over 1,000 elements."""
    x = _logits(1000).to(device)
    return _numbers(path(x, x)) / divisor


def softmax_output_loss(epoch: int, device: str) -> Draws:
    """KLDivLoss()(softmax(logits), one_hot(labels)) averaged over 200 mini-batches of 4 held-out images, resampled."""
    logits, labels = (torch.from_numpy(a).to(device) for a in recorded())
    terms = _terms(torch.softmax(logits[epoch], -1), F.one_hot(labels, 10).float())
    generator = torch.Generator().manual_seed(epoch)
    images = torch.randint(len(labels), (DRAWS, 800), generator=generator).to(device)
    return _numbers(terms.mean(-1)[images].mean(-1))


def _draws(formula: Callable[[Tensor], Tensor], *shape: int) -> Callable[[str], Draws]:
    """Measures a formula of the logits of every seed, draws x shape."""
    return lambda device: _numbers(formula(_logits(*shape).to(device)))


def _message(call: Callable[[Tensor], object]) -> Callable[[str], str]:
    """What torch says to a call with a small tensor."""

    def measure(device: str) -> str:
        x = torch.zeros(2, 3, device=device)
        try:
            call(x)
        except Exception as error:
            return describe(error)
        return "no exception"

    return measure


@dataclass(frozen=True)
class Quote:
    """A row: what was quoted, what it means, how it is measured, and whether that reproduces it.

    `value` is the quoted number; without one, `holds` decides a claim, draw by draw, and `message` is what an exception
    says. `reference` is the exact value, empty where it depends on the draw.
    """

    subject: str
    quoted: str
    explanation: str
    measure: Callable[[str], Draws | str]
    implementation: str = "today"
    reference: str = ""
    value: float | None = None
    holds: Callable[[Draws], NDArray[np.bool_]] | None = None
    message: str = ""


def _exactly_zero(
    subject: str, values: Sequence[float], explanation: str, divisor: int, **paths: Callable[[Tensor, Tensor], Tensor]
) -> list[Quote]:
    """Quotes of what is exactly 0, each measured with the paths given, by implementation."""
    return [
        Quote(subject, repr(value), explanation, partial(equal_logits, path, divisor), implementation, "0", value)
        for value in values
        for implementation, path in paths.items()
    ]


QUOTES: list[Quote] = [
    *(
        Quote(
            f"CNN loss, epoch {epoch + 1}",
            loss,
            "softmax output taken for log-probabilities: the loss is -mean(p_label)/10, always in [-0.1, 0]; "
            f"the quote means p_label {-10 * float(loss):.2f}",
            partial(softmax_output_loss, epoch),
            value=float(loss),
            holds=lambda draws: (draws >= -0.1) & (draws <= 0),
        )
        for epoch, loss in enumerate(("-0.019", "-0.033", "-0.036", "-0.038", "-0.040"))
    ),
    *_exactly_zero(
        "KLDivLoss, equal logits",
        (1.4934e-12, 1.8763e-11, -2.3461e-11),
        "identical logits: exactly 0; what is left is rounding, of either sign, chiefly that of log-sum-exp, "
        "once a row",
        1000,
        today=functional.log_softmax,
        thread_era=thread_era.kl_div,
    ),
    *_exactly_zero(
        "log softmax - log_softmax",
        (3.5763e-05,),
        "log(softmax) and log_softmax are equal in exact arithmetic; 1,000 roundings of each are not",
        1,
        today=functional.difference,
        thread_era=thread_era.difference,
    ),
    Quote(
        "KLDivLoss(DATA1, DATA2)",
        "bool value of Tensor with more than one value is ambiguous",
        "the constructor takes options; the tensors belong to the call: nn.KLDivLoss()(input, target)",
        _message(lambda x: nn.KLDivLoss(x, x)(x, x)),
        message="value of Tensor with more than one value is ambiguous",
    ),
    Quote(
        "(64, 81), dims mixed up",
        "(64, 81)",
        "log_softmax over rows against softmax over classes of the same logits: near log(64/81), not a divergence",
        _draws(lambda x: _terms(torch.log_softmax(x, 1), torch.softmax(x, 2)).sum((1, 2)) / 64, 64, 81),
        holds=lambda draws: draws < 0,
    ),
    Quote(
        "LogSoftmax(preds)",
        "TypeError",
        "the constructor takes dim, and the tensor given is passed on as one: nn.LogSoftmax(dim=-1)(preds)",
        _message(lambda x: nn.LogSoftmax(x)(x)),  # type: ignore[arg-type]
        message="TypeError",
    ),
    Quote(
        "(C, W, H) maps",
        "always negative",
        "log_softmax over 3 channels against softmax over 32 places: the two sides are normalised over different sets",
        _draws(lambda x: _terms(torch.log_softmax(x, 1), torch.softmax(x, 3)).sum((1, 2, 3)) / 3, 3, 32, 32),
        holds=lambda draws: draws < 0,
    ),
    Quote(
        "target of mass 1/2",
        "not normalised with respect to the same measure",
        "a target c p against p gives exactly c log c, here with c = 1/2",
        _draws(lambda x: _terms(torch.log_softmax(x, -1), 0.5 * torch.softmax(x, -1)).sum(-1), 1000),
        reference="-0.34657359027997265470861606072908828403775006718013",
        holds=lambda draws: draws < 0,
    ),
    Quote(
        "log_target on both sides",
        "exactly 0 from two equal tensors",
        "both sides are the same rounded numbers, so every difference is exactly 0",
        partial(equal_logits, functional.log_target, 1),
        reference="0",
        holds=lambda draws: draws == 0,
    ),
    Quote(
        "target = exp(log_softmax)",
        "exactly 0 from two equal tensors",
        "kl_div takes log(exp(l)) - l; it is 0 where the logarithm returns l after two roundings",
        _draws(lambda x: _terms(torch.log_softmax(x, -1), torch.log_softmax(x, -1).exp()).sum(-1), 1000),
        reference="0",
        holds=lambda draws: draws == 0,
    ),
]


LOOK = Look("thread", ("whole",), lambda run: lambda: together(measure_thread(device) for device in run.devices))


def measure_thread(device: str) -> pd.DataFrame:
    """The rows of thread.csv for one device: every quote, with the distribution of its draws there."""
    return pd.DataFrame([_row(quote, device) for quote in QUOTES])


def _row(quote: Quote, device: str) -> dict[str, object]:
    told = ("subject", "quoted", "implementation", "explanation", "reference")
    row = {"device": device} | {name: getattr(quote, name) for name in told}
    try:
        with TORCH:
            measured = lost(device) or quote.measure(device)
    except (RuntimeError, TypeError, TimeoutError) as error:
        return row | {"draws": 0, "reproduced": "no", "why": "not computed", "observed": describe(error)}
    if isinstance(measured, str):
        same = quote.message in measured
        why = "torch still answers so" if same else "torch answers otherwise today"
        return row | {"draws": 1, "reproduced": "yes" if same else "no", "why": why, "observed": measured}
    reproduced, why = _verdict(quote, measured)
    low, high = measured.min(), measured.max()
    p05, median, p95 = np.quantile(measured, (0.05, 0.5, 0.95)).tolist()
    return row | {
        "draws": len(measured),
        "minimum": float(low),
        "p05": p05,
        "median": median,
        "p95": p95,
        "maximum": float(high),
        "median_magnitude": float(np.median(np.abs(measured))),
        "negative_share": float((measured < 0).mean()),
        "zero_share": float((measured == 0).mean()),
        "histogram": "" if low == high else " ".join(map(str, np.histogram(measured, BINS)[0])),
        "percentile": _percentile(quote.value, measured),
        "reproduced": reproduced,
        "why": why,
        "observed": f"{low:.4g} to {high:.4g}",
    }


def _percentile(value: float | None, draws: Draws) -> float:
    """The share of draws, in percent, that are no larger in magnitude than the quote."""
    return float("nan") if value is None else float(100 * (np.abs(draws) <= abs(value)).mean())


def _verdict(quote: Quote, draws: Draws) -> tuple[str, str]:
    held = quote.holds is not None and bool(quote.holds(draws).all())
    if quote.value is None:
        return ("yes", f"in all of {len(draws)} draws") if held else ("no", f"not in all of {len(draws)} draws")
    percentile = _percentile(quote.value, draws)
    where = f"{abs(quote.value):.4g} is at percentile {percentile:.1f} of {len(draws)} magnitudes"
    if CENTRAL[0] <= percentile <= CENTRAL[1]:
        return "yes", where
    if held:
        why = f"same sign and range; the value itself depends on how far this network was trained ({where})"
        return "mechanism", why
    return "no", f"{where}, outside the central 95 %"
