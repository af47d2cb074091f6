"""Memory and functions by address: arrays that begin at an integer, and calls of machine code."""

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastadam.kernels import ADDRESSES


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


@intrinsic
def count(_, address, index):
    """Add one to number `index` of the int64 that begin at `address`."""

    def generate(context, builder, signature, arguments):
        first = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        place = builder.gep(first, [arguments[1]])
        builder.store(builder.add(builder.load(place), ir.IntType(64)(1)), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


# Scopes of memory: one for each column of the addresses, and one for the table of constants.
CONSTANTS = ADDRESSES


def mark(builder: ir.IRBuilder, access: ir.Instruction, scope: int) -> ir.Instruction:
    """Tell LLVM that memory of one scope is never that of another; returns `access`.

    It would find out at run time, for each array against all others: in a loop over chunks of 128 elements, 200
    instructions a chunk beside 330 that step it.
    """
    module = builder.module
    domain = module.add_metadata(["fastadam"])
    scopes = [module.add_metadata([f"scope {number}", domain]) for number in range(ADDRESSES + 1)]
    access.set_metadata("alias.scope", module.add_metadata([scopes[scope]]))
    access.set_metadata("noalias", module.add_metadata(scopes[:scope] + scopes[scope + 1 :]))
    return access


def _access(scope):
    """The two functions that read and write number `index` of those like `like` from `address` on."""

    def place(context, builder, like, address, index):
        first = builder.inttoptr(address, context.get_data_type(like).as_pointer())
        return builder.gep(first, [index])

    @intrinsic
    def read(_, address, index, like):
        def generate(context, builder, signature, values):
            return mark(builder, builder.load(place(context, builder, like, *values[:2])), scope)

        return like(types.int64, types.int64, like), generate

    @intrinsic
    def write(_, address, index, like, value):
        def generate(context, builder, signature, values):
            mark(builder, builder.store(values[3], place(context, builder, like, *values[:2])), scope)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, like, like), generate

    return read, write


# Name -> function, for each column of the addresses.
ACCESSES = {
    f"{name}_{scope}": function
    for scope in range(ADDRESSES)
    for name, function in zip(("read", "write"), _access(scope), strict=True)
}
