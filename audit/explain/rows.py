"""What the rows of a tensor add up to and may be, in binary64, a block at a time, so that long ones are quick."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from audit.base.formats import FORMATS, Format
from audit.base.usage import UsageError
from audit.paths.remedy import kl_div_from_logits

BLOCK = 2**17  # numbers that stay in a core's cache
_CLEAR = 1e-6  # of the size of its terms, above which KL has nine digits as the sum of them
FEW = 64  # rows, which show a temperature as well as all
_EPS = [10.0**-k for k in range(2, 46)] + [torch.finfo(getattr(torch, name)).eps for name in FORMATS]


def name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def kept(mask: Any, shape: tuple[int, ...]) -> Tensor:
    """Which rows count, of their shape: all for None. Raises UsageError for what are no booleans, and where none do."""
    try:
        keep = torch.ones(shape, dtype=torch.bool) if mask is None else torch.as_tensor(mask).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"mask: expected booleans of shape {shape}, got {type(mask).__name__}") from None
    if keep.dtype != torch.bool or keep.shape != shape or not keep.any():
        given = f"{keep.dtype} {tuple(keep.shape)}"
        raise UsageError(f"mask: expected booleans of shape {shape}, some of them true; got {given}")
    return keep


class Rows:
    """A tensor's rows, the classes along `dim`, of which `keep` (a boolean a row) leaves some.

    `log`: whether they are meant to be logarithms of probabilities; `nothing` stands for a probability of 0.
    """

    def __init__(self, tensor: Tensor, dim: int, log: bool, keep: Tensor | None = None) -> None:
        rows = tensor.movedim(dim, -1).reshape(-1, tensor.shape[dim])
        self.rows = rows if keep is None else rows[keep]
        self.log, self.classes, self.nothing = log, rows.shape[1], -math.inf if log else 0.0

    def blocks(self) -> tuple[Tensor, ...]:
        return torch.split(self.rows, max(1, BLOCK // self.classes))

    def each(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of each row, in binary64."""
        return torch.cat([function(block.double()) for block in self.blocks()])

    @cached_property
    def nans(self) -> int:
        return int(self.rows.isnan().sum()) if any(map(math.isnan, self.range)) else 0

    @cached_property
    def range(self) -> tuple[float, float]:
        low, high = self.rows.aminmax()
        return float(low), float(high)

    @cached_property
    def format(self) -> Format:
        """The coarsest that holds these numbers: what a cast to a wider one holds was computed in the other."""
        for known in sorted(FORMATS.values(), key=lambda f: f.precision):
            coarse = getattr(torch, known.name)
            if all(torch.equal(t.to(coarse).to(t.dtype), t) for t in (self.rows[:1], self.rows)):
                return known
        return FORMATS[name(self.rows)]

    @cached_property
    def total(self) -> Tensor:
        return self.each(lambda t: t.sum(-1))

    @cached_property
    def mass(self) -> Tensor:
        """What the exponentials of a row sum to."""
        return self.each(lambda t: t.exp().sum(-1))

    @cached_property
    def slack(self) -> float:
        """What the sum of a sound softmax may be off: a few roundoffs, those of a sum of n terms in four lanes, and
        half an ulp of the smallest number for each term."""
        sums = FORMATS["float32"] if self.format.precision < 24 else self.format
        rounding = (8 + self.classes / 4) * sums.unit_roundoff + 8 * self.format.unit_roundoff
        return rounding + self.classes * self.format.smallest_subnormal

    @cached_property
    def log_slack(self) -> Tensor:
        """The same of exponentials: a logarithm errs by roundoffs of itself, its probability by as much relatively."""
        if bool(((self.mass - 1).abs() <= self.slack).all()):
            return torch.full_like(self.mass, self.slack)
        entropy = self.each(lambda t: torch.where(t > -torch.inf, t.exp() * t.abs(), 0.0).sum(-1))
        return self.slack + 8 * self.format.unit_roundoff * entropy

    def _seem(self, sums: Tensor) -> bool:
        """Whether sums are near enough to 1 for all of them to be looked at: another dim's mostly are not."""
        return bool(((sums - 1).abs() <= 0.5 + 16 * self.format.unit_roundoff * math.log(self.classes)).all())

    @cached_property
    def probs(self) -> bool:
        seem = self._seem(self.blocks()[0].double().sum(-1)) and self.range[0] >= 0
        return seem and bool(((self.total - 1).abs() <= self.slack).all())

    @cached_property
    def log_probs(self) -> bool:
        seem = self._seem(self.blocks()[0].double().exp().sum(-1)) and self.range[1] <= self.slack
        return seem and bool(((self.mass - 1).abs() <= self.log_slack).all())

    @property
    def sums(self) -> Tensor:
        """What the probabilities that a row is meant to hold sum to."""
        return self.mass if self.log else self.total

    @property
    def right(self) -> bool:
        """Whether they are what they are meant to be."""
        return self.log_probs if self.log else self.probs

    @property
    def near(self) -> Tensor:
        """Which rows sum to 1, as they are meant to, up to rounding."""
        return self.sums.isfinite() & ((self.sums - 1).abs() <= (self.log_slack if self.log else self.slack))

    @property
    def possible(self) -> bool:
        """Whether each number may be a probability, or a logarithm of one."""
        return self.range[1] <= self.slack if self.log else self.range[0] >= 0

    @property
    def short(self) -> bool:
        """Whether every row is part of a distribution, and not all are whole: probabilities sum to less than 1."""
        return self.possible and bool((self.near | (self.sums < 1)).all() and not self.near.all())


