"""A kernel of one's own, judged in one call: in a test suite, a notebook or a script."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import pandas as pd

from audit.base.kinds import failing
from audit.base.usage import UsageError, several
from audit.base.workers import Workers
from audit.cases import registered as registered_cases
from audit.machine.plan import Names, Own, Plan, beside, plan
from audit.paths import Path, own_path
from audit.paths.rounding import Rounding, is_power_of_two
from audit.pipeline.loop import execute
from audit.publish.verdict import verdict

if TYPE_CHECKING:
    from torch import Tensor

# Cases whose logits times a temperature leave the format.
AT_THE_LIMIT = ("largest", "offset_limit")


@dataclass(frozen=True)
class Verdict:
    """What `check` found: whether no finding is new and no device failed, and the tables, of the kernels alone.

    `causes` are the names of known defects that explain a finding. str() is what a person reads.
    """

    sound: bool
    findings: pd.DataFrame
    errors: pd.DataFrame
    gradients: pd.DataFrame
    invariance: pd.DataFrame
    causes: list[str]
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text

    def __bool__(self) -> bool:
        return self.sound


def check(
    kernel: Own | Iterable[Own],
    *,
    profile: str = "standard",
    dtypes: Names = None,
    devices: Names = None,
    rounding: Rounding | None = None,
    temperature: float = 1.0,
    reduction: str = "none",
    strict: bool = False,
    workers: int | None = None,
) -> Verdict:
    """Judges fn(input_logits, target_logits), or several in a list: values, gradients, invariance, shapes.

    Logits are (rows, classes); a kernel returns one value a row, or one in all with its `reduction`. `rounding` is what
    it promises, such as FUSED; undeclared, any sound order and form. At a `temperature` T, a power of two, it is to
    compute the divergence of the logits over T, times T^2 or not: what it does is seen. A dtype it does not take fails
    only where `dtypes` asks for it. `strict`: what is lossy fails too. `workers` as for `run`.

    Raises UsageError, a ValueError, for names that are not there, a temperature that is no power of two, and a function
    named as one of the audit's own paths.

    >>> import torch, audit
    >>> def my_kl(x, y):
    ...     return torch.nn.functional.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="none").sum(-1)
    >>> audit.check(my_kl, profile="quick", dtypes="float32", devices="cpu").sound
    True
    """
    if not is_power_of_two(temperature):
        raise UsageError(f"temperature {temperature!r}: expected a power of two, by which logits are divided exactly")
    paths = [_declared(fn, rounding, reduction) for fn in several(kernel)]
    if not paths:
        raise UsageError("expected a function fn(input_logits, target_logits), or several in a list, got none")
    names = [path.name for path in paths]
    if temperature == 1:
        chosen, remarks = plan(profile, None, paths, dtypes, devices), dict.fromkeys(names, "")
    else:
        cases = [c.name for c in registered_cases(profile) if c.name not in AT_THE_LIMIT]
        chosen, remarks = _tempered(plan(profile, cases, paths, dtypes, devices), temperature)
    with Workers(1 if workers is None else workers) as processes:
        done = execute(chosen, processes)
    mine = {name: table[table["path"].isin(names)] for name, table in done.tables.items() if "path" in table}
    texts = [
        verdict(
            done.tables,
            p.name,
            beside(p.reduction),
            strict=strict,
            pace=done.environment["paces"].get(p.name),
            remark=remarks[p.name],
        )
        for p in paths
    ]
    return Verdict(
        sound=failing(mine["findings"], strict).empty and not done.failed_devices,
        **{name: mine[name] for name in ("findings", "errors", "gradients", "invariance")},
        causes=sorted(set(mine["findings"]["cause"]) - {""}),
        text="\n".join([*done.failed_devices, *texts]),
    )


def assert_sound(kernel: Own | Iterable[Own], **options: object) -> None:
    """For a test suite of one's own: raises AssertionError with the verdict's text unless `check` finds it sound."""
    __tracebackhide__ = True
    found = check(kernel, **options)  # type: ignore[arg-type]
    if not found.sound:
        raise AssertionError(str(found)) from None


def _declared(kernel: Own, rounding: Rounding | None, reduction: str) -> Path:
    """The kernel as a path, with what is declared of it."""
    path = own_path(kernel)
    return replace(
        path,
        rounding=path.rounding if rounding is None else rounding,
        reduction=path.reduction if reduction == "none" else reduction,
    )


def _tempered(chosen: Plan, temperature: float) -> tuple[Plan, dict[str, str]]:
    """The plan with its kernels as functions of the quotients, and what is to be said of each."""
    places = list(product(chosen.dtypes, (device.name for device in chosen.devices)))
    paths, remarks = [], {}
    for path in chosen.paths:
        if path.name in chosen.own:
            squared = _multiplies_by_square(path.function, temperature, places)
            remarks[path.name] = (
                f"at temperature {temperature:g}, judged as the divergence of the quotients "
                f"{'times the square of it' if squared else 'without its square as a factor'}, which it is nearer to"
            )
            path = replace(path, function=partial(_at, path.function, temperature, squared))
        paths.append(path)
    return replace(chosen, paths=paths), remarks


def _at(kernel: Own, temperature: float, squared: bool, input: Tensor, target: Tensor) -> Tensor:
    """f(T x, T y) at temperature T is the divergence of x and y: times T^2 and division by it are exact."""
    return kernel(temperature * input, temperature * target) / (temperature**2 if squared else 1.0)


def _multiplies_by_square(kernel: Own, temperature: float, places: Iterable[tuple[str, str]]) -> bool:
    """Which of the two conventions a result is nearer to, in the first dtype and device that the kernel takes."""
    import torch

    x, y = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[2.0, 0.0, 1.0]])
    exact = float((y.softmax(-1) * (y.log_softmax(-1) - x.log_softmax(-1))).sum())
    for dtype, device in places:
        x_there, y_there = (temperature * t.to(device, getattr(torch, dtype)) for t in (x, y))
        try:
            with torch.no_grad():
                found = float(kernel(x_there, y_there))
        except Exception:  # which the run tells of
            continue
        return abs(found / temperature**2 - exact) < abs(found - exact)
    return False
