"""The same call, executed otherwise: alone, in another order, strided, on one thread, compiled, on another device."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from shutil import which

import torch
from torch import Tensor
from torch.nn.functional import pad

from audit.paths import path
from audit.paths.functional import log_softmax

Function = Callable[[Tensor, Tensor], Tensor]


def both(change: Callable[[Tensor], Tensor], f: Function, x: Tensor, y: Tensor) -> Tensor:
    """The same done to both sides before."""
    return f(change(x), change(y))


def permuted(x: Tensor) -> Tensor:
    order = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(0))
    return x.index_select(-1, order.to(x.device))


def constant(f: Function, x: Tensor, y: Tensor) -> Tensor:
    """Adds a constant of its largest logit's size to each row of the input; exact on `coarse` logits."""
    return f(x + _leading(x), y)


def _leading(x: Tensor) -> Tensor:
    """The power of two at or below each row's largest finite magnitude."""
    # On the CPU, as a device may have no float64.
    size = torch.where(x.isfinite(), x.abs(), 0.0).amax(-1, keepdim=True).cpu().double()
    return torch.exp2(torch.floor(torch.log2(size.clamp(min=torch.finfo(x.dtype).tiny)))).to(x)


def coarse(x: Tensor) -> Tensor:
    """Logits without the bits that `constant` would lose: multiples of 2 ulp of the row's largest."""
    step = _leading(x).cpu().double() * 2 * torch.finfo(x.dtype).eps
    return (torch.round(x.cpu().double() / step) * step).to(x)


def one_thread(f: Function, x: Tensor, y: Tensor) -> Tensor:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return f(x, y)
    finally:
        torch.set_num_threads(threads)


def among(count: int, f: Function, x: Tensor, y: Tensor) -> Tensor:
    """Its rows repeated or cut into batches of `count`: whether bits depend on a row's company."""
    rows = torch.arange(max(len(x), count), device=x.device) % len(x)
    return torch.cat([f(x[part], y[part]) for part in torch.split(rows, count)])[: len(x)]


def times_over(count: int, f: Function, x: Tensor, y: Tensor) -> Tensor:
    """Each row `count` times in one call, of which it gives the value that is furthest from the first."""
    return _furthest(f(x.repeat(count, 1), y.repeat(count, 1)).reshape(count, len(x)))