def furthest(sums: Tensor) -> str:
    """The sum furthest from 1, as what is not 1 in it shows."""
    sum_ = float(sums[(sums - 1).abs().argmax()])
    near = 0 < abs(sum_ - 1) < 1e-4
    return f"1 {'+' if sum_ > 1 else '-'} {abs(sum_ - 1):.2g}" if near else f"{sum_:.6g}"


def terms(input: Rows, target: Rows, logs: tuple[bool, bool]) -> Tensor:
    """Of each row, in binary64, sum p (log p - log q), 0 where p is, and what the magnitudes of its terms add up to.

    `logs`: which side holds logarithms.
    """
    sums = []
    for x, y in zip(input.blocks(), target.blocks(), strict=True):
        log_q, log_p = _logarithms(x, y, logs)
        p = log_p.exp() if logs[1] else y.double()
        own, other = p * log_p, p * log_q
        if (none := p == 0).any():
            own, other = own.masked_fill_(none, 0), other.masked_fill_(none, 0)
        value = own.sum(-1) - other.sum(-1)
        sums.append(torch.stack([value, own.abs_().sum(-1) + other.abs_().sum(-1)]))
    return torch.cat(sums, -1)


def divergence(input: Rows, target: Rows, logs: tuple[bool, bool], sums: Tensor) -> tuple[Tensor, bool]:
    """KL of each row, both sides normalised to distributions, and whether all agree up to the rounding of the two.

    `logs`: which side holds logarithms. `sums` are their `terms`, enough where the two are not near each other: with Q
    and P what the sides' probabilities sum to, KL = sum p (log p - log q) / P - log P + log Q.
    """
    Q, P = (side.mass if log else side.total for side, log in zip((input, target), logs, strict=True))
    value, size = sums / P
    values = value - P.log() + Q.log()
    near = ~((values > _CLEAR * (1 + size)) & (values < torch.inf))
    rows = len(input.blocks()[0])
    agree = True
    for x, y, kl, close in zip(input.blocks(), target.blocks(), values.split(rows), near.split(rows), strict=True):
        if close.any():
            kl[close] = kl_div_from_logits(*_logarithms(x[close], y[close], logs), reduction="none")
        if agree := agree and bool((kl < 1e-2).all()):
            agree = _agree(*_logarithms(x, y, logs), input.format, target.format)
    return values, agree


