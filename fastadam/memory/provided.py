"""Memory that the caller provides for flat buffers, checked before it is taken."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from fastadam.memory.arrays import as_array, as_bits, check_device, check_flat, zeros

if TYPE_CHECKING:
    from fastadam.memory.parameters import Parameter

Memory = Callable[[str, int, np.dtype], Any]


class Provided:
    """Asks `memory` for each flat buffer; without it, or if it gives None, the buffer is allocated.

    Attributes:
        parameters: Those that must not share memory with what is given, nor their buffers.
    """

    def __init__(self, memory: Memory | None):
        if memory is not None and not callable(memory):
            raise TypeError(f"`memory` must be a function (name, size, dtype) -> array, got {memory!r}")
        self._memory = memory
        self.parameters: WeakSet[Parameter] = WeakSet()

    def zeros(self, number: int, flat: str, size: int, dtype: np.dtype, device_of: Any) -> Any:
        """`size` zeros on the device of `device_of`, for the array `flat` of set `number` of buffers."""
        name = f"{number}.{flat}"
        given = self._memory(name, size, dtype) if self._memory is not None and size else None
        if given is None:
            return zeros(size, dtype, device_of)
        label = f"memory({name!r}, ...)"
        array = as_array(given, label)
        if array.dtype != dtype:
            raise TypeError(f"`{label}` must be {dtype}, got {array.dtype}")
        if array.shape != (size,):
            raise ValueError(f"`{label}` must have shape ({size},), got {array.shape}")
        check_device(array, device_of, label, "the parameters")
        check_flat(array, label)
        low = _start(array)
        if any(low < _start(held) + held.nbytes and _start(held) < low + array.nbytes for held in self._held()):
            raise ValueError(f"`{label}` must not share memory with a parameter or another buffer")
        if as_bits(array).any():
            raise ValueError(
                f"`{label}` must be zeros, got other values: a state is resumed by `load` or `load_state_dict`, into "
                "memory of zeros"
            )
        return array

    def _held(self) -> Iterator[Any]:
        for parameter in self.parameters:
            if parameter.p is not None:
                yield parameter.p
            yield from parameter.buffers.flats.values()


def _start(array):
    return array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.data.ptr
