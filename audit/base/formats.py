"""The four floating-point formats that are audited, as IEEE 754 (and bfloat16) define them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """`precision` significant bits (the hidden one counted); normal numbers are 2^minimum .. 2^(maximum+1)."""

    name: str
    precision: int
    minimum: int
    maximum: int

    @property
    def unit_roundoff(self) -> float:
        """u = 2^-precision: the largest relative error of rounding to nearest (Higham, section 2.1)."""
        return 2.0**-self.precision

    @property
    def smallest_subnormal(self) -> float:
        return 2.0 ** (self.minimum - self.precision + 1)

    @property
    def overflow_threshold(self) -> float:
        """The first number that does not fit even after rounding down; infinity where binary64 cannot hold it."""
        return 2.0 * 2.0**self.maximum if self.maximum < 1023 else float("inf")

    def ulp(self, exponent: int) -> float:
        """The spacing at numbers in [2^exponent, 2^(exponent+1)), never below the smallest subnormal."""
        exponent = min(max(exponent, self.minimum), self.maximum)
        return float(2.0 ** (exponent - self.precision + 1))


FORMATS = {
    f.name: f
    for f in (
        Format("float16", 11, -14, 15),
        Format("bfloat16", 8, -126, 127),
        Format("float32", 24, -126, 127),
        Format("float64", 53, -1022, 1023),
    )
}