def many_rows(f: Function, x: Tensor, y: Tensor) -> Tensor:
    """More rows than a grid's second dimension has, where they are narrow."""
    return times_over(70_000 // len(x) + 1, f, x, y) if x.shape[1] < 10 else f(x, y)


def widened(sizes: tuple[int, ...], f: Function, x: Tensor, y: Tensor) -> Tensor:
    """Classes of next to no mass before the row's own, up to each of the sizes: the value furthest from the row's."""
    values = [f(x, y)]
    for n in (n for n in sizes if n > x.shape[1]):
        low = [t.amin(-1, keepdim=True).expand(len(t), n - t.shape[1]) - 90 for t in (x, y)]
        values.append(f(torch.cat([low[0], x], -1), torch.cat([low[1], y], -1)))
    return _furthest(torch.stack(values))


def _furthest(values: Tensor) -> Tensor:
    """Of each row the value that is furthest from the first."""
    away = (values - values[0]).abs().nan_to_num(nan=torch.inf)
    return values.gather(0, away.argmax(0, keepdim=True))[0]


def after_another(f: Function, x: Tensor, y: Tensor) -> Tensor:
    f(*(t[:1, : max(1, t.shape[1] // 2)].clone() for t in (x, y)))
    return f(x, y)


def with_gradients(f: Function, x: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        return f(x.clone().requires_grad_(), y.clone().requires_grad_()).detach()


_compiled = cache(partial(torch.compile, dynamic=True, fullgraph=True))


def compiled(f: Function, x: Tensor, y: Tensor) -> Tensor:
    """The whole of f compiled, never a part that fell back to eager: what cannot be compiled raises.

    Each dtype, batch of one, stride, number of threads and grad mode is a kernel of its own, which dynamo's limit for
    a program's recompilations does not foresee.
    """
    import torch._dynamo.config as dynamo  # a second and a half, for those who compile

    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"  # the latter in torch 2.6
    with dynamo.patch({limit: 1_000}):
        made: Function = _compiled(f)
        return made(x, y)


def _missing(language: str, variable: str, *names: str) -> str:
    """Why torch.compile cannot compile; empty where a compiler is there, which `variable` may name."""
    names = tuple(os.environ.get(variable, "").split()[:1]) or names
    there = any(map(which, names))
    return "" if there else f"torch.compile needs a {language} compiler here, and there is no {' or '.join(names)}"


# Inductor writes C++ for a CPU; for an accelerator Triton compiles its launchers, which are C.
NO_COMPILER = {
    "cpu": _missing("C++", "CXX", "clang++" if sys.platform == "darwin" else "g++"),
    "accelerator": _missing("C", "CC", "gcc", "clang"),
}


@dataclass(frozen=True)
class Execution:
    """Another way to run a path, which should change nothing.

    `prepare` is done to the input's logits first, on both sides of the comparison. `where` is "cpu" or "accelerator"
    for what means nothing elsewhere. `costly`: compiles, so that it is done for a few paths alone. `own`: done for
    kernels of the user's own alone, as torch is above that suspicion. `each`: of what gives a value a row alone.
    """

    run: Callable[[Function, Tensor, Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor] | None = None
    where: str = ""
    costly: bool = False
    own: bool = False
    each: bool = False


# Of a row that is wrong in 1,000 or 10,000 the first is nearly always caught, the second more often than not.
REPEATED = 160
_POWERS = tuple(2**k for k in range(6, 13))
# Numbers of classes, in the words in which a bug is told.
SIZES = {
    "at 33 to 63 classes": (33, 40, 48, 63),
    "at 101 to 999 classes": (101, 200, 500, 999),
    "at 2^k - 1 classes": tuple(n - 1 for n in _POWERS),
    "at 2^k classes": _POWERS,
    "at 2^k + 1 classes": tuple(n + 1 for n in _POWERS),
}
EXECUTIONS: dict[str, Execution] = {
    "run to run": Execution(lambda f, x, y: f(x, y)),
    "row alone": Execution(partial(among, 1), each=True),
    "classes permuted": Execution(partial(both, permuted)),
    "constant added": Execution(constant, prepare=coarse),
    "padded with -inf": Execution(partial(both, lambda t: pad(t, (0, 3), value=-torch.inf)), each=True),
    "one thread": Execution(one_thread, where="cpu"),
    "strided": Execution(partial(both, lambda t: torch.stack((t, t), -1).select(-1, 0))),
    **{f"in batches of {count}": Execution(partial(among, count), own=True, each=True) for count in (2, 7, 32, 128)},
    f"{REPEATED} times over": Execution(partial(times_over, REPEATED), own=True, each=True),
    "in 70,000 rows": Execution(many_rows, own=True, each=True),
    "in a square": Execution(lambda f, x, y: among(x.shape[1], f, x, y), own=True, each=True),
    **{name: Execution(partial(widened, sizes), own=True, each=True) for name, sizes in SIZES.items()},
    # Such as begin in the middle of memory, other numbers around them.
    "views with an offset": Execution(partial(both, lambda t: pad(t, (3, 1, 1, 0), value=7.0)[1:, 3:-1]), own=True),
    "after another shape": Execution(after_another, own=True),
    "with gradients": Execution(with_gradients, own=True),
    "on the CPU": Execution(lambda f, x, y: f(x.cpu(), y.cpu()).to(x.device), where="accelerator"),
    "compiled": Execution(compiled, costly=True),
}

for _where, _absent in NO_COMPILER.items():
    path(
        "compiled",
        summary=f"torch.compile of the log_softmax path, on {'a CPU' if _where == 'cpu' else 'an accelerator'}",
        # A few shapes and no more: they show what fusing changes, and compiling takes seconds a dtype.
        cases=("random_scale10", "near_1e-02", "peaked_gap12", "zipf_n32000"),
        compiles=True,
        absent=_absent,
        where=_where,
    )(partial(compiled, log_softmax))
