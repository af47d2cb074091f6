"""Subnormal numbers are zero: the mode of the processor's arithmetic in which all kernels on the CPU run.

On Intel one subnormal operand makes an operation some 100 times slower, and the first moment of an element without
gradients ends as a subnormal that never fades. So operands and results that are subnormal count as zeros of their sign,
as on CUDA, where CuPy flushes those of float32. The mode belongs to a thread; whoever sets it restores what was there,
the sticky flags of exceptions too. It must be set outside of the compiled function whose arithmetic it shall hold for:
LLVM moves operations across the switch.
"""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """In this thread subnormals are zero inside of the context, in NumPy's operations as in compiled ones."""
    # Imported only now, as it loads Numba, which users of CUDA do without.
    from fastadam.kernels import switches

    if not switches.flushes():
        yield
        return
    begin, end = switches.compiled()
    mode = begin()
    try:
        yield
    finally:
        end(mode)
