"""Bandwidth of the memory as kernels see it: read, copy and scale of float32 arrays, on all threads."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numba import prange

from fastadam.bench.interleave import interleave, timed
from fastadam.kernels.cpu_jit import jit

SIZE = 50_000_000
_BLOCK = 16_384


def start_threads() -> None:
    """Launch something parallel, so that Numba has chosen its threading layer."""
    array = np.ones(1, np.float32)
    jit(_scale, "scale", parallel=True)(array, array)


def bandwidth(size: int = SIZE, rounds: int = 9) -> dict[str, float]:
    """GB/s of each; a copy counts what it reads and what it writes."""
    source, target = np.ones(size, np.float32), np.ones(size, np.float32)
    turns = {name: timed(make(source, target)) for name, make in MAKERS.items()}
    moved = {"read": 4 * size, "copy": 8 * size, "scale": 8 * size}
    return {name: moved[name] / timing.median / 1e9 for name, timing in interleave(turns, rounds).items()}


def reader(array: np.ndarray, *, parallel: bool = True) -> Callable[[], None]:
    """A function that reads an array, all but what is left of its last 8 bytes."""
    words = array.view(np.uint8)[: array.nbytes // 8 * 8].view(np.int64)
    sums = np.zeros(-(-words.size // _BLOCK), np.int64)
    return partial(jit(_read, f"read_{'parallel' if parallel else 'serial'}", parallel=parallel), words, sums)


# Name -> how to make a function of a source and a target in float32.
MAKERS: dict[str, Callable[[np.ndarray, np.ndarray], Callable[[], None]]] = {
    "read": lambda source, target: reader(source),
    "copy": lambda source, target: partial(jit(_copy, "copy", parallel=True), source, target),
    "scale": lambda source, target: partial(jit(_scale, "scale", parallel=True), source, target),
}


def _read(words, sums):
    for index in prange(sums.size):
        part = words[index * 16_384 : (index + 1) * 16_384]
        total = 0
        # Of 64 bits: to widen 32 would take more time than to load them.
        for i in range(part.size):
            total += part[i]
        sums[index] = total


def _copy(source, target):
    for index in prange((source.size + 16_383) // 16_384):
        target[index * 16_384 : (index + 1) * 16_384] = source[index * 16_384 : (index + 1) * 16_384]


def _scale(source, target):
    for index in prange((source.size + 16_383) // 16_384):
        some_source, some_target = (
            source[index * 16_384 : (index + 1) * 16_384], target[index * 16_384 : (index + 1) * 16_384]
        )  # fmt: skip
        for i in range(some_source.size):
            some_target[i] = np.float32(3) * some_source[i]
