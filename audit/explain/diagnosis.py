"""What a value of KLDivLoss means: right, rounding, or a mistake in what it was given, told from the tensors alone."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor
from torch.nn import functional as F

from audit.base.formats import FORMATS
from audit.base.usage import UsageError, check_word
from audit.explain import rows
from audit.explain.rows import FEW, Rows, furthest, is_temperature
from audit.paths import REDUCTIONS
from audit.reference.exact import exact_kl

EXACTLY = 2**14  # numbers, a quarter of a second of exact arithmetic; a sum of more is that of binary64


@dataclass(frozen=True)
class Diagnosis:
    """What the call gives and why. `verdict` is a key of VERDICTS.

    `value` is what torch returns, NaN where it refuses; `exact` the exact value of the same formula on the same
    numbers, None where it has none; `kl` the divergence of the rows that count, each normalised to a distribution, in
    their mean, None where the tensors do not tell. `evidence` is what in the tensors says so; `call` an expression of
    `input`, `target`, `mask` or of the logits that they come from, which gives the true mean over rows: empty where
    nothing is to be corrected.
    """

    verdict: str
    value: float
    exact: float | None
    kl: float | None
    meaning: str
    evidence: str
    call: str

    def __str__(self) -> str:
        exact = "" if self.exact is None else f"; torch's formula on these numbers, without rounding: {self.exact:.6g}"
        kl = "" if self.kl is None else f"; the divergence of a row, in the mean: {self.kl:.6g}"
        lines = [f"{self.verdict}: the loss is {self.value:.6g}{exact}{kl}", self.meaning, f"evidence: {self.evidence}"]
        return "\n".join(lines + ([f"instead: {self.call}"] if self.call else []))


# Of each verdict what is advised, one of _SIDES where `_call` makes it, and what it means.
VERDICTS = {
    row["verdict"]: row
    for row in csv.DictReader((files("audit.explain") / "verdicts.csv").read_text(encoding="utf-8").splitlines())
}
_RIGHT = tuple(VERDICTS)[:6]  # the tensors are what kl_div takes
_UNTOLD = ("nan_in_data", "different_dims", "double_softmax", "cannot_tell")
# Where the divergence of the rows given does not show how near the two sides are.
_DISTORTED = ("truncated", "eps_in_log", "temperature")

# What a corrected call is made of: log-probabilities of the input and probabilities of the target, as kl_div takes
# them, and the logits of both, as the remedy does. Log-probabilities are logits of themselves.
LOGITS = ("F.log_softmax(input_logits, {dim})", "F.softmax(target_logits, {dim})", "input_logits", "target_logits")
PROBS = ("input", "target", "input", "target.double().log()")
LOG_PROBS = ("input", "target.exp()", "input", "target")
_SWAPPED = ("target", "input", "target", "input.double().log()")
_NORMALISED = ("input", "target / target.sum({dim}, keepdim=True)", "input", "target.double().log()")
_NORMALISED_LOG = ("input", "target.softmax({dim})", "input", "target")
# advice -> the same, with probabilities as target and with log_target
_SIDES = {
    "logits": (LOGITS, LOGITS),
    "given": (PROBS, LOG_PROBS),
    "swapped": (_SWAPPED, _SWAPPED),
    "probs": (PROBS, PROBS),
    "log_probs": (LOG_PROBS, LOG_PROBS),
    "normalised": (_NORMALISED, _NORMALISED_LOG),
}


def diagnose(
    input: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    log_target: bool = False,
    dim: int = -1,
    mask: Tensor | None = None,
) -> Diagnosis:
    """Says what KLDivLoss(reduction, log_target)(input, target) means, the classes being along `dim`.

    Both are tensors, or what torch.as_tensor takes, of one shape (the target may be class indices, one a row); `mask`
    is a boolean tensor of the rows' shape, true for those that count. For "none" the value is that of "sum". Raises
    UsageError, a ValueError, for different or empty shapes, for a mask that fits no row or leaves none, and for other
    dtypes than the four floating ones, and integers as target.
    """
    x, y = _numbers(input, "input"), _numbers(target, "target")
    check_word(reduction, REDUCTIONS, "reduction")
    if type(dim) is not int or (x.dim() and not -x.dim() <= dim < x.dim()):
        raise UsageError(f"dim {dim!r} is none of a tensor of shape {tuple(x.shape)}")
    indices = _indices(x, y, dim) if x.dim() else None
    if not x.numel() or not x.dim() or (x.shape != y.shape and indices is None):
        raise UsageError(
            f"expected two tensors of one shape, not empty, with a dimension of classes; got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    keep = rows.kept(mask, tuple(x.movedim(dim, -1).shape[:-1]))
    call = _Call(
        x, y, reduction=reduction, log_target=log_target, dim=dim, keep=keep, kept="" if mask is None else "mask"
    )
    return call.diagnosis() if indices is None else call.of_classes(indices)


def _numbers(side: Tensor, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(side).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name}: expected a tensor with numbers in it, got {type(side).__name__}: {error}") from None
    whole = name == "target" and not tensor.is_floating_point() and not tensor.is_complex()
    if not (rows.name(tensor) in FORMATS or whole) or tensor.layout != torch.strided:
        raise UsageError(f"{name} is {tensor.dtype}, {tensor.layout}: expected a dense tensor of {', '.join(FORMATS)}")
    return tensor


def _indices(x: Tensor, y: Tensor, dim: int) -> Tensor | None:
    """The class of each row, negative for none, where the target holds classes: one a row, or integers one-hot."""
    if y.shape == x.shape and y.is_floating_point():
        return None
    if y.shape == x.shape:
        if not y.numel() or not ((y == 0) | (y == 1)).all() or not (y.sum(dim) == 1).all():
            raise UsageError(f"target is {y.dtype}: expected probabilities, class indices or one-hot rows")
        return y.long().argmax(dim)
    y = y.squeeze(dim) if y.dim() == x.dim() else y
    fits = y.shape == x.movedim(dim, -1).shape[:-1] and y.numel()
    return y.long() if fits and bool((y == y.long()).all() and (y < x.shape[dim]).all()) else None


class _Call:
    """A call of kl_div, and what is found out about it: `remarks` beside the verdict, `evidence`, and the `dim` and the
    rows (`keep`, which the expression `kept` gives) that the corrected call takes."""

    def __init__(
        self, x: Tensor, y: Tensor, *, reduction: str, log_target: bool, dim: int, keep: Tensor, kept: str
    ) -> None:
        self.x, self.y, self.reduction, self.log_target, self.dim = x, y, reduction, log_target, dim
        self.keep, self.kept = keep.flatten(), kept
        self.divisor = {"none": 1, "sum": 1, "mean": x.numel(), "batchmean": len(x)}[reduction]
        self.remarks: list[str] = []
        self.evidence = ""

    def _rows(self, dim: int, keep: Tensor | None = None) -> tuple[Rows, Rows]:
        """Of input and target, as the call takes them."""
        return Rows(self.x, dim, True, keep), Rows(self.y, dim, self.log_target, keep)

    def diagnosis(self) -> Diagnosis:
        each = self._each()
        value = float(each.mean() if self.reduction == "mean" else each.sum() / self.divisor)
        self._leave_out_padding()
        left_out = not self.keep.all()
        x, y = self._rows(self.dim, self.keep if left_out else None)
        verdict = self._verdict(x, y)
        every = self._rows(self.dim)
        sums = rows.terms(*every, (True, self.log_target))
        exact, size = self._exact(*every, *(float(t.sum()) for t in sums))
        kl, agree = self._kl(x, y, verdict, sums)
        others = each.movedim(self.dim, -1).reshape(len(self.keep), -1)[~self.keep]
        if verdict in _RIGHT and left_out and (self.divisor > 1 or float(others.sum()) != 0):
            verdict = "padding"
            self.remarks += [VERDICTS["mixed_dtypes"]["meaning"]] if self.x.dtype != self.y.dtype else []
        elif verdict == "sound" and kl is not None and exact is not None:
            verdict = self._sound(x, y, value=value, exact=exact, size=size, kl=kl, agree=agree)
        if verdict in _RIGHT and kl is not None and self.divisor != len(x.rows):
            divides = f'"{self.reduction}" divides the sum of {len(self.keep)} rows by {self.divisor}'
            if self.reduction == "none":
                divides = f"The loss given here is the sum of {len(self.keep)} rows"
            self.remarks.append(
                f'{divides}; the mean over {len(x.rows)} rows, {kl:.6g}, is what reduction="rowmean" of '
                "audit.kl_div_from_logits gives."
            )
        advice, meaning = VERDICTS[verdict]["advice"], VERDICTS[verdict]["meaning"]
        lost = kl == math.inf or (kl is None and advice != "logits")
        call = self._call(verdict, kl) if advice and not lost else ""
        return Diagnosis(verdict, value, exact, kl, " ".join([meaning, *self.remarks]), self.evidence, call)

    def _each(self) -> Tensor:
        """torch's loss of every element, made so many at a time as stay in a core's cache."""
        each = torch.empty_like(self.x, dtype=torch.promote_types(self.x.dtype, self.y.dtype))
        size = max(1, rows.BLOCK * len(each) // each.numel())
        for part, x, y in zip(*(torch.split(t, size) for t in (each, self.x, self.y)), strict=True):
            part[:] = F.kl_div(x, y, reduction="none", log_target=self.log_target)
        return each

    def of_classes(self, indices: Tensor) -> Diagnosis:
        """Where the target names a class a row, or is one-hot in integers."""
        one_hot = self.y.shape == self.x.shape
        try:
            value = float(F.kl_div(self.x, self.y, reduction="sum", log_target=self.log_target)) / self.divisor
        except RuntimeError:
            value = math.nan
        keep = (indices >= 0).flatten() & self.keep
        if not keep.any():
            raise UsageError("target: expected the index of a class in some row, got negative ones alone")
        x, classes = Rows(self.x, self.dim, True, keep), indices.flatten()[keep].unsqueeze(-1)
        log_q = x.rows.double().log() if x.probs else x.rows.double().log_softmax(-1)
        kl = float(-log_q.gather(-1, classes).mean())
        evidence = "one 1 a row, of an integer dtype" if one_hot else f"whole numbers of shape {tuple(self.y.shape)}"
        given, kept = f"target.argmax({self.dim})" if one_hot else "target.long()", "[mask]" if self.kept else ""
        wide = ".float()" if self.x.dtype in (torch.float16, torch.bfloat16) else ""
        logits = f"input_logits.movedim({self.dim}, -1){kept}.reshape(-1, {x.classes}){wide}"
        call = f"F.cross_entropy({logits}, {given}{kept}.reshape(-1))"
        return Diagnosis("class_indices", value, None, kl, VERDICTS["class_indices"]["meaning"], evidence, call)

    def _leave_out_padding(self) -> None:
        if left_out := int((~self.keep).sum()):
            self.remarks.append(f"The mask leaves out {left_out} of {len(self.keep)} rows.")
        low, high = self._rows(self.dim)[1].rows.aminmax(dim=-1)
        ruled_out = high == -math.inf
        empty = (ruled_out | ((low == 0) & (high == 0) & (self.y.shape[self.dim] > 1))) & self.keep
        if empty.any() and (self.keep & ~empty).any():
            self.remarks.append(f"The target of {int(empty.sum())} of {len(self.keep)} rows is empty.")
            self.keep = self.keep & ~empty
            found = f"(target.amax({self.dim}) {'> -torch.inf' if ruled_out.any() else '!= 0'})"
            self.kept = f"{self.kept} & {found}" if self.kept else found

    def _verdict(self, x: Rows, y: Rows) -> str:
        """The verdict, "sound" for every sound call."""
        if x.nans or y.nans:
            self.evidence = f"{x.nans} NaN in the input, {y.nans} in the target"
            return "nan_in_data"
        self.evidence = (
            f"exponentials of the input's rows sum to {furthest(x.mass)}, "
            f"{'exponentials of ' if y.log else ''}the target's rows to {furthest(y.sums)}"
        )
        if x.probs:
            return "arguments_swapped" if y.log_probs and not y.log else "probs_as_input"
        for side, name in ((x, "input"), (y, "target")):
            if side.log and (eps := rows.eps_in_log(side)):
                self.evidence = f"the {name} shows an eps of {eps:.3g}; {self.evidence}"
                return "eps_in_log"
        if x.log_probs:
            return self._distributions(x, y) if y.right else self._target(y)
        for d in self._other_dims():
            other_x, other_y = self._rows(d)
            if other_x.log_probs:
                self.evidence = f"the input is normalised along dim {d}"
                if other_y.right and d == 1 and self.dim == -1 and self.x.dim() > 2:
                    self.dim = 1
                    self.remarks.append(
                        "The classes are along dim 1: give dim=1, and this call of kl_div may be right as it is."
                    )
                return "wrong_dim" if other_y.right else "different_dims"
        return self._input(x, y)

    def _other_dims(self) -> list[int]:
        """Along which rows may be distributions, besides the dim that is named."""
        return [d for d in range(self.x.dim()) if d != self.dim % self.x.dim() and self.x.shape[d] > 1]

    def _target(self, y: Rows) -> str:
        """Where the input is right, and the target not."""
        if y.probs or y.log_probs:
            return "probs_with_log_target" if y.probs else "log_probs_without_log_target"
        if (y.rows == y.nothing).all():
            self.remarks.append("The target of every row is empty.")
            return "padding"
        if any(self._rows(d)[1].right for d in self._other_dims()):
            return "different_dims"
        cut = self._cut(y, "target")
        return "logits_as_target" if not y.possible else "truncated" if cut else "unnormalised_target"

    def _cut(self, side: Rows, name: str) -> bool:
        """Whether rows that are no distributions are those cut to some of their classes; if not, what they are like."""
        wrong = ~side.near
        fewer = (side.rows == side.nothing).any(-1)[wrong].all() and (side.sums[wrong] < 1).all()
        if wrong.any() and not wrong.all():
            first = int(self.keep.nonzero()[wrong.nonzero()[0]])
            self.remarks.append(
                f"{int((~wrong).sum())} of {len(wrong)} rows of the {name} are distributions; row {first}, counted "
                f"from 0, is the first that is none: it sums to {float(side.sums[wrong][0]):.4g}."
            )
            return bool(fewer)
        factor = float(side.sums.mean())
        slack = factor * side.slack + (float(side.log_slack.max()) - side.slack if side.log else 0.0)
        alike = float(side.sums.max() - side.sums.min()) <= slack
        if side.short and (not alike or (len(side.rows) == 1 and fewer)):
            return True
        if side.possible and alike and is_temperature(1 / max(factor, 1e-300), 2 * side.slack):
            self.remarks.append(f"As if divided by {1 / factor:.4g}, a temperature outside the softmax.")
        elif side.short:
            alone = ", or cut to some of its classes" if len(side.rows) == 1 else ", every row alike"
            self.remarks.append(f"As if times {factor:.4g}{alone}.")
        return False

    def _input(self, x: Rows, y: Rows) -> str:
        """Where the input is neither probabilities nor log-probabilities along any dim."""
        if x.classes == 1:
            return "cannot_tell"
        if factor := rows.divided_by(x):
            self.evidence = f"the input's rows are log-probabilities divided by {factor:.4g}; {self.evidence}"
            if min(abs(factor / math.log(base) - 1) for base in (2, 10)) > 0.01:
                return "temperature"
            self.remarks.append(f"Its logarithms are to base {math.exp(factor):.3g}.")
            return "unnormalised_input"
        if float(x.near.double().mean()) >= 0.5 or (x.short and (y.right or y.short)):
            return "truncated" if self._cut(x, "input") else "unnormalised_input"
        if x.range[1] <= 0 and (y.right or (y.range[1] <= 0 if y.log else 0 <= y.range[0] <= y.range[1] <= 1)):
            if not y.right:
                self.remarks.append("Nor do the target's probabilities.")
            return "unnormalised_input"
        if y.probs or y.log_probs:
            return "logits_as_input"
        within = min(x.range[0], y.range[0]) >= 0 and max(x.range[1], y.range[1]) <= 1
        return "cannot_tell" if within else "raw_logits"

    def _distributions(self, x: Rows, y: Rows) -> str:
        """Where both sides are distributions, as kl_div takes them."""
        if min(x.range[0], y.range[0]) == -math.inf:
            mass, gone = y.rows > y.nothing, x.rows == -math.inf
            if infinite := int((mass & gone).sum()):
                return self._infinite(x, gone, infinite)
            self.evidence = f"{int((gone | ~mass if y.log else gone).sum())} classes have a -inf and no target"
            return "impossible_class"
        # log_softmax of probabilities p is p plus a constant, so that p can be read off: nothing is negative, the sum
        # is 1. So it is by chance in nearly flat rows; a spread of log-probabilities above 0.2 with p near 0 is rare.
        n = x.classes
        p = x.rows[:FEW].double()
        p = p - p.mean(-1, keepdim=True) + 1 / n
        tolerance = 1.5 * x.format.unit_roundoff * (1 + math.log(n))
        low, high = p.amin(-1), p.amax(-1)
        telling = (low < 0.4 / n) & ((high - low > 0.2) | (high > 5 / n) & (tolerance < 0.2 / n))
        likely = int(telling.sum()) * (n - 2) >= 60 and float(telling.double().mean()) > 0.5
        if likely and bool(((p > -tolerance) & (p < 1 + tolerance)).all()):
            self.evidence = "the input is a probability plus a constant, in every class"
            return "double_softmax"
        if factor := rows.slope(x, y):
            self.evidence = f"the input's log-probabilities are {factor:.4g} times the target's, up to a constant a row"
            return "temperature"
        return "sound"

    def _infinite(self, x: Rows, gone: Tensor, infinite: int) -> str:
        """Where a class of the target is none of the input: cut off, or lost where its probability underflowed."""
        left = (~gone).sum(-1)
        most, deepest = int(left.max()), float(x.rows[~gone].min())
        self.evidence = f"{infinite} such classes; {most} classes of {x.classes} at most are left in a row of the input"
        # What a softmax lets underflow leaves others near to that, and in each row another number of classes.
        alone = int(left.median()) == 1
        underflowed = deepest < math.log(x.format.smallest_subnormal) / 2 or alone
        if underflowed:
            self.evidence += f", where the least is exp({deepest:.4g})"
            self.remarks.append(
                f"As where a softmax in {x.format.name} underflows to 0, which log_softmax of the logits does not."
            )
        if most * 2 > x.classes or (underflowed and (alone or len(left) == 1 or not (left == most).all())):
            return "infinite"
        self.remarks.append(VERDICTS["infinite"]["meaning"])
        return "truncated"

    def _kl(self, x: Rows, y: Rows, verdict: str, sums: Tensor) -> tuple[float | None, bool]:
        """The divergence of the rows as distributions, None where they are not told; whether the sides agree.

        `sums` are the terms of all rows, taken as the call takes them.
        """
        if verdict in _UNTOLD or (verdict == "wrong_dim" and self.dim != 1):
            return None, False
        if verdict == "wrong_dim":
            x, y = self._rows(1)
        if verdict == "arguments_swapped":
            x, y = y, x
        raw = verdict in ("raw_logits", "logits_as_target")
        logs = (not x.probs, raw or y.log_probs or not (y.range[0] >= 0) or (self.log_target and not y.probs))
        as_called = verdict not in ("wrong_dim", "arguments_swapped") and logs == (True, self.log_target)
        sums = sums[:, self.keep] if as_called else rows.terms(x, y, logs)
        each, agree = rows.divergence(x, y, logs, sums)
        kl = float(each.mean())
        return (None if math.isnan(kl) else kl), agree

    def _exact(self, x: Rows, y: Rows, value: float, size: float) -> tuple[float | None, float]:
        """The formula on these numbers, and the size of its terms; None where a number is outside its domain.

        Given as binary64 has them.
        """
        if not (self.x < math.inf).all():
            return None, size
        if abs(value) < 1e-3 * size and self.x.numel() <= EXACTLY:  # where binary64 keeps fewer than 12 digits
            sides = [side.rows.reshape(1, -1) for side in (x, y)]
            kind = "log_probs" if y.log else "probs"
            try:
                value = float(exact_kl(*sides, input_kind="log_probs", target_kind=kind, reduction="sum", digits=17))
            except UsageError:  # terms that cancel to less than 10,000 bits tell from 0
                value = 0.0
        return (None if math.isnan(value) else value / self.divisor), size / self.divisor

    def _sound(self, x: Rows, y: Rows, *, value: float, exact: float, size: float, kl: float, agree: bool) -> str:
        """A sound call's verdict, by what its value has lost."""
        dtypes = {rows.name(self.x), rows.name(self.y)}
        wide = max((FORMATS[name] for name in dtypes), key=lambda f: f.precision)
        certain = self.x.numel() <= EXACTLY or abs(exact) > 1e-13 * size
        if value < 0 and certain and exact < 0:
            less = float((x.mass - y.sums).sum())
            if less < 1e-12 * len(x.rows):  # what binary64 does not keep; log(P / Q) = P - Q is as good there
                less = kl * len(x.rows) - exact * self.divisor
            self.remarks.append(
                f"It is negative because the numbers given are rounded: the target's mass is {less:.3g} less than the "
                f"input's, and the formula on them is exactly {exact:.3g}."
            )
        elif value < 0 and certain:
            self.remarks.append(
                f"It is negative by torch's arithmetic alone, in {' and '.join(sorted(dtypes))}: the formula on these "
                f"numbers is {exact:.3g}, not below 0."
            )
        if len(dtypes) > 1 and certain and abs(value - exact) > 16 * wide.unit_roundoff * size:
            x_wide, y_wide = (side.to(getattr(torch, wide.name)) for side in (self.x, self.y))
            widened = F.kl_div(x_wide, y_wide, reduction="sum", log_target=self.log_target)
            self.remarks.append(f"With both sides in {wide.name} it is {float(widened) / self.divisor:.6g}.")
            return "mixed_dtypes"
        if agree:
            return "identical"
        right = kl * len(x.rows) / self.divisor
        u = max(side.format.unit_roundoff for side in (x, y))
        return "sound" if abs(value - right) <= max(0.01, 64 * u) * right else "rounding"

    def _call(self, verdict: str, kl: float | None) -> str:
        """torch's own call where that is accurate; the remedy elsewhere, and where rows are left out."""
        sides = _SIDES[VERDICTS[verdict]["advice"]][self.log_target]
        wide = self.x.dtype == self.y.dtype in (torch.float32, torch.float64)
        finite = all(bool(t.isfinite().all()) and not (t.min() >= 0 and (t == 0).any()) for t in (self.x, self.y))
        far = (kl is None or kl > 1e-3) and verdict not in _DISTORTED
        if wide and finite and far and not self.kept:
            q, p = (side.format(dim=self.dim) for side in sides[:2])
            if self.x.dim() == 2 and self.dim % 2 == 1:
                return f'F.kl_div({q}, {p}, reduction="batchmean")'
            return f'F.kl_div({q}, {p}, reduction="none").sum({self.dim}).mean()'
        options = ['reduction="rowmean"']
        options += [f"mask={self.kept}"] if self.kept else []
        options += [f"dim={self.dim}"] if self.dim != -1 else []
        return f"audit.kl_div_from_logits({', '.join([*sides[2:], *options])})"
