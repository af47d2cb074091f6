"""How many threads a launch takes."""

from functools import cache

import numba
import numpy as np
from numba import int64, prange

from fastadam.kernels.cpu import threads
from fastadam.kernels.cpu.mask import set_mask, swap_mask

MOST = numba.config.NUMBA_NUM_THREADS


def launched() -> int:
    """On how many threads the parts of a launch run that is made now."""
    return threads.on_threads(_kernel)()


@cache
def _kernel(parallel):
    return numba.njit((int64,), parallel=True)(_threads_seen) if parallel else lambda: 1


def _threads_seen(threads):
    mask, seen = swap_mask(threads), np.zeros(MOST, np.int64)
    for _ in prange(10_000):
        seen[numba.get_thread_id()] = 1
    set_mask(mask)
    return seen.sum()
