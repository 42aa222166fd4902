"""Bounds hold for sound kernels whatever they are fed, and are tight enough to be of use."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.base.formats import FORMATS
from audit.cases import build
from audit.cases import registered as registered_cases
from audit.judge.bounds import Exact, bounds
from audit.judge.errors import error_columns, within_bound
from audit.judge.references import reduced
from audit.paths import Path, registered
from audit.paths.rounding import Promise, Rounding, torch_rounding
from audit.reference.exact import row_references
from tests.battery.sound import SOUND, in_double, masked, wide

ROWS = 8
FAMILIES = {
    "random": lambda x, y: (x, y),
    "wide": lambda x, y: (30 * x, 30 * y),
    "near": lambda x, y: (x, x + 1e-4 * y),
    "nearer": lambda x, y: (10 * x, 10 * x + 1e-7 * y),
    "identical": lambda x, y: (x, x),
    "flat": lambda x, y: (1e-3 * x, 1e-3 * y),
    "offset": lambda x, y: (x + 1000, y - 1000),
    "one_hot": lambda x, y: (x, y + 20 * (np.arange(y.shape[1]) == 1)),
    "both_one_hot": lambda x, y: (x + 15 * (np.arange(y.shape[1]) == 1), y + 20 * (np.arange(y.shape[1]) == 1)),
    "underflow": lambda x, y: (x, y - 104 * (np.arange(y.shape[1]) % 2)),
    "rising": lambda x, y: (np.linspace(0, 40, x.shape[1]) + 0 * x, np.linspace(0, 39, x.shape[1]) + 0 * y),
    "falling": lambda x, y: (np.linspace(4, 0, x.shape[1]) + 0 * x, np.linspace(3, 0, x.shape[1]) + 0 * y),
}


def problems(sizes: list[int], seed: int) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    generator = np.random.default_rng(seed)
    for family, make in FAMILIES.items():
        for classes in sizes:
            x, y = generator.standard_normal((2, ROWS, classes))
            for dtype in FORMATS:
                yield family, dtype, *(torch.tensor(t).to(getattr(torch, dtype)) for t in make(x, y))


def bound(promise: Promise, exact: Exact, dtype: str) -> NDArray:
    return bounds([promise], exact, dtype)[promise][0]


def attainable(promise: Promise, exact: Exact, dtype: str) -> NDArray:
    return bounds([promise], exact, dtype)[promise][1]


def trial(paths: list[Path], sizes: list[int], seed: int, limit=bound) -> pd.DataFrame:
    """A row a result: its error, its bound (or another limit of it), and whether it keeps it."""
    parts = []
    for family, dtype, x, y in problems(sizes, seed):
        numbers = x.double().numpy(), y.double().numpy()
        exact, rows = Exact.of(*numbers, "logits"), {"kl": row_references(*numbers, "logits")}
        if any(path.quantity == "distillation" for path in paths):
            tempered = row_references(*(side / 4 for side in numbers), "logits")
            rows["distillation"] = [str(16 * Decimal(text)) for text in tempered]
        for path in (p for p in paths if dtype in p.dtypes):
            computed = path.function(x, y)
            references = rows[path.quantity]
            if path.reduction != "none":
                references = [reduced(references, path.reduction, x.shape[1])]
            parts.append(
                pd.DataFrame(
                    {
                        "path": path.name,
                        "family": family,
                        "dtype": dtype,
                        "classes": x.shape[1],
                        "computed": computed.double().reshape(-1).numpy(),
                        "result_dtype": str(computed.dtype).removeprefix("torch."),
                        "result_class": "finite",
                        "reference": references,
                        "scale": 1.0,
                        "bound": limit(path.promise, exact, dtype),
                        "attainable": attainable(path.promise, exact, dtype),
                        "rest": np.nan,
                    }
                )
            )
    table = pd.concat(parts, ignore_index=True)
    table = pd.concat([table.drop(columns="result_class"), error_columns(table)], axis=1)
    kept, lossless = (within_bound(table.assign(bound=table[name])).astype(bool) for name in ("bound", "attainable"))
    return table.assign(kept=kept, lossy=kept & ~lossless)


# Categorical rounds an unshifted log-sum-exp: a limit of that path, which is acknowledged.
TORCHS = [
    p
    for p in registered()
    if p.input_kind == p.target_kind == "logits"
    and p.quantity in ("kl", "distillation")
    and p.kind in ("kl", "identity")
    and not p.compiles
    and not p.absent
    and p.runs_on("cpu")
    and p.name != "categorical"
]
# Of those, the ones that share torch's CPU log_softmax of halves, which rounds its sum of exponentials to the half.
HALF_SUM = ("log_softmax", "kl_div_loss", "distillation", "generalised",
            "cross_entropy_minus_entropy", "soft_cross_entropy")  # fmt: skip


def sound_paths() -> list[Path]:
    return [Path(f.__name__, f, "") for f in SOUND] + TORCHS


def violations(table: pd.DataFrame) -> pd.DataFrame:
    """Rows beyond their bound, but for the two limits of torch that are acknowledged."""
    broken = table[~table["kept"]]
    of_softmax = broken["path"].str.startswith(("softmax_log", "scipy_"))
    underflow = of_softmax & (broken["result_class"] != "finite")
    half_sum = broken["dtype"].isin(["float16", "bfloat16"]) & broken["path"].isin(HALF_SUM)
    return broken[~underflow & ~half_sum]


def test_no_sound_kernel_is_beyond_its_bound() -> None:
    table = trial(sound_paths(), [2, 300], seed=1)
    assert len(table) > 15_000
    broken = violations(table)
    assert broken.empty, broken.groupby(["path", "family", "dtype"]).size().to_string()


@pytest.mark.slow
def test_no_sound_kernel_is_beyond_its_bound_in_100_000_trials() -> None:
    sizes = [[2, 3, 10, 81]] * 2 + [[1_000, 5_000], [32_000]]
    table = pd.concat([trial(sound_paths(), each, seed) for seed, each in enumerate(sizes)], ignore_index=True)
    ratio = (table["bound"] / table["abs_error"]).replace(np.inf, np.nan)
    kinds = table["path"].isin([p.name for p in TORCHS]).map({True: "torch's paths", False: "undeclared kernels"})
    quantiles = ratio.groupby([kinds, table["dtype"]]).quantile([0.0, 0.01, 0.5, 0.99]).unstack()
    print(f"\n{len(table):,} results; bound / error, quantiles:\n{quantiles.round(1).to_string()}")
    assert len(table) > 100_000
    broken = violations(table)
    assert broken.empty, broken.groupby(["path", "family", "dtype"]).size().to_string()


def in_pairs(t: Tensor) -> Tensor:
    while t.shape[1] > 1:
        t = torch.nn.functional.pad(t, (0, t.shape[1] % 2))
        t = t[:, ::2] + t[:, 1::2]
    return t[:, 0]


def kahan(t: Tensor) -> Tensor:
    """Compensated, in sixteen lanes."""
    lanes = torch.nn.functional.pad(t, (0, -t.shape[1] % 16)).unflatten(1, (-1, 16))
    total = carry = torch.zeros_like(lanes[:, 0])
    for part in lanes.unbind(1):
        part = part - carry
        new = total + part
        total, carry = new, (new - total) - part
    return in_pairs(total)


def kernels(add) -> list[Path]:
    """Sound kernels with sums made by `add`: of what torch's call rounds, of logarithms, of two entropies."""

    def shifted(t: Tensor) -> Tensor:
        return wide(t) - wide(t).amax(-1, keepdim=True)

    def log_softmax(t: Tensor) -> Tensor:
        return shifted(t) - add(shifted(t).exp())[:, None].log()

    def as_torch(input: Tensor, target: Tensor) -> Tensor:
        e = shifted(target).exp()
        p, log_q = ((e / add(e)[:, None]).to(input.dtype), log_softmax(input).to(input.dtype))
        return add(torch.where(p > 0, wide(p) * (wide(p).log() - wide(log_q)), 0.0)).to(input.dtype)

    def of_logarithms(input: Tensor, target: Tensor) -> Tensor:
        return add(masked(log_softmax(target), log_softmax(input))).to(input.dtype)

    def apart(input: Tensor, target: Tensor) -> Tensor:
        log_p, log_q = log_softmax(target), log_softmax(input)
        p = log_p.exp()
        entropy, cross = (add(torch.where(p > 0, p * log, 0.0)) for log in (log_p, log_q))
        return (entropy - cross).to(input.dtype)

    declared = Path(f"{add.__name__} as torch", as_torch, "", rounding=torch_rounding())
    return [declared, *(Path(f"{add.__name__} {f.__name__}", f, "") for f in (of_logarithms, apart))]


