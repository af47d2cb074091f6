"""How much memory an optimizer takes, buffer by buffer."""

from typing import NamedTuple

from fastadam.memory.arrays import dtype_name
from fastadam.memory.buffers import Buffers

# In this order; of those that are there only where they are needed.
_ALWAYS, _NEEDED = ("p", "g", "m", "v"), ("v_max", "ema", "low")


class BufferMemory(NamedTuple):
    """Memory of one buffer of all parameters together.

    Attributes:
        name: Of the buffer, as in `Buffers`.
        dtypes: In which it is stored, exponents and remainders included.
        nbytes: What it takes.
        plain_nbytes: What it would take in the dtype of the arithmetic: float32, or float64 for float64 parameters.
    """

    name: str
    dtypes: str
    nbytes: int
    plain_nbytes: int


class MemoryUsage(NamedTuple):
    """Memory of an optimizer; `print(usage)` shows bytes a parameter before and after.

    Attributes:
        parameters: How many there are.
        buffers: One `BufferMemory` for each buffer.
    """

    parameters: int
    buffers: tuple[BufferMemory, ...]

    @property
    def nbytes(self) -> int:
        """What all buffers take."""
        return sum(buffer.nbytes for buffer in self.buffers)

    @property
    def plain_nbytes(self) -> int:
        """What they would take in the dtype of the arithmetic."""
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


def memory_usage(all_buffers: tuple[Buffers, ...]) -> MemoryUsage:
    """The memory of these sets of flat buffers."""
    names = [*_ALWAYS, *(name for name in _NEEDED if any(name in vars(buffers) for buffers in all_buffers))]
    count = sum(segment.stop - segment.start for buffers in all_buffers for segment in buffers.segments.values())
    return MemoryUsage(max(1, count), tuple(_of_buffer(name, all_buffers) for name in names))


def _of_buffer(name, all_buffers):
    dtypes: list[str] = []
    nbytes = plain = 0
    for buffers in all_buffers:
        if name in _NEEDED and name not in vars(buffers):
            continue
        size = buffers.p.size
        plain += size * (2 if name == "low" else buffers.arithmetic.itemsize)
        # Gradients are counted whether they lie in the buffer or where the caller has them.
        first = buffers.low.dtype if name == "low" else buffers.dtype(name)
        others = [getattr(buffers, flat) for flat in buffers.storage.flats(name)[1:]]
        nbytes += size * first.itemsize + sum(other.nbytes for other in others)
        of_p = dtype_name(buffers.p) if name == "p" else first.name
        described = " + ".join(
            [buffers.storage.low if name == "low" else of_p, *(other.dtype.name for other in others)]
        )
        dtypes += [described] * (described not in dtypes)
    return BufferMemory(name, ", ".join(dtypes), nbytes, plain)
