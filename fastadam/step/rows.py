"""Gradients of single rows, for embedding tables: only those rows are read and written."""

from typing import Any, NamedTuple

import numpy as np

from fastadam.kernels.texts import casts
from fastadam.kernels.texts.formats import EXPONENT_GROUP
from fastadam.memory.arrays import as_array, check_device, check_native, dtype_name, namespace, on_host, widened
from fastadam.memory.parameters import Parameter


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


def checked_rows(rows: SparseRows, parameter: Parameter, dtype: np.dtype, device_of: Any, label: str) -> Rows:
    """`rows` as the gradient of `parameter`, whose gradients are of this dtype and on the device of an array."""
    shape = parameter.shape
    if not shape:
        raise ValueError(f"`{label}` must be an array for a parameter without rows, got SparseRows")
    if not parameter.layout.plain:
        raise ValueError(f"`{label}` must be an array for a parameter whose rows do not lie one after the other")
    width = parameter.size // shape[0] if shape[0] else 0
    if parameter.formats.blocked and width % EXPONENT_GROUP:
        raise ValueError(
            f"`{label}` must be an array with `moment_dtype` 'float8', got SparseRows of {width} elements a row: only "
            f"rows of a multiple of {EXPONENT_GROUP} have groups of codes of their own"
        )
    indices = row_indices(rows.indices, shape[0], f"{label}.indices")
    values = as_array(rows.values, f"{label}.values")
    if values.dtype != dtype:
        raise TypeError(
            f"`{label}.values` must be {dtype} like the gradient of {len(indices)} rows, got {values.dtype}"
        )
    check_native(values, f"{label}.values")
    if values.shape != (len(indices), *shape[1:]):
        raise ValueError(
            f"`{label}.values` must have shape {(len(indices), *shape[1:])} like the gradient of {len(indices)} rows, "
            f"got {values.shape}"
        )
    check_device(values, device_of, f"{label}.values", "the parameters")
    values = namespace(values).ascontiguousarray(values)
    if isinstance(values, np.ndarray) and not values.flags.aligned:
        values = values.copy()
    ascending, order = _sorted(indices)
    first = _is_first(ascending)
    if first.all():
        return Rows(ascending, order * width, values.reshape(-1))
    starts = np.flatnonzero(first)
    # On a GPU the sums are made on the host: an atomic addition there would add in any order.
    host = on_host(values)
    with np.errstate(over="ignore"):
        sums = np.add.reduceat(widened(host)[order], starts, axis=0)
    return Rows(ascending[starts], np.arange(len(starts)) * width, _narrowed(sums, values).reshape(-1))


def _narrowed(sums, values):
    """`sums` in the dtype and on the device of `values`."""
    if dtype_name(values) == "bfloat16":
        sums = casts.to_bfloat16(sums).view(values.dtype)
    with np.errstate(over="ignore"):
        return namespace(values).asarray(sums.astype(values.dtype, copy=False))


def row_indices(indices: Any, count: int, label: str) -> np.ndarray:
    """`indices` as int64 on the host; raise unless they are rows of a parameter that has `count`."""
    array = as_array(indices if hasattr(indices, "__dlpack__") else np.asarray(indices), label)
    array = on_host(array)
    if array.size == 0 and array.dtype == np.float64:  # an empty list
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"`{label}` must be integers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"`{label}` must be 1-D, got shape {array.shape}")
    outside = (array < 0) | (array >= count)
    if outside.any():
        raise ValueError(f"`{label}` must be in [0, {count}), got {int(array[outside][0])}")
    return array.astype(np.int64, copy=False)


def _sorted(values):
    """`values`, integers >= 0, in ascending order, and where each stood; equal ones keep their order.

    Numbers and positions are sorted as one integer, which is several times as fast as `argsort`.
    """
    bits = max(1, len(values) - 1).bit_length()
    keys = np.sort(values << bits | np.arange(len(values)))
    return keys >> bits, keys & ((1 << bits) - 1)


def distinct(values):
    """The distinct `values`, and for each value which of them it is."""
    ascending, order = _sorted(values)
    first = _is_first(ascending)
    places = np.empty(len(values), np.int64)
    places[order] = np.cumsum(first) - 1
    return ascending[first], places


def _is_first(ascending):
    """Where a new value begins."""
    first = np.ones(len(ascending), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
    return first
