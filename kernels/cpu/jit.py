"""Compilation by Numba, and its cache on disk."""

import sys
import types
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import config, int64, njit
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from fastadam.kernels.kernel_cache import harden
from fastadam.kernels.sources import all_sources

_DIGEST = sha256(all_sources())
# Python's error model would test each division for zero, which stops vectorisation: 4 times slower.
_OPTIONS = {"error_model": "numpy"}
# Numba caches only what lies in a file; for what was made by `exec`, this one, or that of a frozen program.
_PLACE = __file__ if Path(__file__).exists() else sys.executable
# Name -> leaf. Their machine code lives as long as they do.
_leaves: dict = {}


def jit(function, name, sources="", *, parallel=False, nogil=False):
    """`function` compiled under `name`, and cached on disk as long as `sources` stay.

    Other Python threads run meanwhile if it is `parallel` or `nogil`. With NUMBA_DISABLE_JIT=1 it is the function
    itself.
    """
    named: Any = _named(function, name, sources)
    if config.DISABLE_JIT:
        named.compile = lambda signature: named
        return named
    kernel = njit(parallel=parallel, nogil=nogil, **_OPTIONS)(named)
    harden(kernel, named)
    return kernel


def leaf(function):
    """`function` of int64, which returns an int64, compiled to be called by its `address`.

    It comes from :func:`text.function <fastadam.kernels.texts.text.function>`: its name tells all that it calls.
    """
    named = _named(function, function.__name__)
    if named.__name__ not in _leaves:
        signature = int64(*[int64] * function.__code__.co_argcount)
        compiled = CFunc(named, normalize_signature(signature), locals={}, options=_OPTIONS)
        harden(compiled, named)
        compiled.compile()
        _leaves[named.__name__] = compiled
    return _leaves[named.__name__]


def _named(function, name, sources=""):
    # Numba's cache file bears the function's name and nothing of what is inlined. The digest of every text that is
    # compiled here keeps an edited one away from old machine code.
    digest = _DIGEST.copy()
    digest.update(sources.encode())
    code = function.__code__
    if not Path(code.co_filename).exists():
        code = code.replace(co_filename=_PLACE)
    named = types.FunctionType(code, function.__globals__, f"{name}_{digest.hexdigest()[:16]}")
    named.__qualname__ = named.__name__
    return named
