"""How buffers are stored: in the dtype of the arithmetic, in 16 bits, or in 8 bits with an exponent for each group.

A format says by which functions of :mod:`casts <fastadam.kernels.texts.casts>` an element is read and written, as
expressions that Python and C share.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# Elements that share an exponent, in 8-bit moments: an exponent group. They are those of one parameter, counted from
# its first. With 64, 128 and 256 of them a step in the cache takes 0.42, 0.42 and 0.39 ns an element on one thread
# (bench/tuning.py), and sqrt(v) is off by 9.2%, 9.5% and 10.1% (examples/quantisation.py).
EXPONENT_GROUP = 128


class Codes(NamedTuple):
    """How an exponent group finds its exponent.

    Attributes:
        octaves: There are codes for so many octaves below the largest of a group.
        size: Expression of the bits by which the largest of a group is found, with `{value}`.
    """

    octaves: int
    size: str


class Format(NamedTuple):
    """How one element is stored.

    Attributes:
        dtypes: Dtypes of its flat arrays; "native" is the dtype of the arithmetic.
        load: Expression of the value, with `{0}` and `{1}` for what is in the flat arrays. Of codes, `{0}` is the code
            and `{first}` what the exponent of its group adds to it.
        stores: Expressions of what goes into the flat arrays, with `{value}`, and with `{first}` for codes.
        nearest: The format that rounds to nearest and is read alike; codes are their own.
        word: Name of the random word by which it rounds stochastically; "" where it rounds to nearest.
        codes: What 8-bit codes have beside that; None for all else.
    """

    dtypes: tuple[str, ...]
    load: str
    stores: tuple[str, ...]
    nearest: str
    word: str = ""
    codes: Codes | None = None


# What is rounded stochastically has a random word, of another kind in each kind of buffers so that they are not
# correlated. The threshold has as many bits as are dropped, 16 for bfloat16 and 20 for codes: the upper ones of the
# word, and for parameters the lower ones. What changes fast is tossed anew at each step; what changes slowly takes its
# turn.
SPEEDS = ("fast", "slow", "slowest")
_SIGNED, _UNSIGNED = Codes(14, "size_of({value})"), Codes(30, "bits_of({value})")


def _dithered(word, threshold):
    store = f"dither_bfloat16({{value}}, {threshold})"
    return Format(("uint16",), "from_bfloat16({0})", (store,), "bfloat16", word)


def _coded(sign, speed, codes):
    word = f"{speed}_word"
    store = f"encode_{sign}({{value}}, {{first}}, {word})"
    return Format(("uint8", "uint8"), f"decode_{sign}({{0}}, {{first}})", (store,), f"{sign}_{speed}", word, codes)


FORMATS = {
    "native": Format(("native",), "{0}", ("{value}",), "native"),
    "bfloat16": Format(("uint16",), "from_bfloat16({0})", ("to_bfloat16({value})",), "bfloat16"),
    "float16": Format(("uint16",), "from_float16({0})", ("to_float16({value})",), "float16"),
    # bfloat16 and what it lacks of float32.
    "split": Format(
        ("uint16", "uint16"), "join_halves({0}, {1})", ("upper_half({value})", "lower_half({value})"), "split"
    ),
    # bfloat16 parameters, rounded stochastically.
    "dithered": _dithered("low_word", "uint32(low_word & 0xFFFF)"),
    # bfloat16 moments, rounded stochastically.
    **{f"dithered_{speed}": _dithered(f"{speed}_word", f"uint32({speed}_word >> 16)") for speed in SPEEDS},
    # Moments in 8-bit codes.
    **{f"signed_{speed}": _coded("signed", speed, _SIGNED) for speed in SPEEDS},
    **{f"unsigned_{speed}": _coded("unsigned", speed, _UNSIGNED) for speed in SPEEDS},
}


class Formats:
    """The format of each buffer, a key of `FORMATS`: "native" unless said otherwise. Hashable, and never changed.

    >>> formats = Formats(p="split", m="signed_fast")
    >>> formats["m"], formats["v"], formats.flats("p")
    ('signed_fast', 'native', ('p', 'remainder'))
    """

    __slots__ = ("named",)

    def __init__(self, **formats: str):
        # (buffer, format) of all that is not native, sorted.
        self.named = tuple(sorted((name, format) for name, format in formats.items() if format != "native"))

    def __getitem__(self, buffer: str) -> str:
        return dict(self.named).get(buffer, "native")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Formats) and self.named == other.named

    def __hash__(self) -> int:
        return hash(self.named)

    def __repr__(self) -> str:
        return f"Formats({', '.join(f'{name}={format!r}' for name, format in self.named)})"

    def only(self, buffers: Iterable[str]) -> "Formats":
        """The formats of these buffers; all others are native."""
        return Formats(**{name: self[name] for name in buffers})

    @property
    def blocked(self) -> tuple[str, ...]:
        """Names of the buffers in 8-bit codes, whose groups share an exponent."""
        return tuple(name for name, format in self.named if FORMATS[format].codes)

    @property
    def words(self) -> list[str]:
        """Names of the random words of an element; none where all is rounded to nearest."""
        return sorted({FORMATS[format].word for _, format in self.named} - {""})

    @property
    def dithers(self) -> bool:
        """Whether something is rounded stochastically."""
        return bool(self.words)

    @property
    def nearest(self) -> "Formats":
        """The same with nothing rounded stochastically but codes."""
        return Formats(**{name: FORMATS[format].nearest for name, format in self.named})

    def arithmetic(self, p: Any) -> np.dtype:
        """The dtype of the arithmetic on parameters in the flat array `p`."""
        return p.dtype if self["p"] == "native" else np.dtype(np.float32)

    def codes(self, buffer: str) -> Codes:
        """How the exponent groups of a buffer in `blocked` find their exponents."""
        codes = FORMATS[self[buffer]].codes
        assert codes is not None
        return codes

    def flats(self, buffer: str) -> tuple[str, ...]:
        """Names of the flat arrays of a buffer."""
        if len(FORMATS[self[buffer]].dtypes) == 1:
            return (buffer,)
        return (buffer, f"{buffer}_exponent" if buffer in self.blocked else "remainder")

    def dtype(self, flat: str) -> str:
        """Dtype of a flat array, as the kernels see it: "native", "uint16" or "uint8"."""
        if flat.endswith("_exponent"):
            return "uint8"
        return "uint16" if flat == "remainder" else FORMATS[self[flat]].dtypes[0]

    def itemsize(self, flat: str, arithmetic: np.dtype) -> int:
        """Bytes of an element of a flat array, with this dtype of the arithmetic."""
        stored = self.dtype(flat)
        return arithmetic.itemsize if stored == "native" else np.dtype(stored).itemsize

    def load(self, buffer: str, place: str) -> str:
        """Expression of the value of an element; `place` is how an element of a flat array is written, with `{}`."""
        flats = [place.format(flat) for flat in self.flats(buffer)]
        return FORMATS[self[buffer]].load.format(*flats, first=f"{buffer}_first")

    def stores(self, buffer: str, value: str) -> list[tuple[str, str]]:
        """(flat array, expression of what goes there) for the element `value` of a buffer; exponents go elsewhere."""
        written = [store.format(value=value, first=f"{buffer}_first") for store in FORMATS[self[buffer]].stores]
        return list(zip(self.flats(buffer), written, strict=False))


NATIVE = Formats()
