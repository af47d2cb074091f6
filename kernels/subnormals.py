"""Subnormal numbers are zero: the mode of the processor's arithmetic in which all kernels on the CPU run.

On Intel one subnormal operand makes an operation some 100 times slower, and the first moment of an element without
gradients ends as a subnormal that never fades. So operands and results that are subnormal count as zeros of their sign,
as on CUDA, where CuPy flushes those of float32. The mode belongs to a thread; whoever sets it restores what was there,
the sticky flags of exceptions too. It must be set outside of the compiled function whose arithmetic it shall hold for:
LLVM moves operations across the switch.
"""

import threading
from functools import partial

_before = threading.local()


def leave() -> None:
    """Write back the mode of this thread, if an exception from outside came where `flushed` was to do so."""
    restore = getattr(_before, "restore", None)
    if restore is not None:
        restore()


class flushed:
    """In this thread subnormals are zero inside of the context, in NumPy's operations as in compiled ones."""

    # A class, which takes 1.0 us: a generator takes 1.8, and a small step with clipping 4.3.
    __slots__ = ("_end", "_mode")

    def __enter__(self) -> None:
        # Imported only now, as it loads Numba, which users of CUDA do without.
        from fastadam.kernels import switches

        self._end = None
        if switches.flushes():
            begin, end, mode = switches.compiled()
            self._mode = mode()
            if not self._mode & switches.flushing():  # not inside of another
                _before.restore = partial(end, self._mode)
            # An exception from outside that comes as `begin` returns would leave the mode to the thread.
            try:
                begin()
                self._end = end
            except BaseException:
                end(self._mode)
                raise

    def __exit__(self, *error: object) -> None:
        if self._end is not None:
            self._end(self._mode)
