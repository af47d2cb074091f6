"""When and how kernels run on all threads: one launch at a time, and serially where a parallel one would crash."""

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable
from functools import cache

import numba
from numba.np.ufunc import parallel

from fastadam.kernels import thread_count
from fastadam.kernels.callers import levels_to_caller

# Elements from which the parallel kernel is as fast as the serial one: its launch costs a few us more, which two
# threads win back at 16,000 to 40,000 elements (bench/tuning.py).
PARALLEL_FROM = 32_768

# One launch at a time: the workqueue layer aborts the process when two Python threads enter parallel kernels, and on
# the other layers two launches only compete for the same cores.
_one_launch = threading.RLock()
_pool_started = False
_forked_from_pool = False


def on_threads(kernel: Callable[[bool], Callable]) -> Callable:
    """A launch on as many threads as `count` says.

    Of `kernel`, the one that is wanted now is compiled now: `kernel(False)` is called with what the launch is called
    with, and `kernel(True)` with the number of threads before that.
    """
    kernel = cache(kernel)
    with _one_launch:
        kernel(_count() > 1)

    def launch(*arguments):
        with _one_launch:
            threads = _count()
            if threads > 1:
                return kernel(True)(threads, *arguments)
        return kernel(False)(*arguments)

    return launch


def count() -> int:
    """How many threads a launch of the calling thread takes."""
    with _one_launch:
        return _count()


def _count():
    least, most = thread_count.bounds()
    if most > 1 and not _can_be_parallel():
        return 1
    return most if least == most else min(most, _mask())


def _mask():
    """Numba's mask of the calling thread, once its pool has started.

    `numba.get_num_threads` takes a lock of Numba before it asks this, and an exception from outside, such as Ctrl-C,
    may leave that locked: other Python threads would wait for ever.
    """
    return getattr(parallel, "_get_num_threads", numba.get_num_threads)()


def _can_be_parallel():
    if _forked_from_pool:
        _warn_once_that_serial()
    elif not _pool_started:
        _start_pool()
    return not _forked_from_pool


def _start_pool():
    # Numba's OpenMP pool resets torch's thread count when it starts.
    global _pool_started, _forked_from_pool
    torch = sys.modules.get("torch")
    if not hasattr(torch, "set_num_threads"):  # not there, or about to be imported
        torch = None
    torch_threads = torch.get_num_threads() if torch else None
    numba.get_num_threads()
    if torch:
        torch.set_num_threads(torch_threads)
    _pool_started = True
    _forked_from_pool = thread_count.forked_beside_torch() and numba.threading_layer() == "omp"


def _after_fork_in_child():
    global _one_launch, _forked_from_pool
    _one_launch = threading.RLock()
    # GNU OpenMP kills a forked child at its first parallel launch, or never returns from it. ValueError: the parent has
    # not started a pool.
    with contextlib.suppress(ValueError):
        _forked_from_pool = _forked_from_pool or numba.threading_layer() == "omp"


@cache
def _warn_once_that_serial():
    warnings.warn(
        "fastadam steps on one thread in this process: it was forked from one whose OpenMP threads ran, or may have "
        "run, and GNU OpenMP would end it or never return. Start workers with multiprocessing's 'spawn' or "
        "'forkserver' to step on all threads.",
        RuntimeWarning,
        stacklevel=levels_to_caller(),
    )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
