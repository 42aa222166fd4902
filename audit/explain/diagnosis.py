"""What a value of KLDivLoss means: rounding, or a mistake in what it was given, told from the tensors alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from audit.base.formats import FORMATS, Format
from audit.base.usage import UsageError
from audit.paths import REDUCTIONS
from audit.reference.exact import exact_kl

RIGHT = 'F.kl_div(log_softmax(input_logits, {dim}), softmax(target_logits, {dim}), reduction="batchmean")'
EXACTLY = 2**17  # three seconds of exact arithmetic
REMEDY = "audit.kl_div_from_logits(input_logits, target_logits)"


@dataclass(frozen=True)
class Diagnosis:
    """What the call gives and why. `verdict` is "rounding" for a sound call, a key of VERDICTS, or "cannot_tell".

    `value` is what torch returns; `exact` the exact value of the same formula on the same numbers, None where it has
    none, and for more than EXACTLY numbers. `evidence` is what in the tensors says so; `call` the corrected call, empty
    where nothing is to be corrected.
    """

    verdict: str
    value: float
    exact: float | None
    meaning: str
    evidence: str
    call: str

    def __str__(self) -> str:
        exact = "" if self.exact is None else f" (exactly {self.exact:.6g} for these numbers)"
        lines = [f"{self.verdict}: the loss is {self.value:.6g}{exact}", self.meaning, f"evidence: {self.evidence}"]
        return "\n".join(lines + ([f"instead: {self.call}"] if self.call else []))


# verdict -> (meaning, corrected call)
VERDICTS = {
    "nan_in_data": ("NaN went in, so NaN comes out.", ""),
    "impossible_class": (
        "A class that both sides rule out gives 0 * (-inf), which is NaN in torch; its true contribution is 0.",
        REMEDY,
    ),
    "infinite": ("The target has mass where the input has none, so the divergence is infinite.", ""),
    "arguments_swapped": ("input and target are swapped: the log-probabilities come first.", "F.kl_div(target, input)"),
    "probs_as_input": (
        "The input holds probabilities; kl_div takes log-probabilities, and gives sum p (log p - q), often negative.",
        RIGHT,
    ),
    "logits_as_input": ("The input holds raw logits; kl_div does not normalise them.", RIGHT),
    "logits_as_target": ("The target holds raw logits; kl_div takes probabilities.", RIGHT),
    "log_probs_without_log_target": (
        "The target holds log-probabilities, and log_target is False.",
        "F.kl_div(input, target, log_target=True)",
    ),
    "probs_with_log_target": (
        "The target holds probabilities, and log_target is True.",
        "F.kl_div(input, target, log_target=False)",
    ),
    "different_dims": ("The two sides are normalised along different dims.", RIGHT),
    "wrong_dim": ("Both sides are normalised along another dim than the one named.", RIGHT),
    "unnormalised_target": (
        "The target does not sum to 1: a mass of c adds c log c to the divergence of the normalised target times c.",
        "F.kl_div(input, target / target.sum({dim}, keepdim=True))",
    ),
    "unnormalised_input": (
        "The input's exponentials do not sum to 1, though none exceeds 1: as after log(p + eps), log(p.clamp(eps)), a "
        "sigmoid, a logarithm to another base, or with logits that are all negative.",
        RIGHT,
    ),
    "double_softmax": ("The input looks like log_softmax of probabilities: softmax was applied twice.", RIGHT),
    "rounding": ("A sound call: what differs from the true divergence is rounding.", ""),
    "cannot_tell": ("The tensors fit no mistake known here, and are not what kl_div expects.", ""),
}


def diagnose(
    input: Tensor, target: Tensor, *, reduction: str = "mean", log_target: bool = False, dim: int = -1
) -> Diagnosis:
    """Says what KLDivLoss(reduction, log_target)(input, target) means, the classes being along `dim`.

    Both are tensors, or what torch.as_tensor takes, of one shape; for "none" the value is that of "sum". Raises
    UsageError, a ValueError, for different or empty shapes and for other dtypes than the four floating ones.
    """
    x, y = (_numbers(side, name) for side, name in ((input, "input"), (target, "target")))
    if x.shape != y.shape or not x.numel() or not x.dim():
        raise UsageError(
            f"expected two tensors of one shape, not empty, with a dimension of classes; got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    if reduction not in REDUCTIONS:
        raise UsageError(f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")
    if not -x.dim() <= dim < x.dim():
        raise UsageError(f"dim {dim} is none of a tensor of shape {tuple(x.shape)}")
    value = float(F.kl_div(x, y, reduction="sum", log_target=log_target).double())
    divisor = {"none": 1, "sum": 1, "mean": x.numel(), "batchmean": len(x)}[reduction]
    verdict, evidence = _verdict(x, y, log_target, dim)
    exact = _exact(x, y, log_target)
    exact = None if exact is None else exact / divisor
    meaning, call = VERDICTS[verdict]
    if verdict == "rounding" and value < 0:
        difference = (y.double().exp() if log_target else y.double()).sum() - x.double().exp().sum()
        meaning += (
            " It is negative because the rounded probabilities and log-probabilities do not have the same mass: "
            f"the difference is {float(difference):.3g}. {REMEDY} is never negative."
        )
    if verdict == "rounding" and reduction == "mean":
        rows, n = x.numel() // x.shape[dim], x.shape[dim]
        meaning += (
            f' "mean" divides by all {x.numel()} elements; the divergence of a row is {n} times that: '
            f'use reduction="batchmean" for the mean of {rows} rows.'
        )
    return Diagnosis(verdict, value / divisor, exact, meaning, evidence, call.format(dim=dim))


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _numbers(side: Tensor, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(side).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name}: expected a tensor with numbers in it, got {type(side).__name__}: {error}") from None
    if _name(tensor) not in FORMATS or tensor.layout != torch.strided:
        raise UsageError(f"{name} is {tensor.dtype}, {tensor.layout}: expected a dense tensor of {', '.join(FORMATS)}")
    return tensor


def _format(x: Tensor, y: Tensor) -> Format:
    """The coarser of two tensors' formats; double that holds nothing but float32 numbers was computed in float32."""
    held = [
        t.float() if t.dtype == torch.float64 and torch.equal(t.float().double().nan_to_num(), t.nan_to_num()) else t
        for t in (x, y)
    ]
    return min((FORMATS[_name(t)] for t in held), key=lambda f: f.precision)


