"""Arrays as bytes, piece by piece: no copy of a whole array is made, wherever it lies and in whatever order."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any
from zlib import crc32

import numpy as np

from fastadam.memory.arrays import on_host

# Small enough to be in the cache still when the checksum is taken. Pieces of 8 MiB took two to five times as long.
PIECE = 2**20


def write(file: IO[bytes], array: Any, pool: ThreadPoolExecutor) -> int:
    """Append the elements of `array` in C order to `file`, and return their CRC-32."""
    if isinstance(array, np.ndarray) and array.flags.c_contiguous:
        # Its checksum is taken by another thread meanwhile.
        found = pool.submit(checksum, array)
        for piece in pieces(array):
            _write_all(file, _bytes(piece))
        return found.result()
    value = 0
    for piece in pieces(array):
        value = crc32(_bytes(piece), value)
        _write_all(file, _bytes(piece))
    return value


def checksum(array: Any) -> int:
    """The CRC-32 of the bytes of a C-contiguous array."""
    return crc32(_bytes(array))


def reserve(file: IO[bytes], size: int) -> None:
    """Reserve `size` bytes on the disk, where it can: a full disk is found out first, and writing takes less time."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


def _bytes(array):
    return memoryview(array.reshape(-1).view(np.uint8))


def _write_all(file, data):
    while data:
        data = data[file.write(data) :]


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
