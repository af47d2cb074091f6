"""Integers in ascending order, and the sums of what belongs to equal ones."""

from typing import Any

import numpy as np

from fastadam.kernels.texts.casts import to_bfloat16
from fastadam.memory.arrays import dtype_name, moved, on_host, widened


def ascending(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`values`, integers >= 0, in ascending order, and where each stood; equal ones keep their order.

    Numbers and positions are sorted as one integer, which is several times as fast as `argsort`.
    """
    bits = max(1, len(values) - 1).bit_length()
    keys = np.sort(values << bits | np.arange(len(values)))
    return keys >> bits, keys & ((1 << bits) - 1)


def distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct `values`, and for each value which of them it is."""
    ordered, order = ascending(values)
    first = begins(ordered)
    places = np.empty(len(values), np.int64)
    places[order] = np.cumsum(first) - 1
    return ordered[first], places


def begins(ordered: np.ndarray) -> np.ndarray:
    """Where a new value begins, in values in order."""
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return first


def sums(values: Any, order: np.ndarray, starts: np.ndarray) -> Any:
    """The sums of the rows of `values`, taken in `order`, from each of `starts` to the next.

    Those of 16 bits are added up in float32.

    On a GPU they are made on the host: an atomic addition there would add in any order.
    """
    wide = widened(on_host(values))
    is_bfloat16 = dtype_name(values) == "bfloat16"
    with np.errstate(over="ignore"):
        summed = np.add.reduceat(wide[order], starts, axis=0)
        stored = to_bfloat16(summed).view(values.dtype) if is_bfloat16 else summed.astype(values.dtype, copy=False)
    return moved(stored, values)