def _exact(x: Tensor, y: Tensor, log_target: bool) -> float | None:
    """The exact sum of the formula's terms; None where a number is outside its domain, or there are too many."""
    if x.numel() > EXACTLY:
        return None
    kind = "log_probs" if log_target else "probs"
    rows = [t.reshape(1, -1) for t in (x, y)]
    try:
        return float(exact_kl(*rows, input_kind="log_probs", target_kind=kind, reduction="sum", digits=17))
    except UsageError:
        return None


@dataclass(frozen=True)
class _Sums:
    """What a tensor's rows add up to along a dim: as probabilities, and as log-probabilities."""

    probs: bool
    log_probs: bool
    total: float  # of the row furthest from 1
    log_total: float


def _sums(tensor: Tensor, dim: int, format: Format) -> _Sums:
    t, n, u = tensor.double(), tensor.shape[dim], format.unit_roundoff
    weights = t.exp()
    # What a sound softmax may be off: a few roundoffs, those of a sum of n terms in four lanes, and half an ulp of
    # the smallest number for each; a logarithm errs by roundoffs of itself, its probability by as much relatively.
    sums = (8 + n / 4) * FORMATS["float32" if format.precision < 24 else format.name].unit_roundoff + 8 * u
    slack = sums + n * format.smallest_subnormal
    log_slack = slack + 8 * u * torch.where(t > -torch.inf, weights * t.abs(), 0.0).sum(dim)
    total, log_total = t.sum(dim), weights.sum(dim)
    return _Sums(
        bool((t >= 0).all() and ((total - 1).abs() <= slack).all()),
        bool((t <= slack).all() and ((log_total - 1).abs() <= log_slack).all()),
        *(float(s.flatten()[(s - 1).abs().argmax()]) for s in (total, log_total)),
    )


def _verdict(x: Tensor, y: Tensor, log_target: bool, dim: int) -> tuple[str, str]:
    if x.isnan().any() or y.isnan().any():
        return "nan_in_data", f"{int(x.isnan().sum())} NaN in the input, {int(y.isnan().sum())} in the target"
    others = [d for d in range(x.dim()) if d != dim % x.dim()]
    format = _format(x, y)
    inputs, targets = ({d: _sums(side, d, format) for d in [dim, *others]} for side in (x, y))
    right = {d: target.log_probs if log_target else target.probs for d, target in targets.items()}
    given, wanted = inputs[dim], targets[dim]
    totals = f"rows of the input sum to {given.total:.6g}, their exponentials to {given.log_total:.6g}; " + (
        f"rows of the target to {wanted.total:.6g}, their exponentials to {wanted.log_total:.6g}"
    )
    if given.probs and not given.log_probs:
        swapped = wanted.log_probs and not wanted.probs and not log_target
        return "arguments_swapped" if swapped else "probs_as_input", totals
    if given.log_probs and right[dim]:
        return _sound(x, y, log_target, dim, totals)
    if given.log_probs:
        # The target is not what log_target says, but may be what the other value would have it be.
        if wanted.probs:
            return "probs_with_log_target", totals
        if wanted.log_probs:
            return "log_probs_without_log_target", totals
        if any(right[d] for d in others):
            return "different_dims", totals
        impossible = y > 0 if log_target else y < 0
        return "logits_as_target" if bool(impossible.any()) else "unnormalised_target", totals
    for d in others:
        if inputs[d].log_probs:
            return "wrong_dim" if right[d] else "different_dims", f"the input is normalised along dim {d}"
    if x.shape[dim] == 1:
        return "cannot_tell", totals
    if bool((x <= 0).all()) and right[dim]:
        return "unnormalised_input", totals
    return "logits_as_input" if wanted.probs or wanted.log_probs else "cannot_tell", totals


def _sound(x: Tensor, y: Tensor, log_target: bool, dim: int, totals: str) -> tuple[str, str]:
    has_mass = y > -torch.inf if log_target else y > 0
    if infinite := int((has_mass & (x == -torch.inf)).sum()):
        return "infinite", f"{infinite} such classes"
    if impossible := int((x == -torch.inf).sum()):
        return "impossible_class", f"{impossible} classes have an input of -inf and no target"
    # log_softmax of probabilities p is p plus a constant, so that p can be read off: nothing is negative, the sum is 1.
    # So it is by chance in nearly flat rows; a spread of log-probabilities above 0.2 with p near 0 is rare there.
    t, n = x.double(), x.shape[dim]
    p = t - t.mean(dim, keepdim=True) + 1 / n
    tolerance = 4 * FORMATS[_name(x)].unit_roundoff * (1 + math.log(n))
    telling = (p.amin(dim) < 0.4 / n) & (p.amax(dim) - p.amin(dim) > 0.2)
    if n > 2 and bool((p > -tolerance).all()) and float(telling.double().mean()) > 0.5:
        return "double_softmax", "the input is a probability plus a constant, in every class"
    return "rounding", totals
