"""Arrays as bytes, piece by piece: no copy of a whole array is made, wherever it lies and in whatever order."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any
from zlib import crc32

import numpy as np

from fastadam.memory.arrays import on_host

# Large enough for the disk, and small enough that the checksum finds it in the cache.
PIECE = 2**21


def write(file: IO[bytes], array: Any, pool: ThreadPoolExecutor) -> int:
    """Append the elements of `array` in C order to `file`, and return their CRC-32, which is taken meanwhile."""
    checksum = 0
    for piece in pieces(array):
        data = memoryview(piece.reshape(-1).view(np.uint8))
        found = pool.submit(crc32, data, checksum)
        rest = data
        while rest:
            rest = rest[file.write(rest) :]
        checksum = found.result()
    return checksum


def pieces(array: Any) -> Iterator[np.ndarray]:
    """The parts of `array` in C order, C-contiguous on the host, each of at most `PIECE` bytes."""
    if array.nbytes <= PIECE:
        yield np.ascontiguousarray(on_host(array))
        return
    rows = PIECE * len(array) // array.nbytes
    if rows:
        for first in range(0, len(array), rows):
            yield np.ascontiguousarray(on_host(array[first : first + rows]))
    else:
        for row in array:
            yield from pieces(row)
