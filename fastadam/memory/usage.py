"""How much memory an optimizer takes, buffer by buffer."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastadam.memory.buffers import Buffers
from fastadam.memory.parameters import Parameter


class BufferMemory(NamedTuple):
    """Memory of one buffer of all parameters together.

    Attributes:
        name: The name of the buffer, as in `Buffers`.
        dtypes: The dtypes in which it is stored, with those of exponents and remainders.
        nbytes: The bytes that it takes.
        plain_nbytes: The bytes that it would take in the dtype of the arithmetic: float32, or float64 for float64
            parameters.
    """

    name: str
    dtypes: str
    nbytes: int
    plain_nbytes: int


class MemoryUsage(NamedTuple):
    """Memory of an optimizer; `print(usage)` shows bytes a parameter before and after.

    Attributes:
        parameters: The number of parameters.
        buffers: One `BufferMemory` for each buffer.
    """

    parameters: int
    buffers: tuple[BufferMemory, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that all buffers take."""
        return sum(buffer.nbytes for buffer in self.buffers)

    @property
    def plain_nbytes(self) -> int:
        """The bytes that they would take in the dtype of the arithmetic."""
        return sum(buffer.plain_nbytes for buffer in self.buffers)

    def __str__(self) -> str:
        total = BufferMemory("all", "", self.nbytes, self.plain_nbytes)
        lines = [
            f"{buffer.name:<6} {buffer.dtypes:<22} {buffer.plain_nbytes / self.parameters:>8.3f} "
            f"{buffer.nbytes / self.parameters:>8.3f} {buffer.nbytes / 1e6:>12,.1f} MB"
            for buffer in (*self.buffers, total)
        ]
        header = f"{self.parameters:,} parameters; bytes a parameter, plain and as stored, gaps between them included"
        return "\n".join([header, f"{'buffer':<6} {'stored as':<22} {'plain':>8} {'stored':>8} {'in all':>15}", *lines])


def memory_usage(parameters: Sequence[Parameter]) -> MemoryUsage:
    """The memory of parameters, gradients and all other buffers, with the gaps in flat buffers."""
    count = sum(parameter.size for parameter in parameters)
    by_buffers: dict[Buffers, list[Parameter]] = {}
    for parameter in parameters:
        by_buffers.setdefault(parameter.buffers, []).append(parameter)
    found = dict.fromkeys(["p", "g"])
    for buffers in by_buffers:
        found.update(dict.fromkeys(flat for flat in buffers.flats if not _is_second(flat)))
    order = sorted(found, key=lambda name: (name in _LAST, name not in ("p", "g")))
    return MemoryUsage(max(1, count), tuple(_of_buffer(name, by_buffers) for name in order))


# Buffers that options ask for, after those that every optimizer has.
_LAST = ("v_max", "ema", "copy")


def _is_second(flat):
    return flat == "remainder" or flat.endswith("_exponent")


def _of_buffer(name, by_buffers):
    dtypes: list[str] = []
    nbytes = plain = 0
    for buffers, parameters in by_buffers.items():
        if name not in ("p", "g") and name not in buffers.flats:
            continue
        own = name == "p" and "p" not in buffers.flats
        size = sum(parameter.size for parameter in parameters) if own else buffers.length(name)
        first = parameters[0].flat("p").dtype if own else buffers.dtype(name)
        others = [buffers.allocate(flat) for flat in buffers.formats.flats(name)[1:]]
        plain += size * (2 if name == "copy" else buffers.arithmetic.itemsize)
        # Gradients are counted whether they lie in the buffer or where the caller has them.
        nbytes += size * first.itemsize + sum(other.nbytes for other in others)
        shown = buffers.formats["copy"] if name == "copy" else _shown(first, parameters[0])
        described = " + ".join([shown, *(other.dtype.name for other in others)])
        dtypes += [described] * (described not in dtypes)
    return BufferMemory(name, ", ".join(dtypes), nbytes, plain)


def _shown(dtype, parameter):
    # In CuPy bfloat16 is stored as its bits, uint16.
    on_host = isinstance(parameter.flat("p"), np.ndarray)
    return "bfloat16" if dtype == np.uint16 and not on_host else dtype.name
