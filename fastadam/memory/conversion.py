"""Saved states are converted from one storage format to another, on request."""

from collections.abc import Mapping
from operator import index
from typing import Any

import numpy as np

from fastadam.kernels import stored
from fastadam.kernels.texts.formats import EXPONENT_GROUP, Formats
from fastadam.kernels.texts.member import Member
from fastadam.memory.arrays import as_array, as_bits, check_dtype, on_host, saved_dtype_name
from fastadam.memory.layout import Layout, plain
from fastadam.memory.parameters import Parameter


def converted(
    entry: Mapping[str, Any], key: str, label: str, parameter: Parameter, buffer: str, member: Member
) -> dict[str, Any]:
    """Flat array -> its new contents for a parameter: `entry[key]`, rounded to nearest to the format.

    They are bits on the host, in the shape of the parameter; exponents are 1-D.
    """
    # Adding zero turns -0.0 into 0.0, which has the code zero.
    values = _values(entry, key, label, buffer, member).astype(parameter.arithmetic, copy=False) + 0.0
    if values.shape != parameter.shape:
        raise ValueError(f"`{label}['{key}']` must have shape {parameter.shape} like its parameter, got {values.shape}")
    if buffer in member.buffers and not member.buffers[buffer].signed and (values < 0.0).any():
        raise ValueError(f"`{label}['{key}']` must be >= 0, got {values.min()}")
    formats, buffers = parameter.formats.nearest, parameter.buffers
    dtypes = {flat: buffers.dtype(flat) for flat in formats.flats(buffer)}
    sizes = {flat: groups_of(values.size) if flat.endswith("_exponent") else values.size for flat in dtypes}
    held = {flat: as_bits(np.empty(sizes[flat], dtype)) for flat, dtype in dtypes.items()}
    with np.errstate(all="ignore"):
        stored.store(formats, buffer, parameter.layout.flat(values), held)
        back = stored.load(formats, buffer, held)
    if np.isfinite(values).all() and not np.isfinite(back).all():
        raise ValueError(
            f"`{label}['{key}']` must be within the range of {formats[buffer]}, got {np.abs(values).max()}"
        )
    layout = parameter.layout
    return {flat: each if flat.endswith("_exponent") else layout.view(each) for flat, each in held.items()}


def _values(entry, key, label, buffer, member):
    """The values of `entry[key]`. Its dtype and the exponents beside it, if any, tell the format."""
    original = as_array(entry[key], f"{label}['{key}']")
    array = on_host(original)
    if f"{key}_exponent" in entry:
        exponents = on_host(as_array(entry[f"{key}_exponent"], f"{label}['{key}_exponent']"))
        check_codes(array, exponents, key, label)
        formats, layout = Formats(**{buffer: member.format(buffer, "float8")}), saved_layout(entry, label, array.shape)
        with np.errstate(all="ignore"):
            flats = {buffer: layout.flat(array), f"{buffer}_exponent": exponents}
            return layout.view(stored.load(formats, buffer, flats))
    name = saved_dtype_name(original)
    if name != "bfloat16":
        check_dtype(original, f"{label}['{key}']")
    if buffer == "p" and "remainder" in entry and name == "bfloat16":
        return _masters(entry, label, array)
    if name in ("float32", "float64"):
        return array
    with np.errstate(all="ignore"):
        return stored.load(Formats(**{buffer: name}), buffer, {buffer: array.view(np.uint16)})


def _masters(entry, label, array):
    """The float32 values of bfloat16 parameters whose other bits are beside them."""
    remainder = on_host(as_array(entry["remainder"], f"{label}['remainder']"))
    if remainder.dtype != np.uint16 or remainder.shape != array.shape:
        raise TypeError(
            f"`{label}['remainder']` must be uint16 of shape {array.shape} like its parameter, got {remainder.dtype} "
            f"of shape {remainder.shape}"
        )
    return stored.load(Formats(p="split"), "p", {"p": array.view(np.uint16), "remainder": remainder})


def saved_layout(entry: Mapping[str, Any], label: str, shape: tuple[int, ...]) -> Layout:
    """The memory order of the exponent groups in `entry`: C order unless "layout" says otherwise."""
    if "layout" not in entry:
        return plain(shape)
    try:
        axes = [index(axis) for axis in entry["layout"]]
    except TypeError as error:
        raise TypeError(f"`{label}['layout']` must be a list of integers, got {entry['layout']!r}") from error
    if sorted(max(axis, ~axis) for axis in axes) != list(range(len(shape))):
        raise ValueError(
            f"`{label}['layout']` must have each axis of shape {shape} once, as axis or -1 - axis, got {axes}"
        )
    return Layout.of_axes(shape, axes)


def groups_of(size: int) -> int:
    """How many exponent groups `size` elements have."""
    return -(-size // EXPONENT_GROUP)


def check_codes(codes: Any, exponents: Any, key: str, label: str) -> None:
    """Raise unless `codes` are 8-bit codes with an exponent for each group of `EXPONENT_GROUP`.

    Error messages call them items of the mapping `label`, or arguments if `label` is empty.
    """
    label, of_exponents = (f"{label}['{name}']" if label else name for name in (key, f"{key}_exponent"))
    for name, array in ((label, codes), (of_exponents, exponents)):
        if array.dtype != np.uint8:
            raise TypeError(f"`{name}` must be uint8, got {array.dtype}")
    groups = (groups_of(codes.size),)
    if exponents.shape != groups:
        raise ValueError(
            f"`{of_exponents}` must have shape {groups}, one for each group of {EXPONENT_GROUP} codes, got "
            f"{exponents.shape}"
        )
