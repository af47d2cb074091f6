"""Bandwidth of the memory as kernels see it: read, copy and scale of float32 arrays, on all threads."""

from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
from numba import prange

from fastadam.bench.interleave import interleave, timed
from fastadam.kernels.blocks import BLOCK
from fastadam.kernels.cpu.jit import jit

SIZE = 50_000_000


def start_threads() -> None:
    """Launch something parallel, so that Numba has chosen its threading layer."""
    array = np.ones(1, np.float32)
    jit(_scale, "scale", parallel=True)(array, array)


def bandwidth(size: int = SIZE, rounds: int = 9) -> dict[str, float]:
    """Name -> GB/s; a copy counts both what it reads and what it writes."""
    source, target = (touched(4 * size).view(np.float32) for _ in range(2))
    turns = {name: timed(make(source, target)) for name, make in MAKERS.items()}
    moved = {"read": 4 * size, "copy": 8 * size, "scale": 8 * size}
    return {name: moved[name] / median(times) / 1e9 for name, times in interleave(turns, rounds).items()}


def touched(count: int) -> np.ndarray:
    """`count` bytes, zeroed by all threads: a page of memory lies near the processor that first writes into it."""
    array = np.empty(count, np.uint8)
    jit(_zero, "zero", parallel=True)(array)
    return array


def reader(array: np.ndarray, *, parallel: bool = True) -> Callable[[], None]:
    """A function that reads an array in words of 8 bytes; what is left over at its end is not read."""
    words = array.view(np.uint8)[: array.nbytes // 8 * 8].view(np.int64)
    sums = np.zeros(-(-words.size // BLOCK), np.int64)
    return partial(jit(_read, f"read_{'parallel' if parallel else 'serial'}", parallel=parallel), words, sums)


# Name -> how to make a function of a source and a target in float32.
MAKERS: dict[str, Callable[[np.ndarray, np.ndarray], Callable[[], None]]] = {
    "read": lambda source, target: reader(source),
    "copy": lambda source, target: partial(jit(_copy, "copy", parallel=True), source, target),
    "scale": lambda source, target: partial(jit(_scale, "scale", parallel=True), source, target),
}


def _read(words, sums):
    for index in prange(sums.size):
        part = words[index * BLOCK : (index + 1) * BLOCK]
        total = 0
        # The words have 64 bits, because widening 32 bits would take longer than loading them.
        for i in range(part.size):
            total += part[i]
        sums[index] = total


def _zero(target):
    for index in prange((target.size + BLOCK - 1) // BLOCK):
        target[index * BLOCK : (index + 1) * BLOCK] = 0


def _copy(source, target):
    for index in prange((source.size + BLOCK - 1) // BLOCK):
        target[index * BLOCK : (index + 1) * BLOCK] = source[index * BLOCK : (index + 1) * BLOCK]


def _scale(source, target):
    for index in prange((source.size + BLOCK - 1) // BLOCK):
        part = source[index * BLOCK : (index + 1) * BLOCK]
        into = target[index * BLOCK : (index + 1) * BLOCK]
        for i in range(part.size):
            into[i] = np.float32(3) * part[i]
