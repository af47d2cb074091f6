"""One array that trains, and everything that an optimizer keeps for it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from fastadam.kernels import stored
from fastadam.kernels.texts.formats import EXPONENT_GROUP, Formats
from fastadam.memory.arrays import as_bits, assign, moved, on_host
from fastadam.memory.buffers import WHOLE, Buffers
from fastadam.memory.layout import Layout


@dataclass(eq=False)
class Parameter:
    """One array that trains.

    Attributes:
        name: The key of its container, or its position.
        place: Where its random words begin, an integer below 2**32: it depends on the seed and the name alone.
        layout: How it lies in memory.
        p: Its elements in that order, 1-D; None if they are in `buffers.p`.
        buffers: The buffers that have its moments and everything else.
        packed: Whether it was copied into `buffers.p`, and is no array of the user.
    """

    name: Hashable
    place: int
    layout: Layout
    p: Any
    buffers: Buffers
    packed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.layout.shape

    @property
    def formats(self) -> Formats:
        """The format of each buffer."""
        return self.buffers.formats

    @property
    def arithmetic(self) -> np.dtype:
        """The dtype of the arithmetic: float64 for float64 parameters, else float32."""
        return self.buffers.arithmetic

    @property
    def size(self) -> int:
        """How many elements it has."""
        segment = self.buffers.segments[self.name]
        return segment.stop - segment.start

    @property
    def kept(self) -> tuple[int, int]:
        """Which of its elements are stepped here, (start, stop): all of them, or with `shard` those of this rank."""
        return self.buffers.kept_of(self.name)

    def flat(self, name: str) -> Any:
        """Its part of a flat array, 1-D: all elements of `p` and `g`, and those that are `kept` of all others.

        The array is allocated if it is not there yet.
        """
        if name == "p" and self.p is not None:
            return self.p
        return self.buffers.cut(self.name, name)

    def address(self, name: str, backend: Any) -> int:
        """Where its element 0 (its exponent 0) would be if all of them lay beside those that are `kept`.

        The array is allocated if it is not there yet.
        """
        flat = self.flat(name)
        return backend.address(flat) - (0 if name in WHOLE else self.kept_from(name) * flat.itemsize)

    def kept_from(self, name: str) -> int:
        """The number of the first element (exponent) that is kept of it."""
        return self.kept[0] // (EXPONENT_GROUP if name.endswith("_exponent") else 1)

    def part(self, name: str, array: Any = None) -> Any:
        """Those elements of a flat array that are `kept`, 1-D; of `array`, in its shape, if that is given."""
        if array is None and name not in WHOLE:
            return self.flat(name)
        start, stop = self.kept
        if name.endswith("_exponent"):
            return array[start // EXPONENT_GROUP : -(-stop // EXPONENT_GROUP)]
        return (self.flat(name) if array is None else self.layout.flat(array))[start:stop]

    def view(self, name: str) -> Any:
        """Its part of a flat array in its shape; exponents are 1-D, one for each group of codes."""
        flat = self.flat(name)
        return flat if name.endswith("_exponent") else self.layout.view(flat)

    def values(self, buffer: str, views: Mapping[str, Any]) -> np.ndarray:
        """The values of a buffer in the dtype of the arithmetic, on the host, in the shape of the parameter.

        `views` has its flat arrays, in that shape.
        """
        return self.layout.view(self._values(buffer, {name: self.layout.flat(view) for name, view in views.items()}))

    def kept_values(self, buffer: str) -> np.ndarray:
        """The same of the elements that are `kept`, 1-D."""
        return self._values(buffer, {name: self.part(name) for name in self.formats.flats(buffer)})

    def _values(self, buffer, held):
        flats = {name: on_host(as_bits(array)) for name, array in held.items()}
        with np.errstate(all="ignore"):
            return stored.load(self.formats, buffer, flats)

    def start_average(self) -> None:
        """Set the average of the parameter to the parameter."""
        average = self.flat("ema")
        assign(average, moved(self.kept_values("p"), average))


def random_place(seed: int, name: Hashable, position: int) -> int:
    """Where the random words of a parameter begin: a hash of the seed and the name.

    A string counts as `s:` and its UTF-8, an integer as `i:` and its digits, anything else as `n:` and its position.
    """
    if isinstance(name, str):
        kind = b"s:" + name.encode("utf-8", "surrogatepass")
    elif isinstance(name, int) and not isinstance(name, bool):
        kind = b"i:%d" % name
    else:
        kind = b"n:%d" % position
    return int.from_bytes(blake2b(b"%d:" % seed + kind, digest_size=4).digest(), "little")


def all_buffers(parameters: Sequence[Parameter]) -> tuple[Buffers, ...]:
    """The distinct sets of buffers of `parameters`, in order."""
    return tuple(dict.fromkeys(parameter.buffers for parameter in parameters))
