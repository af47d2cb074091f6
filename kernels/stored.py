"""Whole buffers read and written in NumPy, in any format."""

from typing import Any

import numpy as np

from fastadam.kernels.texts import casts
from fastadam.kernels.texts.formats import BLOCK_FORMATS, EXPONENT_BLOCK, Storage

# What rounds to nearest in the place of what rounds stochastically.
_HALF: dict[str, Any] = {
    "high_threshold": lambda word, turn, dropped: np.uint32(1 << (31 - dropped)),
    **dict.fromkeys(("word", "turn", "toss"), np.uint32(0)),
}


def load(storage: Storage, buffer: str, flats: dict[str, Any]) -> Any:
    """The values of a buffer: `flats` itself has them, if it is of the dtype of the arithmetic."""
    names = {**vars(casts), **flats}
    if buffer in storage.blocked:
        names[f"{buffer}_first"] = _first_codes(flats[f"{buffer}_exponent"], flats[buffer].size)
    return eval(storage.load(buffer, "{}"), names)


def store(
    storage: Storage, buffer: str, value: Any, flats: dict[str, Any], random: dict[str, Any] | None = None
) -> None:
    """Write `value` into the flat arrays of a buffer.

    `random` has `word`, `turn` and `toss`, for what is rounded stochastically; without it codes are rounded to nearest.
    """
    names = {**vars(casts), "value": value, **(random or _HALF)}
    if buffer in storage.blocked:
        chosen, firsts = BLOCK_FORMATS[buffer], np.arange(0, value.size, EXPONENT_BLOCK)
        sizes = eval(chosen.size.format(value="value"), names)
        largest = np.maximum.reduceat(sizes, firsts) if value.size else np.zeros(0, np.uint32)
        flats[f"{buffer}_exponent"][...] = casts.shared_exponent(largest, chosen.octaves)
        names[f"{buffer}_first"] = _first_codes(flats[f"{buffer}_exponent"], value.size)
    for flat, expression in storage.stores(buffer, "value"):
        stored = eval(expression, names)
        if stored is not flats[flat]:
            flats[flat][...] = stored


def _first_codes(exponents, size):
    return np.repeat(casts.first_code(exponents), EXPONENT_BLOCK)[:size]
