"""The `step` tensors of parameters, and other numbers of which each parameter has one, as few arrays."""

from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import Any

import numpy as np
import torch


class Counters:
    """Tensors of one number each, in CPU memory, written and read together where they lie one after the other.

    Whoever put them there may write them between steps: `are_others` tells.
    """

    def __init__(self, tensors: Sequence[Any]):
        self._runs: list[_Run] = []
        arrays = [tensor.detach().numpy().reshape(1) for tensor in tensors]
        first = 0
        for stop in range(1, len(arrays) + 1):
            if stop == len(arrays) or not _follows(tensors[stop - 1], tensors[stop]):
                self._runs.append(_Run(slice(first, stop), _joined(arrays[first:stop])))
                first = stop

    def are_others(self) -> bool:
        """Whether the numbers are others than those that were kept, or written here since."""
        return any(run.bytes.tobytes() != run.kept for run in self._runs)

    def keep(self) -> None:
        """Keep the numbers as they are now."""
        for run in self._runs:
            run.keep()

    def values(self) -> np.ndarray:
        """All numbers, float64."""
        return np.concatenate([np.zeros(0), *(run.numbers for run in self._runs)])

    def advance(self, going: np.ndarray | None = None) -> None:
        """Add one to each number, or to those for which `going`, a bool for each, is true."""
        for run in self._runs:
            if going is None and run.number is not None:
                run.set_all(run.number + 1.0)
            else:
                run.numbers += 1.0 if going is None else going[run.where]
                run.keep()

    def assign(self, values: np.ndarray) -> None:
        """Set all numbers."""
        for run in self._runs:
            run.numbers[...] = values[run.where]
            run.keep()


class _Run:
    """Numbers that lie one after the other.

    Attributes:
        where: Which of all they are.
        numbers: Them.
        bytes: Their memory.
        kept: The bytes that were kept, or written here since.
        number: What all of them were then, if they were the same; not rounded to their dtype.
    """

    __slots__ = "_pack", "bytes", "kept", "number", "numbers", "where"

    def __init__(self, where: slice, numbers: np.ndarray):
        self.where, self.numbers, self.bytes = where, numbers, numbers.data.cast("B")
        self._pack = Struct(numbers.dtype.char).pack
        self.kept = b""
        self.number: float | None = None

    def keep(self) -> None:
        """Keep the numbers as they are now."""
        first = float(self.numbers[0])
        self.kept, self.number = self.bytes.tobytes(), first if (self.numbers == first).all() else None

    def set_all(self, number: float) -> None:
        """Let all be `number`.

        Where caches are cold, as after backward, NumPy's addition takes several times as long.
        """
        self.bytes[:] = self.kept = self._pack(number) * len(self.numbers)
        self.number = number


def _follows(before, after):
    return before.dtype is after.dtype and after.data_ptr() - before.data_ptr() == before.element_size()


def _joined(arrays):
    """Arrays of one element, which lie one after the other, as one array."""
    return np.lib.stride_tricks.as_strided(arrays[0], (len(arrays),), (arrays[0].itemsize,))


def new_counters(values: Iterable[float]) -> list[Any]:
    """A tensor for each of `values`, 0-d, all in one array; each has its own part of it for a storage."""
    dtype = np.float64 if torch.get_default_dtype() == torch.float64 else np.float32
    memory = np.array(list(values), dtype)
    return [torch.from_numpy(memory[index : index + 1]).reshape(()) for index in range(len(memory))]


def put_together(entries: Sequence[dict[str, Any]], keys: Mapping[str, float]) -> None:
    """Give all `entries` new tensors for `keys`, with the numbers that they have, in one array for each key."""
    for key in keys:
        having = [entry for entry in entries if key in entry]
        for entry, tensor in zip(having, new_counters(float(entry[key]) for entry in having), strict=True):
            entry[key] = tensor