ATTAINING = [*kernels(in_pairs), *kernels(kahan), Path("double", in_double, "")]


def test_sums_in_pairs_and_better_ones_attain_what_is_attainable() -> None:
    table = trial(ATTAINING, [2, 300], 1, attainable)
    assert len(table) > 5_000
    assert table["kept"].all(), table[~table["kept"]].groupby(["path", "family", "dtype"]).size().to_string()


@pytest.mark.slow
def test_what_is_attainable_is_attained_in_100_000_trials() -> None:
    sizes = [[2, 3, 10, 81, 300]] * 7 + [[1_000, 4_097], [32_000]]
    table = pd.concat([trial(ATTAINING, each, seed, attainable) for seed, each in enumerate(sizes)], ignore_index=True)
    ratio = (table["bound"] / table["abs_error"]).replace(np.inf, np.nan)
    quantiles = ratio.groupby([table["path"], table["dtype"]]).quantile([0.0, 0.01, 0.5]).unstack()
    print(f"\n{len(table):,} results; attainable / error, quantiles:\n{quantiles.round(1).to_string()}")
    assert len(table) > 100_000
    assert table["kept"].all(), table[~table["kept"]].groupby(["path", "family", "dtype"]).size().to_string()


def block_left_out(t: Tensor) -> Tensor:
    return in_pairs(torch.cat((t[:, :65_536], t[:, 66_560:]), 1))


