"""Memory and functions by address: arrays that begin at an integer, and calls of machine code."""

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable


@intrinsic
def _pointer(_, address, start, like):
    """The pointer to number `start` of those like `like` that begin at `address`."""

    def generate(context, builder, signature, arguments):
        first = builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
        return builder.gep(first, [arguments[1]])

    return types.CPointer(like)(address, start, like), generate


@register_jitable
def view(address, start, size, like):
    """The array of `size` numbers like `like` that starts `start` numbers after `address`.

    It has no reference count, over which the threads would fight: 80 ns a block.
    """
    return carray(_pointer(address, start, like), size)


@intrinsic
def call(_, address, *arguments):
    """What the machine code at `address` returns for `arguments`, all int64."""

    def generate(context, builder, signature, values):
        number, given = ir.IntType(64), cgutils.unpack_tuple(builder, values[1])
        kind = ir.FunctionType(number, [number] * len(given))
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), given)

    return types.int64(address, types.StarArgTuple(arguments)), generate


@intrinsic
def integer_at(_, address, index):
    """Number `index` of the int64 that begin at `address`."""

    def generate(context, builder, signature, arguments):
        first = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(first, [arguments[1]]))

    return types.int64(types.int64, types.int64), generate
