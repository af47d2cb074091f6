"""Prefetching of memory: where the processor does not expect the next access, or does not fetch early enough."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable


@register_jitable
def fetch_to_write(address, size):
    """Fetch the lines of `size` bytes from `address` on, which will be written."""
    for byte in range(0, size, 64):
        fetch_line(address + byte)


@register_jitable
def fetch_to_read(address, size):
    """Fetch the lines of `size` bytes from `address` on, which will only be read."""
    for byte in range(0, size, 64):
        _fetch_line_to_read(address + byte)


@intrinsic
def fetch_line(_, address):
    """Fetch the line at `address`, for writing."""
    return types.void(address), _prefetch(1)


@intrinsic
def _fetch_line_to_read(_, address):
    return types.void(address), _prefetch(0)


def _prefetch(write):
    """The fetch of the line at an address."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        # To be kept in all caches, data.
        builder.call(prefetch, [pointer, number(write), number(3), number(1)])
        return context.get_dummy_value()

    return generate
