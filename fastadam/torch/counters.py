"""The `step` tensors of parameters, and other numbers of which each parameter has one, as few arrays."""

from collections.abc import Iterable, Mapping, Sequence
from struct import calcsize, pack, unpack
from typing import Any

import numpy as np
import torch


class Counters:
    """Tensors of one number each, in CPU memory, written and read together where they lie one after the other.

    Whoever put them there may write them between steps: `are_others` tells.
    """

    def __init__(self, tensors: Sequence[Any]):
        self.tensors = tensors
        self._runs: list[tuple[slice, np.ndarray, memoryview]] = []
        arrays = [tensor.detach().numpy().reshape(1) for tensor in tensors]
        first = 0
        for stop in range(1, len(arrays) + 1):
            if stop == len(arrays) or not _follows(tensors[stop - 1], tensors[stop]):
                run = _joined(arrays[first:stop])
                self._runs.append((slice(first, stop), run, memoryview(run).cast("B")))
                first = stop
        self._kept: list[bytes] = []

    def are_others(self) -> bool:
        """Whether the numbers are others than those that were kept, or written here since."""
        return [memory.tobytes() for _, _, memory in self._runs] != self._kept

    def keep(self) -> None:
        """Keep the numbers as they are now."""
        self._kept = [memory.tobytes() for _, _, memory in self._runs]

    def values(self) -> np.ndarray:
        """All numbers, float64."""
        return np.concatenate([np.zeros(0), *(run for _, run, _ in self._runs)])

    def advance(self, going: np.ndarray | None = None) -> None:
        """Add one to each number, or to those for which `going`, a bool for each, is true."""
        for where, run, memory in self._runs:
            following = None if going is not None else _following(run.dtype.char, memory.tobytes())
            if following is None:
                run += 1.0 if going is None else going[where]
            else:
                memory[:] = following
        self.keep()

    def assign(self, values: np.ndarray) -> None:
        """Set all numbers."""
        for where, run, _ in self._runs:
            run[...] = values[where]
        self.keep()


def _following(kind, numbers):
    """The bytes of numbers that are one more, if all are the same.

    Where caches are cold, as after backward, these few bytes take 10 us, and NumPy's addition 25.
    """
    size = calcsize(kind)
    count, first = len(numbers) // size, numbers[:size]
    return pack(kind, unpack(kind, first)[0] + 1.0) * count if numbers == first * count else None


def _follows(before, after):
    return before.dtype is after.dtype and after.data_ptr() - before.data_ptr() == before.element_size()


def _joined(arrays):
    """Arrays of one element, which lie one after the other, as one array."""
    return np.lib.stride_tricks.as_strided(arrays[0], (len(arrays),), arrays[0].strides)


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
