"""Gradients of single rows, for embedding tables: only those rows are read and written."""

from typing import Any, NamedTuple

import numpy as np

from fastadam.kernels.texts.formats import EXPONENT_GROUP
from fastadam.memory.arrays import as_indices
from fastadam.memory.parameters import Parameter
from fastadam.step.duplicates import ascending, begins, sums


class SparseRows(NamedTuple):
    """The gradient of a parameter that is zero except in some rows.

    Args:
        indices: Rows of the parameter (of its first axis), integers, shape (k,). A row may occur more than once.
        values: Their gradients, shape (k, ...) with the shape of the parameter's rows, of its dtype and device. The
            values of a row that occurs more than once are added up. They are only read, also with `zero_grad`.

    Example:
        >>> import numpy as np, fastadam
        >>> params = {"table": np.zeros((1000, 2), np.float32)}
        >>> opt = fastadam.Adam(params, lr=0.1)
        >>> opt.step({"table": fastadam.SparseRows([3, 7], np.array([[1, -1], [2, 0]], np.float32))})
        >>> params["table"][3].round(6)
        array([-0.1,  0.1], dtype=float32)
    """

    indices: Any
    values: Any


class Rows(NamedTuple):
    """A checked `SparseRows`: distinct rows in ascending order.

    Attributes:
        indices: The rows, on the host.
        offsets: Where the gradient of each begins in `values`, in elements.
        values: The gradients, flat.
    """

    indices: np.ndarray
    offsets: np.ndarray
    values: Any

    @property
    def size(self) -> int:
        """How many elements the gradients have."""
        return self.values.size


def ordered_rows(indices: np.ndarray, values: Any, parameter: Parameter, label: str) -> Rows:
    """The gradient of `parameter` with these contiguous `values` of rows; those of the same row are added up."""
    shape = parameter.shape
    if not parameter.layout.plain:
        raise ValueError(f"`{label}` must be an array for a parameter whose rows do not lie one after the other")
    width = parameter.size // shape[0] if shape[0] else 0
    if parameter.formats.blocked and width % EXPONENT_GROUP:
        raise ValueError(
            f"`{label}` must be an array with `moment_dtype` 'float8', got SparseRows of {width} elements a row: only "
            f"rows of a multiple of {EXPONENT_GROUP} have groups of codes of their own"
        )
    _check_range(indices, shape[0], f"{label}.indices")
    ordered, order = ascending(indices)
    first = begins(ordered)
    if first.all():
        return Rows(ordered, order * width, values.reshape(-1))
    starts = np.flatnonzero(first)
    return Rows(ordered[starts], np.arange(len(starts)) * width, sums(values, order, starts).reshape(-1))


def _check_range(indices, count, label):
    """Raise unless `indices` are rows of a parameter that has `count` of them."""
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        outside = indices[(indices < 0) | (indices >= count)]
        raise ValueError(f"`{label}` must be in [0, {count}), got {int(outside[0])}")


def row_indices(indices: Any, count: int, label: str) -> np.ndarray:
    """`indices` as int64 on the host; raise unless they are rows of a parameter that has `count`."""
    array = as_indices(indices, label)
    _check_range(array, count, label)
    return array
