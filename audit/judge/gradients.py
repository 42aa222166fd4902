"""Autograd's gradients against the exact ones, and their bounds (docs/bounds.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np
import torch
from torch import Tensor

from audit.base.formats import FORMATS
from audit.base.kinds import divisor
from audit.base.workers import Submit, later
from audit.judge.bounds import OVERFLOWS, Exact
from audit.judge.softmax import EXP, Kernel, Rounded, Rows, Softmax, log_sum_error, normaliser_growth
from audit.machine.devices import here
from audit.machine.measure import guarded
from audit.paths import Path
from audit.paths.rounding import Rounding
from audit.reference.softmax import exact_gradients

SIDES = ("input", "target")


@dataclass(frozen=True)
class Gradient:
    """One side's gradient of a path's sum over rows, rows x classes: computed, exact, and the bound of the error."""

    side: str
    computed: Rows
    exact: Rows
    bound: Rows

    @cached_property
    def ratio(self) -> Rows:
        """|computed - exact| / bound, infinite where nothing finite was computed."""
        with np.errstate(invalid="ignore", over="ignore"):
            ratio = np.abs(self.computed - self.exact) / self.bound
        return np.where(np.isfinite(self.computed) & np.isfinite(self.exact), ratio, np.inf)

    @property
    def symptom(self) -> str:
        """What is wrong with it, "" where nothing is; a finding of values has other names."""
        if not np.isfinite(self.computed).all():
            return f"{self.side}_gradient_not_finite"
        return f"{self.side}_gradient_beyond_bound" if (self.ratio > 1).any() else ""


@OVERFLOWS
def gradient_bounds(
    exact: Exact, rounding: Rounding, dtype: str, rounded: Callable[[Softmax, Kernel], Rounded] = Rounded
) -> tuple[Rows, Rows]:
    """The largest errors of autograd's gradients of a row's divergence, by input and by target logits.

    `exact` is of an input of logits. The gradients are q sum p - p and p (L - KL), each element's bound is its own. A
    target that is given as probabilities is rounded to the storage format at most, and has no second bound (NaN).
    `rounded` may know what other roundings have in common with this.
    """
    if (degree := rounding.temperature) != 1:
        tempered = gradient_bounds(exact.tempered(degree), replace(rounding, temperature=1.0), dtype)
        return degree * tempered[0], degree * tempered[1]
    storage, compute, _ = rounding.formats(dtype)
    us, uc, lost = storage.unit_roundoff, compute.unit_roundoff, storage.smallest_subnormal
    p, q, classes = exact.target.p, exact.input.p, exact.L.shape[1]
    growth = normaliser_growth(classes, rounding, compute)
    rounded_q, rounded_p = (rounded(side, Kernel.of(rounding, dtype)) for side in (exact.input, exact.target))
    rho_q, rho_p = (log_sum_error(side, rounding, dtype) for side in (exact.input, exact.target))

    # A class that is ruled out has nothing to round.
    p_there, q_there = (np.isfinite(side.log_p) for side in (exact.target, exact.input))
    log_p = np.where(p_there, np.abs(exact.target.log_p), 0.0)
    log_q = np.where(q_there, np.abs(exact.input.log_p), 0.0)
    D = rounded_q.logarithms_but_sum(rounding.input, rho_q) + rounded_q.sum_in_logarithms(rounding.input, rho_q)
    D = np.where(q_there, D, 0.0)
    eq, tiny_q = rounded_q.softmax(rho_q)
    if rounding.input != "softmax":
        exponential = np.expm1(np.minimum(D, 1.0)) + (EXP + rounding.exp_slope * log_q) * uc
        eq = exponential if rounding.input == "log_softmax" else np.maximum(eq, exponential)
    qe = q * eq + tiny_q

    given = exact.target.kind != "logits"
    if given:
        r, tiny = np.full_like(p, us), np.full_like(p, lost)
    else:
        r, tiny = rounded_p.softmax(rho_p)
        if rounding.target == "softmax":
            log_error = rounded_p.log_of_softmax(rho_p)
        else:
            log_error = rounded_p.log_softmax(rho_p)
            exponential = (EXP + 1 + rounding.exp_slope * log_p) * uc + us
            r = np.maximum(r, np.expm1(np.minimum(log_error, 1.0)) + exponential)
    pe = p * r + tiny
    P = p + pe

    def total(terms: Rows) -> Rows:
        return np.asarray(terms.sum(axis=1, keepdims=True))

    def widened(error: Rows, size: Rows) -> Rows:
        if not rounding.cascade:
            # The maximum that was subtracted, of the row or of a part, has a gradient of 0: of the others' errors.
            error = error + total(error) + growth * total(size)
        u, smallest = FORMATS[dtype].unit_roundoff, FORMATS[dtype].smallest_subnormal
        return np.asarray(error * (1 + u) + (u + 2.0**-50) * size + 3 * (smallest + lost))

    # By input: -p^ + exp(l^) sum p^.
    if given:
        q, qe = q * total(p), qe * total(p)
    mass = total(pe) + (growth + 2 * uc + us) * total(P) + classes * lost
    if rounding.masses:
        mass = mass + total(qe) + growth * total(q + qe)
    by_input = pe + qe + (q + qe) * mass + (3 * uc + 2 * us) * (P + q + qe)
    by_input = widened(by_input, np.abs(q - p))
    if given:
        return by_input, np.full_like(p, np.nan)

    # By target: p^ (g - sum p^ g), with g = log p^ + 1 - l^.
    log_error = np.where(p_there, log_error, 0.0)
    L = np.where(p_there & q_there, exact.L, 0.0)
    kl = total(p * L)
    size = log_p + log_q + 1
    slope, mean = (size, total(p * size)) if rounding.separate else (np.abs(L + 1), np.abs(kl + 1))
    slopes = log_error + D + 3 * us * (size + log_error + D) + 2 * uc
    mean_error = total(pe * slope + P * slopes + (growth + 2 * uc + 2 * us) * P * (slope + slopes)) + classes * lost
    moved = pe * (np.abs(L - kl) if rounding.target == "softmax" else slope + mean)
    by_target = moved + P * (slopes + mean_error) + (3 * uc + 2 * us) * P * (slope + mean + slopes + mean_error)
    return by_input, widened(by_target, p * np.abs(L - kl))


# What a training loop does; each must give the same gradient as the sum of weighted rows does, asked for once.
BACKWARDS = DETACHED, SUMMED, AGAIN, SCALED = (
    "with the target detached",
    "of the sum, whose upstream is expanded",
    "asked for a second time",
    "of a scaled loss",
)
# What losses are multiplied by so that halves' gradients do not underflow; float16 itself ends at 65,504.
LOSS_SCALE = {"float16": 2.0**8}


class Truth:
    """Rows of logits (on the CPU), the target's perhaps "probs", and of some the exact gradients and their bounds.

    Each is computed once.
    """

    def __init__(
        self,
        input: Tensor,
        target: Tensor,
        rows: Sequence[int] = (),
        submit: Submit = later,
        target_kind: str = "logits",
    ) -> None:
        self.input, self.target, self.rows = input, target, list(rows or range(len(input)))
        self.numbers = input[self.rows].double().numpy(), target[self.rows].double().numpy()
        self.dtype = str(input.dtype).removeprefix("torch.")
        self._exact = {1.0: submit(exact_gradients, *self.numbers, target_kind)}
        exact = Exact.of(*self.numbers, target_kind)
        self.bounds = cache(partial(gradient_bounds, exact, dtype=self.dtype, rounded=cache(Rounded)))

    def exact(self, degree: float) -> tuple[Rows, Rows]:
        """The gradients at a temperature, of the tempered logits."""
        if degree not in self._exact:
            self._exact[degree] = later(exact_gradients, *(side / degree for side in self.numbers))
        return self._exact[degree]()

    def gradients(self, path: Path, device: str, backward: str = "") -> list[Gradient]:
        """What autograd gives of all rows, for each side that has a gradient; of a reduced path, times its divisor.

        Raises what the path raises.
        """
        rows, classes = self.input.shape
        scale, degree = divisor(path.reduction, rows, classes), path.rounding.temperature
        # Rows weigh 1 and 1/2 in turn, exactly: a backward that makes nothing of its upstream gradient shows.
        weights = 0.5 ** (torch.arange(rows if path.reduction == "none" else 1) % 2)
        weights = torch.ones_like(weights) if backward == SUMMED else weights
        weights = weights * (LOSS_SCALE.get(self.dtype, 2.0**17) if backward == SCALED else 1)
        found = autograd(path, self.input, self.target, device, weights=weights, backward=backward)
        found = [None if grad is None else (grad / weights[:, None].numpy())[self.rows] for grad in found]
        if found[0] is None and (found[1] is not None or backward == DETACHED):
            found[0] = np.zeros_like(self.numbers[0])  # a loss of the target alone moves no student
        given = []
        for side, grad, exact, bound in zip(SIDES, found, self.exact(degree), self.bounds(path.rounding), strict=True):
            if grad is not None and not np.isnan(exact).all():
                if scale != 1:  # the quotient is rounded where it goes in and where it comes out, and may be subnormal
                    format = FORMATS[self.dtype]
                    bound = bound + 2 * format.unit_roundoff * (bound + np.abs(exact))
                    bound = bound + 3 * scale * classes * format.smallest_subnormal
                given.append(Gradient(side, grad * scale, degree * exact, bound))
        return given


def autograd(
    path: Path, input: Tensor, target: Tensor, device: str, *, weights: Tensor | None = None, backward: str = ""
) -> list[Rows | None]:
    """The gradients of the sum of the path's values, each times its weight."""
    x, y = (t.to(device, copy=True).requires_grad_() for t in (input, target))
    sides = (x,) if backward == DETACHED else (x, y)
    with guarded(path.name, input.dtype, device):
        value = path.function(x, y.detach() if backward == DETACHED else y)
        if not value.requires_grad:
            return [None, None]
        upstream = torch.ones_like(value) if weights is None else weights.to(value).reshape(value.shape)
        if backward == SUMMED:
            value, upstream = value.sum(), torch.ones_like(value.sum())
        if backward == AGAIN:
            torch.autograd.grad(value, sides, upstream, retain_graph=True, allow_unused=True)
        found = torch.autograd.grad(value, sides, upstream, allow_unused=True)
    grads = [None if grad is None else here(grad).double().numpy() for grad in found]
    return [*grads, None][:2]
