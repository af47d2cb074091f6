"""The functions of :mod:`casts <fastadam.kernels.texts.casts>`, compiled from their texts by Numba."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastadam.kernels.cpu.pointers import CONSTANTS, mark
from fastadam.kernels.sources import source_of
from fastadam.kernels.texts.casts import CASTS, CHUNK, TURNED, spread
from fastadam.kernels.texts.formats import EXPONENT_GROUP
from fastadam.kernels.texts.text import function


@intrinsic
def _bitcast_to_uint32(_, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def _bitcast_to_float32(_, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _splice(_, upper, lower):
    """`splice(upper, lower)`, by one instruction where the processor has one for two vectors."""

    def generate(context, builder, signature, arguments):
        number = ir.IntType(32)
        funnel = cgutils.get_or_insert_function(builder.module, ir.FunctionType(number, [number] * 3), "llvm.fshl.i32")
        return builder.call(funnel, [*arguments, number(20)])

    return types.uint32(types.uint32, types.uint32), generate


@register_jitable
def _bits_of(value):
    return _bitcast_to_uint32(np.float32(value))


@register_jitable
def _float_of(bits):
    return _bitcast_to_float32(np.uint32(bits))


@register_jitable
def _where(condition, value, other):
    return value if condition else other


@register_jitable
def _maximum(a, b):
    return max(a, b)


@register_jitable
def _minimum(a, b):
    return min(a, b)


@register_jitable
def signum(value):
    """Its sign, as NumPy has it: Numba's is -0 for -0."""
    return np.sign(value) + np.float32(0.0)


@intrinsic
def group_floats(_):
    """Uninitialised float32 for the elements of one exponent group, on the stack: no others share them."""

    def generate(context, builder, signature, arguments):
        return cgutils.alloca_once(builder, ir.FloatType(), size=EXPONENT_GROUP)

    return types.CPointer(types.float32)(), generate


def _spread_at(multiple):
    """A function of `first` and `index`: `multiple` of `spread(first + index)`.

    It reads a table of constants: no multiplication an element.
    """
    words = [int(word) for word in spread(np.arange(2 * CHUNK - 1, dtype=np.uint32)) * np.uint32(multiple)]
    constants = ir.Constant(ir.ArrayType(ir.IntType(32), len(words)), words)

    @intrinsic
    def spread_at(_, first, index):
        def generate(context, builder, signature, arguments):
            table = cgutils.global_constant(builder, f"spread_{multiple}", constants)
            first, index = (
                context.cast(builder, value, kind, types.int64)
                for value, kind in zip(arguments, signature.args, strict=True)
            )
            place = builder.gep(table, [ir.IntType(64)(0), builder.add(first, index, flags=["nsw"])], inbounds=True)
            return mark(builder, builder.load(place), CONSTANTS)

        return types.uint32(first, index), generate

    return spread_at


# Name -> function, for each multiple that random words are.
SPREADS = {f"spread_{multiple}": _spread_at(multiple) for multiple, _ in TURNED.values()}
SOURCES = "".join(source_of(cast) for cast in CASTS)


def _compiled() -> dict[str, Any]:
    # Numba makes uint32 op uint32 a uint64; the casts of the text bring every result back, or half the lanes are lost.
    names: dict[str, Any] = {
        "uint8": np.uint8,
        "uint16": np.uint16,
        "uint32": np.uint32,
        "float32": np.float32,
        "bits_of": _bits_of,
        "float_of": _float_of,
        "where": _where,
        "maximum": _maximum,
        "minimum": _minimum,
        "splice": _splice,
    }
    for cast in CASTS:
        names.setdefault(cast.__name__, register_jitable(function(source_of(cast), callees=SOURCES, **names)))
    return names


# Name -> the function that kernels call.
COMPILED = _compiled()
