"""States in one format as states in another, on request."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from fastadam.kernels import stored
from fastadam.kernels.texts.formats import EXPONENT_BLOCK, Storage
from fastadam.memory.arrays import as_array, check_dtype, dtype_name, moved, on_host
from fastadam.memory.buffers import Buffers


def converted(
    entry: Mapping[str, Any], key: str, label: str, buffers: Buffers, name: Hashable, buffer: str
) -> dict[str, Any]:
    """Flat array -> what it is to hold for parameter `name`: `entry[key]`, rounded to nearest to its format."""
    shape = buffers.segments[name].shape
    # Zero is added to make -0.0 one of the two zeros that has the code zero.
    values = _values(entry, key, label, buffer).astype(buffers.arithmetic, copy=False) + 0.0
    if values.shape != shape:
        raise ValueError(f"`{label}['{key}']` must have shape {shape} like its parameter, got {values.shape}")
    if buffer in ("v", "v_max") and (values < 0.0).any():
        raise ValueError(f"`{label}['{key}']` must be >= 0, got {values.min()}")
    storage = buffers.storage.nearest
    targets = {flat: buffers.part(name, flat) for flat in storage.flats(buffer)}
    held = {flat: np.empty(target.size, buffers.flat(flat).dtype) for flat, target in targets.items()}
    with np.errstate(all="ignore"):
        stored.store(storage, buffer, values.reshape(-1), held)
        kept = stored.load(storage, buffer, held)
    if np.isfinite(values).all() and not np.isfinite(kept).all():
        raise ValueError(
            f"`{label}['{key}']` must be within the range of {getattr(storage, buffer)}, got {np.abs(values).max()}"
        )
    return {
        flat: moved(held[flat].view(target.dtype).reshape(target.shape), target) for flat, target in targets.items()
    }


def _values(entry, key, label, buffer):
    """What `entry[key]` holds, in any format that is recognised by its dtype and by the exponents beside it."""
    original = as_array(entry[key], f"{label}['{key}']")
    array = on_host(original)
    if f"{key}_exponent" in entry:
        exponents = on_host(as_array(entry[f"{key}_exponent"], f"{label}['{key}_exponent']"))
        check_codes(array, exponents, key, label)
        flats = {buffer: array.reshape(-1), f"{buffer}_exponent": exponents}
        with np.errstate(all="ignore"):
            return stored.load(Storage(**{buffer: "float8"}), buffer, flats).reshape(array.shape)
    check_dtype(original, f"{label}['{key}']")
    name = dtype_name(original)
    if name in ("float32", "float64"):
        return array
    with np.errstate(all="ignore"):
        return stored.load(Storage(**{buffer: name}), buffer, {buffer: array.view(np.uint16)})


def check_codes(codes: Any, exponents: Any, key: str, label: str) -> None:
    """Raise unless `codes` are 8-bit codes with an exponent for each block of `EXPONENT_BLOCK`.

    They are items of the mapping `label`, or arguments if that is empty.
    """
    label, of_exponents = (f"{label}['{name}']" if label else name for name in (key, f"{key}_exponent"))
    for name, array in ((label, codes), (of_exponents, exponents)):
        if array.dtype != np.uint8:
            raise TypeError(f"`{name}` must be uint8, got {array.dtype}")
    blocks = (-(-codes.size // EXPONENT_BLOCK),)
    if exponents.shape != blocks:
        raise ValueError(
            f"`{of_exponents}` must have shape {blocks}, one for each block of {EXPONENT_BLOCK} codes, got "
            f"{exponents.shape}"
        )