def block_twice(t: Tensor) -> Tensor:
    return in_pairs(torch.cat((t, t[:, 65_536:66_560]), 1))


def eleven_bits(t: Tensor) -> Tensor:
    """The numbers' first 11 significant bits, as TF32 has them; rounded to nearest, their errors would average out."""
    return (t.view(torch.int32) & ~0x1FFF).view(torch.float32)


def wide_kernel(input: Tensor, target: Tensor, normaliser=in_pairs, total=in_pairs, exponentials=lambda e: e) -> Tensor:
    a, b = (t - t.amax(-1, keepdim=True) for t in (target, input))
    p = exponentials(a.exp())
    p = p / in_pairs(p)[:, None]
    log_q = b - normaliser(exponentials(b.exp()))[:, None].log()
    return total(torch.where(p == 0, 0.0, p * (p.log() - log_q)))


@cache
def wide_rows() -> list[tuple[Tensor, Tensor, Exact, NDArray]]:
    """Rows of 128,256 classes in float32, with their exact divergences."""
    cases = [c for c in registered_cases() if c.name in ("scattered_n128256", "confident_gaussian_n128256")]
    problems = [build(case, "float32") for case in cases]
    references = [np.array([float(v) for v in row_references(*p.numbers, "logits")]) for p in problems]
    return [(p.input, p.target, Exact.of(*p.numbers, "logits"), r) for p, r in zip(problems, references, strict=True)]


@pytest.mark.parametrize(
    ("defect", "found"),
    [
        ({}, False),
        ({"normaliser": block_left_out}, True),
        ({"normaliser": block_twice}, True),
        ({"total": block_left_out}, True),
        ({"total": block_twice}, True),
        ({"exponentials": eleven_bits}, True),
    ],
)
def test_a_defect_in_a_wide_row_of_single_is_inside_the_bound_and_not_attainable(defect: dict, found: bool) -> None:
    promise, outside = Path("own", wide_kernel, "").promise, False
    for input, target, exact, references in wide_rows():
        error = np.abs(wide_kernel(input, target, **defect).double().numpy() - references)
        assert (error <= bound(promise, exact, "float32")).all()
        outside |= bool((error > attainable(promise, exact, "float32")).any())
    assert outside == found


def one_by_one(input: Tensor, target: Tensor) -> Tensor:
    """An online softmax that rescales at every class, and sums that run from the first class to the last."""

    def log_softmax(t: Tensor) -> Tensor:
        top = torch.full_like(t[:, :1], -torch.inf)
        total = torch.zeros_like(top)
        for column in t.split(1, -1):
            new = torch.maximum(top, column)
            total = total * (top - new).exp() + (column - new).exp()
            top = new
        return (t - top) - total.log()

    return masked(log_softmax(target), log_softmax(input)).cumsum(-1)[:, -1]


