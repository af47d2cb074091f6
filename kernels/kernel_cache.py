"""Numba's cache of compiled kernels on disk, of which nothing can go wrong but that a kernel is compiled again."""

import pickle
import warnings
from contextlib import suppress
from functools import cache
from hashlib import sha256
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

from fastadam.kernels.callers import levels_to_caller
from fastadam.kernels.running_threads import let_compile


class _CheckedFiles(IndexDataCacheFile):
    """Machine code with its digest: one bit of it that is another would be another result, or a crash."""

    def __init__(self, cache_path: str, filename_base: str, source_stamp: Any):
        super().__init__(cache_path, filename_base, source_stamp)
        self._version = f"{numba.__version__} with digests"  # what has none is as of another version of Numba

    def _save_data(self, name, data):
        dumped = self._dump(data)
        super()._save_data(name, (sha256(dumped).digest(), dumped))

    def _load_data(self, name):
        digest, dumped = super()._load_data(name)
        if sha256(dumped).digest() != digest:
            raise ValueError(f"{name} is not what was written")
        return pickle.loads(dumped)


class KernelCache(FunctionCache):
    """A cache that warns where Numba's raises: files are cut off, garbage, gone or not ours, or the disk is full."""

    def __init__(self, function: Any):
        super().__init__(function)
        self._cache_file = _CheckedFiles(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

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


def harden(kernel: Any, function: Any) -> None:
    """Let a dispatcher or callback of Numba compile `function` whatever the disk and the environment have become.

    What it compiles is kept on disk, if there is a place.
    """
    with suppress(RuntimeError):  # there is none: every process compiles
        kernel._cache = KernelCache(function)
    let_compile(kernel)


@cache
def _warn(what, path, error):
    warnings.warn(
        f"the cache of compiled kernels in {path} cannot be {what}, so kernels are compiled again: {error}. "
        "If this comes again, remove the files there, or let NUMBA_CACHE_DIR name another directory",
        RuntimeWarning,
        stacklevel=levels_to_caller(),
    )
