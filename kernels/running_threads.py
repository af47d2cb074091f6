"""Compilation while Numba's threads run, whatever NUMBA_NUM_THREADS has become since they were started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numba

VARIABLE = "NUMBA_NUM_THREADS"


def let_compile(kernel: Any) -> None:
    """Let a dispatcher or callback of Numba compile after the variable was changed, which Numba refuses.

    It reads its variables anew as it compiles, and raises if this one is not the number of the threads that run.
    """
    compile_ = kernel.compile

    @wraps(compile_)
    def compiled(*arguments):
        with _variable_as_threads_run():
            return compile_(*arguments)

    kernel.compile = compiled


@contextmanager
def _variable_as_threads_run() -> Iterator[None]:
    running, said = str(numba.config.NUMBA_NUM_THREADS), os.environ.get(VARIABLE)
    if running == (said or str(numba.config.NUMBA_DEFAULT_NUM_THREADS)) or not _threads_run():
        yield
        return
    os.environ[VARIABLE] = running
    try:
        yield
    finally:
        if said is None:
            os.environ.pop(VARIABLE, None)  # another Python thread may compile too
        else:
            os.environ[VARIABLE] = said


def _threads_run():
    try:
        numba.threading_layer()
    except ValueError:
        return False
    return True
