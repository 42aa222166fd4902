"""Tensors, arrays and nested lists as binary64 rows holding exactly the numbers given."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit.base.usage import UsageError, check_word

Rows = NDArray[np.float64]
TENSOR_KINDS = ("logits", "log_probs", "probs")  # what the numbers may be
REDUCTIONS = ("none", "sum", "mean", "batchmean")  # how rows may become one value


def exact_values(values: Any, name: str, kind: str = "probs") -> Rows:
    """`values` as a binary64 array of the same shape, without any rounding.

    Taken are torch tensors and numpy arrays of floating or integer dtypes, and nested lists of numbers. Binary64 holds
    every float16, bfloat16, float32 and float64 exactly. Of integers that it does not hold, logits are taken less the
    largest of their row, which leaves every divergence as it is.

    Raises UsageError for another dtype, and for a number that binary64 cannot hold.
    """
    if hasattr(values, "detach"):
        tensor = values.detach()
        try:
            values = (tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu()).numpy()
        except (TypeError, RuntimeError) as error:  # sparse, nested, on the meta device
            raise UsageError(f"{name}: expected a dense tensor that holds numbers: {error}") from None
    if isinstance(values, np.ma.MaskedArray):
        raise UsageError(f"{name}: expected an array without a mask, got a masked array")
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fiu" and values.dtype.name != "bfloat16":
            raise UsageError(f"{name}: expected a floating or an integer dtype, got {values.dtype}")
        given = np.asarray(values, dtype=object if values.dtype.kind in "iu" else None)
    else:
        try:
            given = np.array(values, dtype=object)
        except (ValueError, RuntimeError):  # ragged, or nested without end
            given = np.array([None])
        if not all(isinstance(number, Real) for number in given.flat):
            raise UsageError(f"{name}: expected rows of numbers, all of one length")
    whole = kind == "logits" and given.dtype.kind == "O" and all(isinstance(n, Integral) for n in given.flat)
    if whole and given.ndim and max(map(abs, given.flat), default=0) > 2**53:
        given = given - given.max(axis=-1, keepdims=True)
    try:
        rows = given.astype(np.float64)
    except OverflowError:
        raise UsageError(f"{name}: holds a number beyond the range of binary64") from None
    if given.dtype.itemsize > 8 or given.dtype.kind == "O":
        # Python's comparison of an integer or a fraction with a float is exact; numpy's is not.
        for number, nearest in zip(given.flat, rows.ravel().tolist(), strict=True):
            if number != nearest and number == number:
                raise UsageError(f"{name}: {number!r} is not a binary64 number (nearest: {nearest!r})")
    return rows


def as_rows(values: Any, name: str, kind: str) -> tuple[Rows, tuple[int, ...]]:
    """`values` as rows x classes, and their shape; the classes lie along the last dimension."""
    array = exact_values(values, name, kind)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise UsageError(f"{name}: expected shape (..., classes), at least one class, got {array.shape}")
    return array.reshape(-1, array.shape[-1]), array.shape


def undefined(rows: Rows, kind: str) -> NDArray[np.bool_]:
    """Which rows are no distribution, whatever rounding does: a NaN or +inf, or logits that rule out every class."""
    wrong = ~(rows < np.inf).all(axis=1)
    return np.asarray(wrong | (kind == "logits") & (rows == -np.inf).all(axis=1))


def check_kind(rows: Rows, kind: str, name: str, first: int = 0) -> None:
    """Raises UsageError, naming row (counted from `first`) and column, for an entry that `kind` cannot have."""
    check_word(kind, TENSOR_KINDS, f"{name}_kind")
    wrong = np.isnan(rows) | (rows == np.inf)
    if kind == "probs":
        wrong |= rows < 0
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        allowed = "a finite number, 0 or more" if kind == "probs" else "a finite number or -inf"
        raise UsageError(f"{name}: row {row + first}, column {column} is {rows[row, column]}; {kind} must be {allowed}")
    if kind == "logits":
        empty = (rows == -np.inf).all(axis=1)
        if empty.any():
            raise UsageError(
                f"{name}: row {int(np.argmax(empty)) + first} is -inf in every column, which is no distribution"
            )
