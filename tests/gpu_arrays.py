"""Real arrays of CuPy over the memory of the host: for what looks at arrays and launches nothing, without a GPU."""

import cupy
import numpy as np
from cupy.cuda import MemoryPointer, UnownedMemory


def cupy_over(array: np.ndarray, device: int = 0) -> cupy.ndarray:
    """The C-contiguous `array` as one of CuPy, said to be on `device`."""
    assert array.flags.c_contiguous
    memory = UnownedMemory(array.ctypes.data, array.nbytes, array, device)
    return cupy.ndarray(array.shape, array.dtype, memptr=MemoryPointer(memory, 0))
