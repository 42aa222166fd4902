"""The screen: never outside its enclosure, never a bound too large, never another verdict than the engine's."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import audit
from audit.base.usage import UsageError
from audit.judge import screen
from audit.judge.bounds import Exact, bounds
from audit.judge.screen import DTYPES, enclose, least_bound
from audit.looks import stream
from audit.machine.plan import plan_file
from audit.paths import registered
from audit.paths.rounding import FUSED, Promise
from audit.pipeline import loop
from audit.reference.exact import certified_rows

PROMISES = {
    p.promise
    for p in registered()
    if (p.kind, p.quantity, p.reduction, p.input_kind, p.target_kind) == ("kl", "kl", "none", "logits", "logits")
    and p.rounding.temperature == 1
} | {Promise("kl", "none", FUSED)}


def families(rows: int, classes: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Input and target: ordinary rows and hostile ones, in float32."""
    generator = torch.Generator().manual_seed(classes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    y = normal(rows, classes) * 10 ** normal(rows, 1)
    peaked, far = y.clone(), y.clone()
    peaked[:, 0] += 20 + 60 * torch.rand(rows, generator=generator)
    far[:, -1] = -900
    heavy = far.clone()
    heavy[:, -1] = normal(rows)
    some = normal(rows, classes)
    ruled_out = torch.where(some > 1, -torch.inf, y)
    ruled_out[:, 0] = 0
    scales = 10 ** normal(rows, 1)
    yield "random", scales * normal(rows, classes), y
    yield "near", y + 10 ** (3 * normal(rows, 1) - 4) * normal(rows, classes), y
    yield "offset", y + 1e4 + 1e-3 * normal(rows, classes), y + 1e4
    yield "wild", *(10 ** (1.5 * normal(rows, classes)) * normal(rows, classes).sign() for _ in range(2))
    yield "peaked", peaked + 0.05 * normal(rows, classes), peaked
    yield "ruled_out", torch.where(some > 2.5, -torch.inf, y + 0.1 * normal(rows, classes)), ruled_out
    yield "matched", torch.where(some > 1, -torch.inf, y + 0.1 * normal(rows, classes)), ruled_out
    yield "identical", y, y
    yield "shifted", y + 3.125, y
    yield "tiny", y * 1e-30, normal(rows, classes) * 1e-30
    yield "far", far + 0.1 * normal(rows, classes), far
    yield "mass_where_the_target_has_none", heavy, far


def pairs(rows: int, classes: int) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    for name, input, target in families(rows, classes):
        for dtype in DTYPES:
            x, y = (t.to(getattr(torch, dtype)) for t in (input, target))
            sound = (torch.maximum(x, y) < torch.inf).all(-1) & (x.amax(-1) > -torch.inf) & (y.amax(-1) > -torch.inf)
            if sound.any():
                yield name, dtype, x[sound], y[sound]


def test_the_enclosure_holds_the_exact_value_and_the_digits_are_certain() -> None:
    """Of rows that are screened at all: all but those where the target has mass and the input none, or 1e300 of it."""
    enclosed_rows = total = 0
    for classes in (2, 10, 300):
        for name, dtype, x, y in pairs(10, classes):
            enclosed = enclose(x, y)
            for row, exact in enumerate(certified_rows(x.double().numpy(), y.double().numpy(), "logits")):
                total += 1
                if np.isnan(enclosed.kl[row]):
                    continue
                enclosed_rows += 1
                assert enclosed.holds(row, exact.value), (name, dtype, classes, row)
                if text := enclosed.text(row):
                    unit = Decimal((0, (1,), Decimal(text).as_tuple().exponent)) if text != "0" else Decimal(0)
                    assert abs(Decimal(exact.value) - Decimal(text)) <= unit
    assert enclosed_rows > 0.9 * total


def test_the_enclosure_holds_what_arb_computes() -> None:
    flint = pytest.importorskip("flint")
    flint.ctx.prec = 400
    for _, _, x, y in pairs(4, 30):
        enclosed = enclose(x, y)
        for row in np.flatnonzero(~np.isnan(enclosed.kl)):
            a, b = ([flint.arb(v) for v in side[row].double().tolist()] for side in (x, y))
            lse = [sum((v.exp() for v in side if v.is_finite()), flint.arb(0)).log() for side in (a, b)]
            terms = (
                (t - lse[1]).exp() * ((t - lse[1]) - (s - lse[0])) for s, t in zip(a, b, strict=True) if t.is_finite()
            )
            exact = sum(terms, flint.arb(0))
            difference = abs(exact - flint.arb(float(enclosed.kl[row])))
            assert difference <= flint.arb(float(enclosed.radius[row])) * (1 + flint.arb(2) ** -50) + exact.rad()


def test_no_bound_of_any_path_is_below_the_least() -> None:
    nearest = np.inf
    for classes in (2, 10, 300):
        for name, dtype, x, y in pairs(20, classes):
            enclosed = enclose(x, y)
            there = ~np.isnan(enclosed.kl)
            exact = bounds(list(PROMISES), Exact.of(x.double().numpy(), y.double().numpy(), "logits"), dtype)
            for promise in PROMISES:
                for bound in exact[promise]:
                    ratio = (bound / least_bound(promise, enclosed, dtype))[there]
                    assert (ratio >= 1).all(), (name, dtype, classes, promise)
                    nearest = min(nearest, ratio.min(initial=np.inf))
    assert nearest < 1.1  # so that a constant that is a tenth too large is found


def test_a_bfloat16_row_of_many_classes_is_enclosed_to_ten_digits() -> None:
    y = torch.randn(2, 151_936).bfloat16()
    enclosed = enclose(y + 0.01 * torch.randn(2, 151_936).bfloat16(), y)
    assert (enclosed.radius < 1e-10 * enclosed.kl).all()


def judged(file: Path) -> tuple[object, ...]:
    table = loop.execute(plan_file(file, devices="cpu"), references=file.parent).tables["errors"]
    return table.sort_values(["row", "path"], ignore_index=True)


SAME = ["row", "path", "input_digest", "computed", "within_bound", "lossy", "negative", "false_zero", "result_class"]


def compare_verdicts(rows: int, classes: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SMALL", (0, 0))
    every = list(pairs(rows, classes))
    for dtype in DTYPES:
        x, y = (torch.cat([pair[side] for pair in every if pair[1] == dtype]) for side in (2, 3))
        torch.save({"input": x, "target": y}, folder / "mine.pt")
        screened = judged(folder / "mine.pt")
        with monkeypatch.context() as patched:
            patched.setattr(stream, "DTYPES", ())
            exact = judged(folder / "mine.pt")
        assert "screened" not in set(exact["reference_source"])
        assert screened[SAME].equals(exact[SAME]), dtype
        by_screen = screened["reference_source"] == "screened"
        assert by_screen.any()  # the hostile rows of half formats are mostly left to the engine
        assert (screened["bound"] <= exact["bound"] * (1 + 1e-12))[by_screen].all()


def test_verdicts_are_the_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_verdicts(20, 10, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "classes"), [(20_000, 3), (300, 2000)])
def test_verdicts_are_the_engines_in_many_rows(rows: int, classes: int, tmp_path, monkeypatch) -> None:
    compare_verdicts(rows, classes, tmp_path, monkeypatch)


def test_most_rows_of_a_file_are_screened_and_some_of_those_checked(tmp_path: Path) -> None:
    y = torch.randn(2000, 50)
    torch.save({"input": y + 0.1 * torch.randn(2000, 50), "target": y}, tmp_path / "mine.pt")
    table = judged(tmp_path / "mine.pt")
    assert (table["reference_source"] == "screened").mean() > 0.95
    assert (table["reference_source"] == "computed").any()
    row = table[table["reference_source"] == "screened"].iloc[0]
    exact = float(audit.exact_kl(*(torch.load(tmp_path / "mine.pt")[k][int(row["row"])] for k in ("input", "target"))))
    assert float(row["reference"]) == pytest.approx(exact, rel=1e-11) and row["reference"] == row["exact_kl"]


@pytest.mark.parametrize("error", [1e-9, -1e-9])
def test_a_device_whose_exponential_is_worse_than_assumed_is_caught(
    error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = torch.randn(300, 50)
    torch.save({"input": y + 0.1 * torch.randn(300, 50), "target": y}, tmp_path / "mine.pt")
    expm1 = torch.expm1
    monkeypatch.setattr(screen.torch, "expm1", lambda d, out: expm1(d, out=out).mul_(1 + error))
    with pytest.raises(UsageError, match="the screen and the exact engine differ"):
        judged(tmp_path / "mine.pt")
