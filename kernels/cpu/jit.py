"""Compilation by Numba, and its cache on disk."""

import contextlib
import types
from hashlib import sha256
from pathlib import Path

from numba import njit

import fastadam.kernels

_KERNELS = Path(fastadam.kernels.__file__).parent
_SOURCES = b"".join(path.read_bytes() for path in sorted(_KERNELS.rglob("*.py")))


def jit(template, name, sources="", names=None, *, parallel=False):
    """`template` compiled under `name`, with `names` for its globals, and cached on disk as long as `sources` stay."""
    # Numba's cache file bears the function's name and nothing of what is inlined. The digest of every text that is
    # compiled here keeps an edited one away from old machine code; the twin's name keeps the twins apart.
    digest = sha256(_SOURCES + sources.encode()).hexdigest()[:16]
    body = types.FunctionType(template.__code__, {**template.__globals__, **(names or {})}, f"{name}_{digest}")
    body.__qualname__ = body.__name__
    # Python's error model would test each division for zero, which stops vectorisation: 4 times slower.
    kernel = njit(parallel=parallel, error_model="numpy")(body)
    # RuntimeError: there is no writable place for a cache. The kernel is then compiled in every process.
    with contextlib.suppress(RuntimeError):
        kernel.enable_caching()
    return kernel
