"""What a path declares about its roundings, from which its bound is derived."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from audit.base.formats import FORMATS, Format
from audit.base.usage import UsageError, check_word

_WORDS = {
    "target": ("softmax", "log_softmax", "log_probs", "given", "any"),
    "input": ("log_softmax", "softmax", "log_probs", "probs", "any"),
    "storage": ("", "compute", *FORMATS),
    "compute": ("", *FORMATS),
    "result": ("", "logits", *FORMATS),
}


def is_power_of_two(number: object) -> bool:
    return isinstance(number, (int, float)) and number > 0 and math.frexp(number)[0] == 0.5


@dataclass(frozen=True)
class Rounding:
    """Where a path rounds. The defaults are what a kernel that declares nothing may do: any order, any sound form.

    - `target`: how the target's probabilities come about: "softmax", "log_softmax" (their logarithms are rounded, and
      their exponentials again), "log_probs" (the target is their logarithms), "given" (it is them), or "any" of these.
    - `input`: how the input's log-probabilities do: "log_softmax", "softmax" (probabilities are rounded, underflow
      included, and their logarithms again), "log_probs" (they are the input), "probs" (the input is probabilities,
      whose logarithms are rounded), or "any" way that rounds no underflowed probability.
    - `storage`: the format every intermediate tensor is rounded to; "" is the dtype of the case, "compute" the format
      inside a kernel: nothing is rounded on the way.
    - `compute`: the format inside a kernel; "" is float32 for halves and the storage format for the others.
    - `result`: the format of the sum over classes; "" is the storage format, "logits" the dtype of the case.
    - `separate`: sums p log p and p log q apart, so that their summation errors do not cancel with the terms.
    - `masses`: adds q - p to each term, as the generalised KL does.
    - `cascade`: sums in at least four partial sums, as torch does; else every term may meet an error in each step,
      and an online normaliser rescales at each.
    - `pairs`: sums in pairs, whatever `cascade` says: of the declared formats and roundings, what is attainable.
    - `temperature`: divides the logits by it first, a power of two, and multiplies the result by its square.
    - `exp_slope`: the error of exp(a) is at most (4 + exp_slope |a|) u; 3 covers exp2(a * log2(e)) and `__expf`.
    """

    target: str = "any"
    input: str = "any"
    storage: str = ""
    compute: str = ""
    result: str = ""
    separate: bool = True
    masses: bool = False
    cascade: bool = False
    pairs: bool = False
    temperature: float = 1.0
    exp_slope: float = 3.0

    def __post_init__(self) -> None:
        for what, known in _WORDS.items():
            check_word(getattr(self, what), known, f"Rounding: {what}")
        if not is_power_of_two(self.temperature):
            raise UsageError(f"Rounding: temperature {self.temperature!r}: expected a power of two")
        if not isinstance(self.exp_slope, (int, float)) or not 0 <= self.exp_slope < math.inf:
            raise UsageError(f"Rounding: exp_slope {self.exp_slope!r}: expected a number, 0 or more")

    def formats(self, dtype: str) -> tuple[Format, Format, Format]:
        """Of what is stored, of what kernels compute in, and of the result, where logits are of a dtype."""
        stored = dtype if self.storage in ("", "compute") else self.storage
        halves = FORMATS[stored].precision < FORMATS["float32"].precision
        compute = self.compute or ("float32" if halves else stored)
        storage = compute if self.storage == "compute" else stored
        result = dtype if self.result == "logits" else self.result or storage
        return FORMATS[storage], FORMATS[compute], FORMATS[result]


# What nearly every fused kernel keeps: float32 inside (float64 for float64), any order, a result in the logits' dtype.
FUSED = Rounding(storage="compute", result="logits")


class Promise(NamedTuple):
    """What a path says of itself that its bound depends on: its kind, how it reduces rows, where it rounds, and for
    tokens the quantity it gives."""

    kind: str
    reduction: str
    rounding: Rounding
    quantity: str = ""


# softmax, log_softmax and p (log p - log q), with a library's exp: what sums in any order, and what sums as torch does.
ANY_ORDER = Rounding("softmax", "log_softmax", separate=False, exp_slope=0.0)
PLAIN = replace(ANY_ORDER, cascade=True)


def torch_rounding(target: str = "softmax", input: str = "log_softmax", **others: Any) -> Rounding:
    """What torch's own kernels promise by their structure: `PLAIN`, but for what is named."""
    return replace(PLAIN, target=target, input=input, **others)
