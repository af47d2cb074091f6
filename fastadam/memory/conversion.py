"""States in one format as states in another, on request."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastadam.kernels import stored
from fastadam.kernels.texts.formats import EXPONENT_GROUP, Formats
from fastadam.kernels.texts.member import Member
from fastadam.memory.arrays import as_array, as_bits, check_dtype, dtype_name, moved, on_host
from fastadam.memory.layout import Layout, plain
from fastadam.memory.parameters import Parameter


def converted(
    entry: Mapping[str, Any], key: str, label: str, parameter: Parameter, buffer: str, member: Member
) -> dict[str, Any]:
    """Flat array -> what it is to hold of a parameter: `entry[key]`, rounded to nearest to its format, 1-D."""
    # Zero is added to make -0.0 one of the two zeros that has the code zero.
    values = _values(entry, key, label, buffer, member).astype(parameter.arithmetic, copy=False) + 0.0
    if values.shape != parameter.shape:
        raise ValueError(f"`{label}['{key}']` must have shape {parameter.shape} like its parameter, got {values.shape}")
    if buffer in member.buffers and not member.buffers[buffer].signed and (values < 0.0).any():
        raise ValueError(f"`{label}['{key}']` must be >= 0, got {values.min()}")
    formats = parameter.formats.nearest
    targets = {flat: parameter.flat(flat) for flat in formats.flats(buffer)}
    held = {flat: np.empty(target.size, as_bits(target).dtype) for flat, target in targets.items()}
    with np.errstate(all="ignore"):
        stored.store(formats, buffer, parameter.layout.flat(values), held)
        back = stored.load(formats, buffer, held)
    if np.isfinite(values).all() and not np.isfinite(back).all():
        raise ValueError(
            f"`{label}['{key}']` must be within the range of {formats[buffer]}, got {np.abs(values).max()}"
        )
    return {flat: moved(held[flat].view(target.dtype), target) for flat, target in targets.items()}


def _values(entry, key, label, buffer, member):
    """What `entry[key]` holds, in any format that is recognised by its dtype and by the exponents beside it."""
    original = as_array(entry[key], f"{label}['{key}']")
    array = on_host(original)
    if f"{key}_exponent" in entry:
        exponents = on_host(as_array(entry[f"{key}_exponent"], f"{label}['{key}_exponent']"))
        check_codes(array, exponents, key, label)
        formats, layout = Formats(**{buffer: member.format(buffer, "float8")}), saved_layout(entry, label, array.shape)
        with np.errstate(all="ignore"):
            flats = {buffer: layout.flat(array), f"{buffer}_exponent": exponents}
            return layout.view(stored.load(formats, buffer, flats))
    check_dtype(original, f"{label}['{key}']")
    name = dtype_name(original)
    if name in ("float32", "float64"):
        return array
    with np.errstate(all="ignore"):
        return stored.load(Formats(**{buffer: name}), buffer, {buffer: array.view(np.uint16)})


def saved_layout(entry: Mapping[str, Any], label: str, shape: tuple[int, ...]) -> Layout:
    """The order of memory in which the groups of codes in `entry` lie: that of C unless it says otherwise."""
    if "layout" not in entry:
        return plain(shape)
    try:
        order, backwards = (tuple(int(axis) for axis in axes) for axes in entry["layout"])
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{label}['layout']` must be two lists of axes, got {entry['layout']!r}") from error
    if sorted(order) != list(range(len(shape))) or not set(backwards) <= set(order):
        raise ValueError(f"`{label}['layout']` must be two lists of axes of shape {shape}, got {entry['layout']!r}")
    return Layout(shape, order, backwards)


def check_codes(codes: Any, exponents: Any, key: str, label: str) -> None:
    """Raise unless `codes` are 8-bit codes with an exponent for each group of `EXPONENT_GROUP`.

    They are items of the mapping `label`, or arguments if that is empty.
    """
    label, of_exponents = (f"{label}['{name}']" if label else name for name in (key, f"{key}_exponent"))
    for name, array in ((label, codes), (of_exponents, exponents)):
        if array.dtype != np.uint8:
            raise TypeError(f"`{name}` must be uint8, got {array.dtype}")
    groups = (-(-codes.size // EXPONENT_GROUP),)
    if exponents.shape != groups:
        raise ValueError(
            f"`{of_exponents}` must have shape {groups}, one for each group of {EXPONENT_GROUP} codes, got "
            f"{exponents.shape}"
        )
