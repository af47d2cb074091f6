"""Machine code made anew, its listings, and the instructions in them as regular expressions."""

import contextlib
import platform
import re
from unittest import mock

import numba
import numpy as np

from fastadam.kernels.cpu import driver, jit, launch, norm, rows

# Processor -> (vector instruction of each dtype, conversion to 16 bits by integers, fused multiply-add, call).
INSTRUCTIONS = {
    "x86": (
        {np.float32: r"\bv?{}ps\b", np.float64: r"\bv?{}pd\b"},
        r"\bv?psrld\b.*[xyz]mm",
        r"\bv?fn?m(add|sub)",
        r"\tcallq?\b",
    ),
    "arm": (
        {np.float32: r"\bf{}(\.4s|\s+v\d+\.4s)", np.float64: r"\bf{}(\.2d|\s+v\d+\.2d)"},
        r"\b(u?shrn?2?|uzp2|u?sra|sri)(\.\w+|\s+v\d+\.)",
        r"\bfn?m(la|ls|add|sub)\b",
        r"\tblr?\b",
    ),
}
PACKED, SHIFTED, FUSED, CALL = INSTRUCTIONS["arm" if platform.machine() in ("arm64", "aarch64") else "x86"]

_REMEMBERED = (driver.driver, launch.leaves_of, norm._leaves, rows._leaves)


@contextlib.contextmanager
def nothing_compiled(folder):
    """As in a new process whose disk cache is `folder`."""
    with mock.patch.object(numba.config, "CACHE_DIR", str(folder)), mock.patch.object(jit, "_leaves", {}):
        for function in _REMEMBERED:
            function.cache_clear()
        yield
        for function in _REMEMBERED:
            function.cache_clear()


def leaves():
    """All leaves that have been compiled or loaded."""
    return list(jit._leaves.values())


def assembly(leaf):
    """The listing of a leaf that was compiled here: Numba has none of what it loaded.

    Without the entry from C, which only reports errors.
    """
    listing = leaf._library.get_asm_str()
    begin = re.search(r"^(?!cfunc)\w+:$", listing, re.MULTILINE)
    assert begin is not None
    return listing[begin.start() : listing.index(".cfi_endproc", begin.start())]
