"""Numba's cache of compiled kernels on disk, of which nothing can go wrong but that a kernel is compiled again."""

import warnings
from contextlib import suppress
from functools import cache
from typing import Any

from numba.core.caching import FunctionCache

from fastadam.kernels.callers import levels_to_caller


class KernelCache(FunctionCache):
    """A cache that warns where Numba's raises: files are cut off, garbage, gone or not ours, or the disk is full."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled before; None if that cannot be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            with suppress(Exception):
                self.flush()  # the next process finds no trace of it
            _warn("read", str(self.cache_path), repr(error))
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled, if that is possible."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _warn("written", str(self.cache_path), repr(error))


def let_cache(kernel: Any, function: Any) -> None:
    """Let a dispatcher or callback of Numba keep on disk what it compiles from `function`, if there is a place."""
    with suppress(RuntimeError):  # there is none: every process compiles
        kernel._cache = KernelCache(function)


@cache
def _warn(what, path, error):
    warnings.warn(
        f"the cache of compiled kernels in {path} cannot be {what}, so kernels are compiled again: {error}. "
        "If this comes again, remove the files there, or let NUMBA_CACHE_DIR name another directory",
        RuntimeWarning,
        stacklevel=levels_to_caller(),
    )
