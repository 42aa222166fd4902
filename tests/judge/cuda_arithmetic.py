"""CUDA's shape of arithmetic, on CPU tensors: what is summed with what, and how far off exp, log and division may be.

Written from what is published of the structure of PyTorch's softmax and reduction kernels (a warp for a row of up to
1,024 or 2,048 classes, a block beyond, sums in float32 for halves, four accumulators a thread), and from the table of
the CUDA C++ Programming Guide, "Mathematical Functions": expf 2 ulp, logf 1, exp and log of doubles 1, __expf
2 + 1.173 |x|, an approximate division 2. No CUDA device computes anything here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

HALVES = (torch.float16, torch.bfloat16)
WARP, BLOCK = 32, 1_024


@dataclass(frozen=True)
class Arithmetic:
    """`bias`: the sign of every error of exp, log and division; 0 for signs at random.

    `slope`: ulp that exp loses for each unit of its argument. `warp`: the most classes that a warp takes. `threads`: of
    a sum. `online`: one pass over the classes with a running maximum, which rescales the sum, as Inductor writes it.
    """

    bias: int = 0
    slope: float = 0.0
    division: float = 0.5
    warp: int = 1_024
    threads: int = WARP
    online: bool = False


class Cuda(TorchDispatchMode):
    """Within it, what torch's paths compute has that arithmetic."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.of, self.random = arithmetic, torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kernel = getattr(self, f"_{func.overloadpacket.__name__.strip('_')}", None)
        if kernel is None or not args[0].is_floating_point() or not args[0].numel():
            return func(*args, **(kwargs or {}))
        result = kernel(*args, **(kwargs or {}))
        return args[0].copy_(result) if func._schema.is_mutable else result

    # Functions of one number: the furthest from the exact result that the table allows.

    def _off(self, exact: Tensor, like: Tensor, ulps: Tensor | float) -> Tensor:
        """`exact`, in binary64, as a number of `like`'s format, up to `ulps` away."""
        signs = torch.randint(0, 2, exact.shape, generator=self.random) * 2.0 - 1.0
        signs = signs if not self.of.bias else torch.full_like(signs, self.of.bias)
        precision, least = (24, -149) if like.dtype == torch.float32 else (53, -1074)
        rounded = exact.to(like.dtype)
        spacing = torch.exp2((torch.frexp(rounded.double())[1] - precision).clamp(min=least).double())
        if like.dtype == torch.float64:  # rounding to nearest has taken half an ulp
            moved = rounded + signs * torch.floor(torch.as_tensor(ulps) - 0.5) * spacing
        else:
            moved = (exact + signs * ulps * spacing).to(like.dtype)
            far = (moved.double() - exact).abs() > ulps * spacing
            moved = torch.where(far, (moved.double() - signs * spacing).to(like.dtype), moved)
        return torch.where(rounded.isfinite() & (rounded != 0), moved, rounded)

    def exp(self, x: Tensor) -> Tensor:
        exact = torch.exp(x.double())
        ulps = 2.0 if x.dtype == torch.float32 else 1.0
        return torch.where(x == 0, 1.0, self._off(exact, x, ulps + self.of.slope * x.double().abs()).clamp(min=0))

    def log(self, x: Tensor) -> Tensor:
        return self._off(torch.log(x.double()), x, 1.0)

    def divide(self, x: Tensor, y: Tensor) -> Tensor:
        return x / y if self.of.division == 0.5 else self._off(x.double() / y.double(), x, self.of.division)

    def _exp(self, x: Tensor) -> Tensor:
        return self.exp(_wide(x)).to(x.dtype)

    def _log(self, x: Tensor) -> Tensor:
        return self.log(_wide(x)).to(x.dtype)

    def _xlogy(self, x: Tensor, y: Tensor) -> Tensor:
        product = _wide(x) * self.log(_wide(y))
        return torch.where((x == 0) & ~y.isnan(), 0.0, product).to(x.dtype)

    # Sums.

    def _row_sum(self, x: Tensor) -> Tensor:
        """Of softmax: a warp's lanes, or a block's threads, each one term after the other; then those in pairs."""
        classes = x.shape[-1]
        threads = WARP if classes <= self.of.warp else min(BLOCK, 2 ** floor(torch.tensor(classes / 4).log2()))
        return _in_pairs(_one_by_one(_spread(x, threads)))

    def _sum(self, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
        """Four accumulators a thread, added up, then the threads in pairs."""
        dims = sorted(d % x.dim() for d in dim) if dim else list(range(x.dim()))
        kept = [d for d in range(x.dim()) if d not in dims]
        rows = _wide(x).permute(*kept, *dims).reshape(*(x.shape[d] for d in kept), prod(x.shape[d] for d in dims))
        parts = _one_by_one(_spread(rows, 4 * self.of.threads))
        total = _in_pairs(_one_by_one(parts.reshape(*parts.shape[:-1], self.of.threads, 4).transpose(-1, -2)))
        shape = [1 if d in dims else x.shape[d] for d in range(x.dim())] if keepdim else total.shape
        return total.reshape(shape).to(dtype or x.dtype)

    # Kernels of rows.

    def _exponentials(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shifted logits, their exponentials and the sum of those."""
        shifted = x - x.amax(-1, keepdim=True)
        return shifted, self.exp(shifted), (self._running(x) if self.of.online else self._row_sum(self.exp(shifted)))

    def _running(self, x: Tensor) -> Tensor:
        """The sum of exponentials in one pass: each lane rescales to its maximum so far, and pairs to the larger."""
        lanes = _spread(x, WARP, -torch.inf)
        top, total = lanes[..., 0, :], torch.ones_like(lanes[..., 0, :])
        total = torch.where(top == -torch.inf, 0.0, total)
        for term in lanes.unbind(-2)[1:]:
            new = torch.maximum(top, term)
            total = total * self._scale(top, new) + self._scale(term, new)
            top = new
        while top.shape[-1] > 1:
            (a, b), (s, t) = top.chunk(2, -1), total.chunk(2, -1)
            top = torch.maximum(a, b)
            total = s * self._scale(a, top) + t * self._scale(b, top)
        return total[..., 0]

    def _scale(self, x: Tensor, top: Tensor) -> Tensor:
        return torch.where(x == -torch.inf, 0.0, self.exp(torch.where(x == -torch.inf, 0.0, x - top)))

    def _softmax(self, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
        _, exponentials, total = self._exponentials(_wide(x).movedim(dim, -1))
        return _back(self.divide(exponentials, total.unsqueeze(-1)), x, dim, half_to_float)

    def _log_softmax(self, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
        shifted, _, total = self._exponentials(_wide(x).movedim(dim, -1))
        return _back(shifted - self.log(total).unsqueeze(-1), x, dim, half_to_float)

    def _logsumexp(self, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
        """Made of other operations, each of which stores its result."""
        top = x.amax(dim, keepdim=True)
        total = self._log(self._sum(self._exp(x - top), dim, True)) + top
        return total if keepdim else total.squeeze(dim)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALVES else x


def _back(result: Tensor, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return result.movedim(-1, dim).to(torch.float32 if half_to_float else x.dtype)


def _spread(x: Tensor, threads: int, filler: float = 0.0) -> Tensor:
    """(..., n) as (..., terms, threads): thread t takes the terms t, t + threads, ..."""
    short = -x.shape[-1] % threads
    return pad(x, (0, short), value=filler).reshape(*x.shape[:-1], -1, threads)


def _one_by_one(terms: Tensor) -> Tensor:
    """Sums over the last dimension but one, in order."""
    total = terms[..., 0, :].clone()
    for term in terms.unbind(-2)[1:]:
        total = total + term
    return total


def _in_pairs(x: Tensor) -> Tensor:
    """Sums over the last dimension, a power of two: each with the one half the way off, as warps shuffle."""
    while x.shape[-1] > 1:
        a, b = x.chunk(2, -1)
        x = a + b
    return x[..., 0]
