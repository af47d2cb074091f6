"""The CPU kernel: one pass over four flat buffers, compiled by Numba from the update text, serial or on all threads."""

import contextlib
import os
import sys
import threading
import warnings
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numba
from numba import njit, prange, types
from numba.extending import overload, register_jitable

# Elements from which the parallel kernel is as fast as the serial one: its launch costs a few us more, which two
# threads win back at 16,000 to 40,000 elements (bench/constants.py).
PARALLEL_FROM = 32_768

# A segment from this size on is launched on the caller's own gradient array; a smaller one is first copied into
# the flat buffer, which costs less than a launch of its own.
DIRECT_FROM = PARALLEL_FROM

_THIS_FILE = Path(__file__).read_bytes()


def launcher(update, size, dtype):
    """`launch(p, g, m, v, scalars)` of `update` for aligned buffers: serial if `size` is short, else on threads."""
    if size < PARALLEL_FROM:
        return compiled(update, dtype, parallel=False)
    return partial(_launch_on_threads, update, dtype)


@cache
def compiled(update, dtype, *, parallel):
    """The machine code of one of the twins for buffers of `dtype`, compiled now or loaded from the disk cache.

    A call of it skips Numba's look at the types of all arguments, which takes 0.19 of the 0.43 us of a call on 100
    elements, and so never compiles for other types: a read-only gradient is read like any other.
    """
    buffer = types.Array(numba.from_dtype(dtype), 1, "C")
    return twins(update)[parallel].compile((buffer,) * 4 + (types.UniTuple(types.float64, len(update.scalars)),))


@cache
def twins(update):
    """The serial and the parallel kernel of `update`: one loop, compiled twice."""
    register_jitable(update.element)
    return _compile(update, parallel=False), _compile(update, parallel=True)


def _compile(update, *, parallel):
    element = update.element

    def one_pass(p, g, m, v, scalars):
        rounded = _rounded(scalars, p.dtype.type)
        for i in prange(p.size):
            p[i], m[i], v[i] = element(p[i], g[i], m[i], v[i], *rounded)

    # Numba's cache file bears the function's name and nothing of what is inlined. The digest of every text that is
    # compiled here keeps an edited one away from old machine code; the twin's name keeps the twins apart.
    digest = sha256(_THIS_FILE + update.source.encode()).hexdigest()[:16]
    twin = "parallel" if parallel else "serial"
    one_pass.__name__ = one_pass.__qualname__ = f"{update.name.lower()}_{twin}_{digest}"
    # Python's error model would test each division for zero, which stops vectorisation: 4 times slower.
    kernel = njit(parallel=parallel, error_model="numpy")(one_pass)
    # RuntimeError: there is no writable place for a cache. The kernel is then compiled in every process.
    with contextlib.suppress(RuntimeError):
        kernel.enable_caching()
    return kernel


def _rounded(scalars, dtype):
    """Each of `scalars` as `dtype`: a Python float is float64 in Numba and would promote the whole update."""


@overload(_rounded)
def _rounded_overload(scalars, dtype):
    if len(scalars) == 1:
        return lambda scalars, dtype: (dtype(scalars[0]),)
    return lambda scalars, dtype: (dtype(scalars[0]),) + _rounded(scalars[1:], dtype)  # noqa: RUF005 (Numba)


# One launch at a time: the workqueue layer aborts the process when two Python threads enter parallel kernels, and on
# the other layers two launches only compete for the same cores.
_one_launch = threading.RLock()
_pool_started = False
_forked_from_pool = False


def _launch_on_threads(update, dtype, *arguments):
    with _one_launch:
        if _forked_from_pool:
            _warn_once_that_serial()
        elif not _pool_started:
            _start_pool()
        compiled(update, dtype, parallel=not _forked_from_pool)(*arguments)


def _start_pool():
    # Numba's OpenMP pool resets torch's thread count when it starts.
    global _pool_started
    torch = sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if torch else None
    numba.get_num_threads()
    if torch:
        torch.set_num_threads(torch_threads)
    _pool_started = True


def _after_fork_in_child():
    global _one_launch, _forked_from_pool
    _one_launch = threading.RLock()
    # GNU OpenMP kills a forked child at its first parallel launch. ValueError: the parent has not started a pool.
    with contextlib.suppress(ValueError):
        _forked_from_pool = _forked_from_pool or numba.threading_layer() == "omp"


@cache
def _warn_once_that_serial():
    warnings.warn(
        "fastadam steps on one thread in this process: it was forked from one whose OpenMP threads were running, and "
        "GNU OpenMP would end it. Start workers with multiprocessing's 'spawn' or 'forkserver' to step on all threads.",
        RuntimeWarning,
        stacklevel=5,
    )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