def _logarithms(x: Tensor, y: Tensor, logs: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    log_q, log_p = (t.double() if log else t.double().log() for t, log in zip((x, y), logs, strict=True))
    return log_q, log_p


def _agree(log_q: Tensor, log_p: Tensor, input: Format, target: Format) -> bool:
    """Whether each is the other up to the rounding of the formats that they were computed in."""
    log_q, log_p = log_q.log_softmax(-1), log_p.log_softmax(-1)
    p, least = log_p.exp(), target.smallest_subnormal
    allowed = 2 * input.unit_roundoff * (2 + log_q.abs()) + 4 * target.unit_roundoff * (1 + log_p.abs())
    return bool(((log_q - log_p).abs() <= allowed + least / p.clamp(min=least))[p > 0].all())


def eps_in_log(side: Rows) -> float | None:
    """The eps of log(p + eps) or log(max(p, eps)), where rows show one: a power of ten, or a format's own.

    Either many numbers stand at the least of all, log eps; or every row sums to 1 + classes * eps. A row that one class
    leads says nothing by its sum, since log_softmax loses small terms there and then sums to more than 1, too.
    """
    half, u, n = side.format.precision < 24, side.format.unit_roundoff, side.classes
    low, high = side.range
    if not -torch.inf < low < high <= side.slack + n * _EPS[0]:
        return None
    floor = _nice(math.exp(low), 2 * u + (1 if half else 2) * u * abs(low))
    if floor and floor <= 1e-3:
        at_least = (side.rows == low).sum(-1)
        share, few = (0.05, 4) if half else (0.001, 2)
        if int(at_least.max()) >= few and share <= float(at_least.double().mean()) / n < 0.1 / (floor * n):
            return floor
    excess = (side.mass - 1)[side.rows.amax(-1) < math.log(0.5)]
    if not len(excess):
        return None
    noise = u * (2 + math.log(n))
    mean, spread = float(excess.mean()), float((excess - excess.mean()).abs().max())
    sure = noise / math.sqrt(len(excess))
    if mean < 2.5 * sure or spread > 0.3 * mean + 2 * noise:
        return None
    return _nice(mean / n, 0.02 + sure / mean)


def _nice(eps: float, tolerance: float) -> float | None:
    near = min(_EPS, key=lambda e: abs(math.log(eps / e)) if eps > 0 else math.inf)
    return near if abs(eps / near - 1) <= tolerance else None


def divided_by(side: Rows) -> float | None:
    """T where rows are log-probabilities divided by T: the one T for which the exponentials of T t sum to 1 in all."""
    t = side.rows[:FEW].double()
    if not -torch.inf < side.range[0] <= side.range[1] <= side.slack or side.classes < 2:
        return None
    low, high = (torch.full((len(t), 1), bound) for bound in (-5.0, 5.0))
    for _ in range(50):
        middle = (low + high) / 2
        above = (middle.exp() * t).logsumexp(-1, keepdim=True) > 0  # which falls as T grows
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    factors = low.exp().flatten()
    factor = float(factors.median())
    tolerance = 32 * side.format.unit_roundoff + 1e-4
    same = bool(((factors / factor - 1).abs() <= tolerance).all())
    return factor if same and is_temperature(factor, tolerance / 4, (math.log(2), math.log(10))) else None


def is_temperature(factor: float, tolerance: float, others: tuple[float, ...] = ()) -> bool:
    known = [k / 2 for k in range(3, 41)] + [1 / k for k in (1.5, 2, 3, 4, 5, 8, 10, 20)] + list(others)
    return min(abs(factor / k - 1) for k in known) <= tolerance


def slope(input: Rows, target: Rows) -> float | None:
    """The T for which the input's logarithms are T times the target's, up to a constant a row; None where none fits.

    The largest class of either side is left out: a leader alone makes any two rows alike.
    """
    x, y = (side.rows[:FEW].double() for side in (input, target))
    y = y if target.log else y.log()
    told = torch.isfinite(x) & torch.isfinite(y)
    for side in (x, y):
        told &= side < side.amax(-1, keepdim=True)
    count = told.sum(-1, keepdim=True)
    x, y = (torch.where(told, t, 0.0) for t in (x, y))
    sides = zip((input, target), (x, y), strict=True)
    noise = [(2 * side.format.unit_roundoff * (1 - t) * told).square().sum() for side, t in sides]
    x, y = (torch.where(told, t - t.sum(-1, keepdim=True) / count, 0.0) for t in (x, y))
    square = float((y * y).sum())
    if int((count - 2).clamp(min=0).sum()) < 6 or square <= 1e-2 * float(told.sum()):
        return None
    factor = float((x * y).sum()) / square
    least = float(1e-3 * (x * x).sum() + noise[0] + factor**2 * noise[1])
    if factor <= 0 or float((x - factor * y).square().sum()) > least:
        return None
    return factor if is_temperature(factor, 0.02) else None
