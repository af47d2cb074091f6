"""How buffers are stored: in the dtype of the arithmetic, in 16 bits, or in 8 bits with an exponent for each block.

A format says by which functions of :mod:`casts <fastadam.kernels.texts.casts>` an element is read and written, as
expressions that Python and C share.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

# Elements that share an exponent, in 8-bit moments. They are those of one parameter, counted from its first. With 64,
# 128 and 256 of them a step in the cache takes 0.42, 0.42 and 0.39 ns an element on one thread (bench/constants.py),
# and sqrt(v) is off by 9.2%, 9.5% and 10.1% (bench/quantisation.py).
EXPONENT_BLOCK = 128


class Format(NamedTuple):
    """How one element is stored.

    Attributes:
        dtypes: Of its flat arrays; "native" is the dtype of the arithmetic.
        load: Expression of the value, with `{0}` and `{1}` for what is in the flat arrays.
        stores: Expressions of what goes into the flat arrays, with `{value}` and `{threshold}`.
    """

    dtypes: tuple[str, ...]
    load: str
    stores: tuple[str, ...]


FORMATS = {
    "native": Format(("native",), "{0}", ("{value}",)),
    "bfloat16": Format(("uint16",), "from_bfloat16({0})", ("to_bfloat16({value})",)),
    "dithered": Format(("uint16",), "from_bfloat16({0})", ("dither_bfloat16({value}, {threshold})",)),
    "float16": Format(("uint16",), "from_float16({0})", ("to_float16({value})",)),
    # bfloat16 and what it lacks of float32.
    "split": Format(("uint16", "uint16"), "join_halves({0}, {1})", ("upper_half({value})", "lower_half({value})")),
}


class BlockFormat(NamedTuple):
    """How an element is stored whose block shares an exponent.

    Attributes:
        octaves: Below the largest of a block for which there are codes.
        size: Expression of the bits by which the largest of a block is found, with `{value}`.
        load: Expression of the value, with `{0}` for the code and `{first}` for what its exponent adds to it.
        store: Expression of the code, with `{value}`, `{first}` and `{threshold}`.
    """

    octaves: int
    size: str
    load: str
    store: str


BLOCK_FORMATS = {
    "m": BlockFormat(
        14, "size_of({value})", "decode_signed({0}, {first})", "encode_signed({value}, {first}, {threshold})"
    ),
    "v": BlockFormat(
        30, "bits_of({value})", "decode_unsigned({0}, {first})", "encode_unsigned({value}, {first}, {threshold})"
    ),
}
# Which bits of an element's random word round it: of bfloat16 16 bits are dropped, of codes 20. First moments change
# fast, parameters and second moments slowly.
_THRESHOLDS = {
    ("p", "dithered"): "low_threshold(word, turn)",
    ("m", "dithered"): "high_threshold(uint32(word << 8), toss, 16)",
    ("m", "float8"): "high_threshold(uint32(word << 8), toss, 12)",
    ("v", "dithered"): "high_threshold(word, turn, 16)",
    ("v", "float8"): "high_threshold(word, turn, 12)",
}


@dataclass(frozen=True)
class Storage:
    """The format of each buffer: a key of `FORMATS`, or "float8" for m and v."""

    p: str = "native"
    g: str = "native"
    m: str = "native"
    v: str = "native"
    v_max: str = "native"
    ema: str = "native"
    low: str = "native"

    @property
    def blocked(self) -> tuple[str, ...]:
        """Names of the buffers whose blocks share an exponent."""
        return tuple(name for name in ("m", "v") if getattr(self, name) == "float8")

    @property
    def dithers(self) -> bool:
        """Whether something is rounded stochastically."""
        return "dithered" in (self.p, self.m, self.v) or bool(self.blocked)

    @property
    def nearest(self) -> "Storage":
        """The same with nothing rounded stochastically but codes."""
        changed = {name: "bfloat16" for name in ("p", "m", "v") if getattr(self, name) == "dithered"}
        return replace(self, **changed)

    def arithmetic(self, p: Any) -> np.dtype:
        """The dtype of the arithmetic on parameters in the flat array `p`."""
        return p.dtype if self.p == "native" else np.dtype(np.float32)

    def flats(self, buffer: str) -> tuple[str, ...]:
        """Names of the flat arrays of a buffer."""
        second = {"split": ("remainder",), "float8": (f"{buffer}_exponent",)}
        return (buffer, *second.get(getattr(self, buffer), ()))

    def dtype(self, flat: str) -> str:
        """Of a flat array, as the kernels see it: "native", "uint16" or "uint8"."""
        if flat.endswith("_exponent") or flat in self.blocked:
            return "uint8"
        return "uint16" if flat == "remainder" else FORMATS[getattr(self, flat)].dtypes[0]

    def load(self, buffer: str, place: str) -> str:
        """Expression of the value of an element; `place` is how an element of a flat array is written, with `{}`."""
        flats = [place.format(flat) for flat in self.flats(buffer)]
        if buffer in self.blocked:
            return BLOCK_FORMATS[buffer].load.format(flats[0], first=f"{buffer}_first")
        return FORMATS[getattr(self, buffer)].load.format(*flats)

    def stores(self, buffer: str, value: str) -> list[tuple[str, str]]:
        """(flat array, expression of what goes there) for the element `value` of a buffer."""
        threshold = _THRESHOLDS.get((buffer, getattr(self, buffer)), "")
        if buffer in self.blocked:
            code = BLOCK_FORMATS[buffer].store.format(value=value, first=f"{buffer}_first", threshold=threshold)
            return [(buffer, code)]
        stores = FORMATS[getattr(self, buffer)].stores
        written = [store.format(value=value, threshold=threshold) for store in stores]
        return list(zip(self.flats(buffer), written, strict=True))


NATIVE = Storage()
