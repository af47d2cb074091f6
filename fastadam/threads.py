"""How many threads a step takes on the CPU."""

from typing import Any

from fastadam.kernels import thread_count
from fastadam.settings.checks import integer


def set_num_threads(n: int | None) -> None:
    """Let every step on the CPU, in all Python threads of the process, take `n` threads; None takes that back.

    Steps of fewer than 32,768 elements take one thread in any case. The number changes no bit of a result.

    Args:
        n: From 1 to the number of threads that Numba has (NUMBA_NUM_THREADS, by default the number of cores); or None:
            steps follow torch, `OMP_NUM_THREADS` and Numba again, as :func:`get_num_threads` says.

    Raises:
        TypeError, ValueError: `n` is no integer, or out of range. The number is then as it was.

    Example:
        >>> import fastadam
        >>> fastadam.set_num_threads(1)
        >>> fastadam.get_num_threads()
        1
        >>> fastadam.set_num_threads(None)
    """
    thread_count.ask(None if n is None else checked_count(n, "n"))


def get_num_threads() -> int:
    """How many threads a step on the CPU takes if it is called from this Python thread.

    It is the number that `set_num_threads` was called with, whatever was set elsewhere. If it was not called, it is
    `torch.get_num_threads()` if torch is imported, else the first number of `OMP_NUM_THREADS` if that was set when
    fastadam was imported; but no more than `numba.get_num_threads()`, whose number belongs to the Python thread. So
    `torch.set_num_threads(1)`, as in a worker of a torch `DataLoader`, holds for steps too.

    In a process that was forked while OpenMP threads ran, it is 1.

    Example:
        >>> import fastadam
        >>> fastadam.get_num_threads() >= 1
        True
    """
    # Imported only now, as it loads Numba.
    from fastadam.kernels.cpu import threads

    return threads.count()


def checked_count(value: Any, label: str) -> int:
    """`value` as an int; raise unless so many threads can be had."""
    from numba import config

    count = integer(value, label, least=1)
    if count > config.NUMBA_NUM_THREADS:
        raise ValueError(
            f"`{label}` must be <= {config.NUMBA_NUM_THREADS}, the number of threads that Numba has here, got {count}. "
            "The environment variable NUMBA_NUM_THREADS sets it"
        )
    return count