def test_an_online_softmax_over_a_progression_keeps_the_undeclared_bound() -> None:
    """What broke a bound of n/16 + 5 roundings: the errors of the rescalings have one sign."""
    rows = [torch.linspace(start, stop, 4_000) for start, stop in ((0, 4_000), (-40, 0), (0, 1), (0, 0.01), (5, 0))]
    x, y = torch.stack(rows), torch.stack(rows[1:] + rows[:1])
    numbers = x.double().numpy(), y.double().numpy()
    exact = np.array([float(v) for v in row_references(*numbers, "logits")])
    error = np.abs(one_by_one(x, y).double().numpy() - exact)
    assert (error <= bound(Path("own", one_by_one, "").promise, Exact.of(*numbers, "logits"), "float32")).all()


def adversary(x: NDArray, y: NDArray, u: float, harm: int, slope: float, steps: float, terms: float, separate: bool):
    """KL with every rounding as large as it may be, and of the sign that does most harm: in binary64, for float32.

    `steps` and `terms` are the additions that a term meets in the two sums, `harm` the sign of the drift sought.
    """

    def exponentials(t: NDArray, signs: NDArray) -> tuple[NDArray, NDArray]:
        a = t - t.max(1, keepdims=True)
        rounded = a * (1 - signs * u)
        return rounded, np.where(a < 0, np.exp(rounded) * (1 + signs * u * (4 + slope * np.abs(a))), 1.0)

    def total(w: NDArray, sign: int) -> NDArray:
        rest = w.sum(1, keepdims=True) - 1
        growth = np.expm1(steps * np.log1p(u))
        return 1 + rest + sign * np.minimum(growth * (1 + rest), rest)

    exact_q, exact_p = (np.exp(t - t.max(1, keepdims=True)) for t in (x, y))
    L = np.log(exact_p / exact_p.sum(1, keepdims=True)) - np.log(exact_q / exact_q.sum(1, keepdims=True))
    kl = (exact_p * L).sum(1, keepdims=True) / exact_p.sum(1, keepdims=True)
    signs = harm * np.sign(L - kl)
    _, w = exponentials(y, signs)
    p = w / total(w, -harm) * (1 + 3 * u * signs)
    a, v = exponentials(x, np.full_like(x, harm))
    S = total(v, harm)
    log_q = (a - np.log(S) * (1 + harm * 2 * u)) * (1 + harm * 2 * u)
    each = p * (np.log(p) - log_q)
    size = p * (np.abs(np.log(p)) + np.abs(log_q)) if separate else np.abs(each)
    each = each + harm * u * (2 * p * np.abs(np.log(p)) + 2 * np.abs(each))
    return each.sum(1) + harm * np.expm1(terms * np.log1p(u)) * size.sum(1)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("underflow", "wide", "rising")])
def test_the_bound_is_reached_by_the_worst_that_its_assumptions_allow_and_not_passed(family: str) -> None:
    """So no smaller bound would do, and none that is looser passes here."""
    u, reached = FORMATS["float32"].unit_roundoff, {}
    for classes in (2, 10, 300):
        x, y = np.random.default_rng(classes).standard_normal((2, 4, classes))
        x, y = (np.float64(np.float32(t)) for t in FAMILIES[family](x, y))
        exact = Exact.of(x, y, "logits")
        kl = np.array([float(v) for v in row_references(x, y, "logits")])
        for name, rounding, slope, steps, terms in (
            ("torch's", torch_rounding(), 0.0, classes / 4 + 5, 4 * 2**4 + 8),
            ("any", Rounding("softmax", "log_softmax"), 3.0, 4 * classes, classes),
        ):
            limit = bound(Promise("kl", "none", rounding), exact, "float32")
            for harm in (1, -1):
                error = np.abs(adversary(x, y, u, harm, slope, steps, terms, name == "any") - kl)
                assert (error <= limit).all(), (name, classes, harm)
                reached[name] = max(reached.get(name, 0), (error / limit).max())
    assert min(reached.values()) > 0.8, reached


