"""Searches inputs for the largest error of a path: random beginnings, and steps that are kept where the error grows."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from datetime import date
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray

from audit.base.formats import FORMATS
from audit.base.usage import UsageError, choose
from audit.cases.worst import Record
from audit.judge.bounds import Exact, bounds
from audit.judge.errors import exact_error
from audit.machine.plan import MAIN
from audit.paths import Path, registered
from audit.reference.exact import certified_rows

Floats = NDArray[np.float64]
NUMBERS = 2**14  # of all candidates at a time
PATIENCE = 40  # steps, after which the lesser half begins anew


def searched(paths: list[str] | None, dtypes: list[str] | None, classes: int, seconds: float) -> Iterator[Record]:
    """The worst that is found of each path of logits in each dtype: as scaled_error, and as a share of its bound.

    By default of the main paths. Raises UsageError for names that are not there.
    """
    known = [
        p
        for p in registered()
        if p.kind == "kl" and p.input_kind == p.target_kind == "logits" and p.reduction == "none"
    ]
    able = list(dict.fromkeys(p.name for p in known if not p.absent and not p.compiles))
    for name in {p.name for p in registered()}.intersection(paths or ()).difference(able):
        raise UsageError(f"path {name!r} is not searched: it gives no KL a row of logits, compiles, or cannot run here")
    names = choose(paths or MAIN, able, "path")
    for path in (p for p in known if p.name in names):
        for dtype in (d for d in choose(dtypes, list(FORMATS), "dtype") if d in path.dtypes):
            for of_bound in (False, True):
                yield search(path, dtype, classes, seconds, of_bound=of_bound)


def search(path: Path, dtype: str, classes: int, seconds: float, *, of_bound: bool = False, seed: int = 0) -> Record:
    """The input of so many classes where the path's error is largest, of those tried in so many seconds.

    Largest as scaled_error, or as a share of its bound where `of_bound`. The error recorded is the exact one.
    """
    random, count, end = np.random.default_rng(seed), max(16, NUMBERS // classes), monotonic() + seconds
    values = _rounded(_begun(random, count, classes), dtype)
    scores = _scores(path, dtype, values, of_bound)
    step = 0
    while monotonic() < end:
        step += 1
        if step % PATIENCE == 0:
            order = np.argsort(scores)
            worse, best = order[: count // 2], order[-(count // 8) :]
            values[:, worse] = values[:, random.choice(best, len(worse))]
            values[:, worse[: count // 8]] = _rounded(_begun(random, count // 8, classes), dtype)
            scores[worse] = _scores(path, dtype, values[:, worse], of_bound)
        tried = _rounded(_moved(random, values), dtype)
        new = _scores(path, dtype, tried, of_bound)
        better = new > scores
        values[:, better], scores[better] = tried[:, better], new[better]
    return measured(path, dtype, *values[:, [scores.argmax()]])


def _rounded(values: Floats, dtype: str) -> Floats:
    return torch.from_numpy(values).to(getattr(torch, dtype)).double().numpy()


def _begun(random: np.random.Generator, count: int, classes: int) -> Floats:
    """Target and input near each other: of any spread, half of them with a leader, which may come first."""
    spread, near = (2.0 ** random.uniform(low, 4, (count, 1)) for low in (-6, -8))
    target = spread * random.standard_normal((count, classes))
    place = np.where(random.random(count) < 0.5, 0, random.integers(classes, size=count))
    target[np.arange(count), place] += random.uniform(0, 40, count) * (random.random(count) < 0.7)
    return np.stack([target + near * random.standard_normal((count, classes)), target])


def _moved(random: np.random.Generator, values: Floats) -> Floats:
    """One step from each candidate: classes moved, scaled or given another's value, or two of them exchanged."""
    _, count, classes = values.shape
    place, kind = np.arange(classes), random.integers(4, size=(count, 1))
    one, other = random.integers(classes, size=(2, count, 1))
    some = random.random((count, classes)) < random.choice([0.02, 0.2, 1.0], (count, 1))
    chosen = np.where(random.random((count, 1)) < 0.5, place == one, some)
    exchanged = np.where(place == one, other, np.where(place == other, one, place))
    size = 2.0 ** random.uniform(-16, 3, (count, 1)) * random.choice([-1, 1], (count, 1))
    left_out = random.integers(3, size=(count, 1))  # of the two sides; 2 changes both alike
    new = values.copy()
    for s, side in enumerate(values):
        level = np.broadcast_to(np.take_along_axis(side, other, 1), side.shape)
        moved = np.choose(kind, (side + size, side * (1 + size / 64), level, np.take_along_axis(side, exchanged, 1)))
        new[s] = np.where((left_out != s) & (chosen | (kind == 3)), moved, side)
    return new


def _scores(path: Path, dtype: str, values: Floats, of_bound: bool) -> Floats:
    """Of each candidate the error in roundoffs of its scale, or over its bound; -1 where it is not finite.

    Extended precision decides for float64, where the platform has it.
    """
    with torch.no_grad():
        result = path.function(*(torch.from_numpy(side).to(getattr(torch, dtype)) for side in values))
    wide = values.astype(np.longdouble if dtype == "float64" else np.float64)
    with np.errstate(all="ignore"):
        shifted = wide - wide.max(-1, keepdims=True)
        log_q, log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        p = np.exp(log_p)
        kl = (p * (log_p - log_q)).sum(-1)
        error = np.abs(result.double().numpy() - kl).astype(np.float64)
        if of_bound:
            limit = bounds([path.promise], Exact.of(values[0], values[1], "logits"), dtype)[path.promise][0]
        else:
            limit = FORMATS[dtype].unit_roundoff * (1 + (p * (np.abs(log_p) + np.abs(log_q))).sum(-1))
        return np.asarray(np.nan_to_num((error / limit).astype(np.float64), nan=-1.0, posinf=-1.0))


def measured(path: Path, dtype: str, input: Floats, target: Floats) -> Record:
    """The record of one row, 1 x classes: the exact error of what the path gives for it alone."""
    with torch.no_grad():
        result = path.function(*(torch.from_numpy(side).to(getattr(torch, dtype)) for side in (input, target))).item()
    exact = Exact.of(input, target, "logits")
    unit = FORMATS[dtype].unit_roundoff * float(exact.scale[0])
    error = exact_error(result, certified_rows(input, target, "logits")[0].value, dtype) / unit
    bound = float(bounds([path.promise], exact, dtype)[path.promise][0][0]) / unit
    versions = f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()} {platform.machine()}"
    x, y = (" ".join(float(v).hex() for v in side[0]) for side in (input, target))
    return Record(path.name, dtype, input.shape[1], error, bound, versions, date.today().isoformat(), x, y)
