"""Numba's mask of a thread: how many threads its next parallel loop takes. Machine code writes it, and writes it back.

From Python, an exception from outside, such as Ctrl-C, could come before the mask is as it was again.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

_NUMBER = ir.IntType(32)


@register_jitable
def swap_mask(threads):
    """Let the next parallel loop of this thread take so many threads; returns the mask that was there."""
    before = _mask()
    set_mask(threads)
    return before


# Whoever compiles these has started Numba's pool, which says what the names mean. `_mask` cannot stand in a function
# with a parallel loop itself: Numba declares the same name there with another type.
@intrinsic
def _mask(_):
    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_NUMBER, [])
        number = builder.call(cgutils.get_or_insert_function(builder.module, kind, "get_num_threads"), [])
        return builder.sext(number, ir.IntType(64))

    return types.int64(), generate


@intrinsic
def set_mask(_, threads):
    """Let the next parallel loop of this thread take so many threads."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [_NUMBER])
        function = cgutils.get_or_insert_function(builder.module, kind, "set_num_threads")
        builder.call(function, [builder.trunc(arguments[0], _NUMBER)])
        return context.get_dummy_value()

    return types.void(types.int64), generate
