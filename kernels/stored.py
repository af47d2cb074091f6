"""Whole buffers read and written in NumPy, in any format."""

from typing import Any

import numpy as np

from fastadam.kernels.texts import casts
from fastadam.kernels.texts.formats import EXPONENT_GROUP, Formats

# Words that round to nearest in the place of random ones.
_HALF = {name: np.uint32(1 << (15 if name == "low_word" else 31)) for name in casts.TURNED}


def load(formats: Formats, buffer: str, flats: dict[str, Any]) -> Any:
    """The values of a buffer: `flats` itself has them, if it is of the dtype of the arithmetic."""
    names = {**vars(casts), **flats}
    if buffer in formats.blocked:
        names[f"{buffer}_first"] = _first_codes(flats[f"{buffer}_exponent"], flats[buffer].size)
    return eval(formats.load(buffer, "{}"), names)


def store(
    formats: Formats, buffer: str, value: Any, flats: dict[str, Any], random: dict[str, Any] | None = None
) -> None:
    """Write `value` into the flat arrays of a buffer.

    `random` has the random words of what is rounded stochastically; without them codes are rounded to nearest.
    """
    names = {**vars(casts), "value": value, **(random or _HALF)}
    if buffer in formats.blocked:
        chosen, firsts = formats.codes(buffer), np.arange(0, value.size, EXPONENT_GROUP)
        sizes = eval(chosen.size.format(value="value"), names)
        largest = np.maximum.reduceat(sizes, firsts) if value.size else np.zeros(0, np.uint32)
        flats[f"{buffer}_exponent"][...] = casts.shared_exponent(largest, chosen.octaves)
        names[f"{buffer}_first"] = _first_codes(flats[f"{buffer}_exponent"], value.size)
    for flat, expression in formats.stores(buffer, "value"):
        stored = eval(expression, names)
        if stored is not flats[flat]:
            flats[flat][...] = stored


def _first_codes(exponents, size):
    return np.repeat(casts.first_code(exponents), EXPONENT_GROUP)[:size]
