"""How many threads a launch on the CPU may take: what was asked for, and else what the rest of the process keeps to."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

UNLIMITED = sys.maxsize


def _of_openmp():
    """The first number of OMP_NUM_THREADS, which may be a list with one for each level of nesting."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else UNLIMITED


class _Asked(threading.local):
    """What calls that are under way in a thread have asked for."""

    count: int | None = None


# Read once, as OpenMP does.
_OPENMP = _of_openmp()
_asked_of_process: int | None = None
_asked_of_call = _Asked()
_forked_beside_torch = False


def ask(count: int | None) -> None:
    """Let launches of the process take so many threads; None: what `bounds` says."""
    global _asked_of_process
    _asked_of_process = count


@contextlib.contextmanager
def asking(count: int | None) -> Iterator[None]:
    """Let launches of this thread take so many threads inside of the context; None: as many as outside of it."""
    before = _asked_of_call.count
    _asked_of_call.count = before if count is None else count
    try:
        yield
    finally:
        _asked_of_call.count = before


def bounds() -> tuple[int, int]:
    """The fewest and the most threads that the next launch of this thread may take.

    They are the same if someone has asked for a number. If nobody has, there are at most as many as torch takes, or
    OpenMP, and Numba's mask of the thread may say fewer.
    """
    asked = _asked_of_call.count or _asked_of_process
    if asked is not None:
        return asked, asked
    of_torch = getattr(sys.modules.get("torch"), "get_num_threads", None)  # None while torch is being imported
    return 1, _OPENMP if of_torch is None else of_torch()


def forked_beside_torch() -> bool:
    """Whether this process was forked, since this was imported, from one that had imported torch.

    Torch brings the GNU OpenMP on which Numba's pool runs too, if torch came first, and may have run there: nobody can
    ask.
    """
    return _forked_beside_torch


def _after_fork_in_child():
    global _forked_beside_torch
    _forked_beside_torch = _forked_beside_torch or "torch" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