def test_a_temperatures_bound_is_reduced_as_its_results_are() -> None:
    exact = Exact.of(*np.random.default_rng(1).standard_normal((2, 5, 30)), "logits")
    rounding = torch_rounding(temperature=4.0)
    rows, total = (bound(Promise("kl", way, rounding), exact, "float32") for way in ("none", "sum"))
    assert len(rows) == 5 and len(total) == 1 and rows.sum() <= total[0] < 1.5 * rows.sum()


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_bound_grows_with_what_a_path_declares_less(dtype: str) -> None:
    """A kernel that declares nothing may do everything a torch path may."""
    x, y = (
        torch.tensor(t).to(getattr(torch, dtype)).double().numpy()
        for t in np.random.default_rng(3).normal(size=(2, 5, 50))
    )
    exact = Exact.of(x, y, "logits")
    undeclared = bound(Path("own", lambda x, y: x, "").promise, exact, dtype)
    for path in registered():
        if (
            path.kind == "kl"
            and path.target_kind == "logits"
            and path.reduction == "none"
            and path.name not in ("softmax_log", "generalised", "softmax_dtype")
            and not path.name.startswith("scipy")
            and path.rounding.result in ("", dtype)  # what returns a coarser format declares so
            and dtype in path.dtypes
        ):
            assert (bound(path.promise, exact, dtype) <= undeclared).all(), path.name


@pytest.mark.parametrize(
    ("computed", "reference", "limit", "rest", "dtype", "kept"),
    [
        (float("nan"), "1", 1.0, np.nan, "float32", False),
        (float("nan"), "nan", 1.0, np.nan, "float32", True),
        (float("inf"), "inf", 1.0, np.nan, "float32", True),
        (float("-inf"), "inf", 1.0, np.nan, "float32", False),
        (3.0, "inf", 1.0, np.nan, "float32", False),
        (3.0, "inf", 1.0, 2.5, "float32", True),
        (3.0, "inf", 1.0, 1.5, "float32", False),
        (float("inf"), "65519", 1.0, np.nan, "float16", False),
        (float("inf"), "65535.5", 1.0, np.nan, "float16", True),
        (float("inf"), "1e400", 1.0, np.nan, "float64", True),
        (float("-inf"), "65535.5", 1.0, np.nan, "float16", False),
        (2.0, "1", 1.0, np.nan, "float32", True),
        (2.0, "0.9999999999999", 1.0, np.nan, "float32", False),
    ],
)
def test_what_keeps_a_bound(computed, reference, limit, rest, dtype, kept) -> None:
    row = {"computed": computed, "reference": reference, "bound": limit, "rest": rest, "result_dtype": dtype}
    table = pd.DataFrame([row | {"result_class": "", "scale": 1.0}])
    table = pd.concat([table.drop(columns="result_class"), error_columns(table)], axis=1)
    assert within_bound(table).tolist() == [kept]


def ratio(name: str, input: Tensor, target: Tensor) -> float:
    """A torch path's error over its bound, for one row of logits."""
    path = next(p for p in registered() if (p.name, p.reduction, p.target_kind) == (name, "none", "logits"))
    numbers = input.double().numpy(), target.double().numpy()
    limit = bound(path.promise, Exact.of(*numbers, "logits"), str(input.dtype).removeprefix("torch."))
    exact = float(row_references(*numbers, "logits")[0])
    return float(abs(path.function(input, target).double().item() - exact) / limit[0])


@pytest.mark.parametrize("name", ["softmax_dtype_cast", "first_dim"])
def test_the_logarithm_in_a_halfs_xlogy_is_a_rounding_of_its_own(name: str) -> None:
    x = torch.zeros(1, 70, dtype=torch.float16)
    x[:, :60] = 2.9140625
    assert 0.5 < ratio(name, x, x.clone()) <= 1


@pytest.mark.parametrize("name", ["cross_entropy_minus_entropy", "soft_cross_entropy"])
def test_each_of_two_cross_entropies_is_stored_before_they_are_subtracted(name: str) -> None:
    x = torch.zeros(1, 86, dtype=torch.bfloat16)
    x[:, :19] = -5.21875
    assert ratio(name, x, x.clone()) <= 1


@pytest.mark.parametrize("name", ["softmax_log", "scipy_rel_entr", "scipy_entropy"])
def test_the_logarithm_of_a_subnormal_probability_keeps_its_bound(name: str) -> None:
    if name not in {p.name for p in registered() if not p.absent}:
        pytest.skip("scipy is not installed")
    for gap in np.arange(700, 744.5, 0.25):
        x = torch.tensor([[0.0, -gap]], dtype=torch.float64)
        assert ratio(name, x, torch.zeros_like(x)) <= 1, gap
    x = torch.tensor([[0.0, 0.0, -101.57905]])
    assert 0.5 < ratio(name, x, torch.tensor([[0.0, 0.0, 30.0]])) <= 1
