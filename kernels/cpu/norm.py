"""The reduction of :mod:`norm <fastadam.kernels.norm>`, compiled by Numba."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastadam.kernels import CLOCK, GRAD_SCALE, GRADIENT, NORM, SKIPPED, START, STOP, TAKEN, Each, Launch, Tables
from fastadam.kernels.blocks import BLOCK
from fastadam.kernels.cpu.casts import SOURCES
from fastadam.kernels.cpu.driver import LEAF, LEAVES, launch_of
from fastadam.kernels.cpu.jit import jit, leaf
from fastadam.kernels.cpu.loop import NAMES, number_like
from fastadam.kernels.cpu.pointers import view
from fastadam.kernels.cpu.tuning import tuning
from fastadam.kernels.norm import LANES
from fastadam.kernels.subnormals import flushed
from fastadam.kernels.texts.clip import clip as clip_text
from fastadam.kernels.texts.clip import clip_of_one
from fastadam.kernels.texts.formats import Formats
from fastadam.kernels.texts.member import CLIP
from fastadam.kernels.texts.text import block, function

register_jitable(clip_text)
register_jitable(clip_of_one)


def squares(dtype: np.dtype, format: str, blocks: np.ndarray, tables: Tables, sums: Any) -> Launch:
    """The launch that writes the sum of squares of the gradients of each block: level 0 of the reduction.

    `sums` is float64 (blocks,); `format` is how the gradients are stored.
    """
    leaves = _leaves(np.dtype(dtype), format, _ahead(np.dtype(dtype), format, blocks))
    # Each block has a number of `sums` in place of one of scalars.
    rows = blocks.copy()
    rows[:, CLOCK] = np.arange(len(blocks))
    return launch_of(
        rows,
        (leaves, sums, tables.addresses),
        leaves=leaves.ctypes.data,
        table=sums.ctypes.data,
        table_bytes=sums.strides[0],
        addresses=tables.addresses.ctypes.data,
        address_bytes=tables.addresses.strides[0],
    )


def clip(
    sums: Any,
    grad_scale: float,
    max_grad_norm: float,
    largest: float,
    propagate: float,
    tables: Tables,
    squares: Sequence[Callable[[], None]] = (),
    each: Each | None = None,
) -> None:
    """Call `squares`, add up `sums`, in place, and write what follows from the norm into `tables.record`."""
    for write in squares:
        write()
    if each is not None:
        clip_each(sums, each.ends, each.clocks, grad_scale, each.max_grad_norm, tables)
    with flushed():
        _clip_kernel()(sums, grad_scale, max_grad_norm, largest, propagate, tables.record)
    if each is not None:
        # What is not finite in the gradient of one parameter is no factor on those of others.
        tables.record[GRAD_SCALE] = grad_scale


def each(ends: np.ndarray, clocks: np.ndarray, max_grad_norm: float, tables: Tables) -> Each:
    """What `clip` is to know to clip the gradients of each parameter by their own norm."""
    return Each(ends, clocks, max_grad_norm)


def clip_each(
    sums: np.ndarray, ends: np.ndarray, clocks: np.ndarray, grad_scale: float, max_grad_norm: float, tables: Tables
) -> None:
    """Write the factor that clips the gradients of each parameter into the hyperparameters of its clock."""
    with flushed():
        _clip_each_kernel()(sums, ends, clocks, grad_scale, max_grad_norm, tables.hyper)


def _ahead(dtype, format, blocks):
    """How many bytes ahead gradients are fetched."""
    chosen, elements = tuning(), int((blocks[:, STOP] - blocks[:, START]).sum())
    return chosen.bytes if elements * Formats(g=format).itemsize("g", dtype) >= chosen.least else 0


@cache
def _leaves(dtype, format, ahead):
    row = np.zeros(LEAVES, np.int64)
    row[LEAF] = leaf(squares_of(dtype, format, ahead)).address
    return row


def squares_of(dtype: np.dtype, format: str, ahead: int = 0) -> Callable:
    """`leaf(sum_at, address_row, start, stop, first)`: add up the squares of a block of gradients.

    Memory is fetched so many bytes `ahead`, unless that is 0.
    """
    formats = Formats(g=format)
    line = LANES * formats.itemsize("g", dtype)
    fetched = [f"fetch_to_read(line.ctypes.data + {ahead}, {line})"] if ahead else []
    # The square of a float32 is exact in float64, so that it has the same bits fused or not.
    square_added = _square_added if dtype == np.float64 else _square_fused
    source = block(
        "def squares(sum_at, address_row, start, stop, first):",
        f"lanes = view(lanes_on_stack(), 0, {LANES}, float64(0))",
        f"address = view(address_row, {GRADIENT}, 1, int64(0))[0]",
        f"gradient = view(address, first, stop - start, {number_like(formats, 'g', dtype)})",
        "lanes[:] = 0.0",
        block(
            f"for begin in range(0, stop - start, {LANES}):",
            f"line = gradient[begin : begin + {LANES}]",
            *fetched,
            block(
                "for lane in range(line.size):",
                f"value = float64({formats.load('g', 'line[lane]')})",
                "lanes[lane] = square_added(value, lanes[lane])",
            ),
        ),
        "view(sum_at, 0, 1, float64(0))[0] = sum_of(lanes)",
        "return 0",
    )
    names = {"square_added": square_added, "lanes_on_stack": _lanes_on_stack, "sum_of": _sum_of}
    return function(source, callees=SOURCES, **names, **NAMES)


@intrinsic
def _lanes_on_stack(_):
    """The address of memory for a number in each lane, which is the caller's until it returns."""

    def generate(context, builder, signature, arguments):
        lanes = cgutils.alloca_once(builder, ir.ArrayType(ir.DoubleType(), LANES))
        return builder.ptrtoint(lanes, ir.IntType(64))

    return types.int64(), generate


@register_jitable
def _sum_of(lanes):
    """The sum of all `lanes`, by halves, in place."""
    half = LANES // 2
    while half > 0:
        for lane in range(half):
            lanes[lane] += lanes[half + lane]
        half //= 2
    return lanes[0]


@register_jitable
def _square_added(value, total):
    return total + value * value


@intrinsic
def _square_fused(_, value, total):
    """The same, in one operation where the processor can."""

    def generate(context, builder, signature, arguments):
        number = ir.DoubleType()
        kind = ir.FunctionType(number, [number] * 3)
        value, total = arguments
        return builder.call(builder.module.declare_intrinsic("llvm.fmuladd", [number], kind), [value, value, total])

    return types.float64(types.float64, types.float64), generate


@cache
def _clip_kernel():
    numbers, number = types.Array(types.float64, 1, "C"), types.float64
    return jit(_clip, "clip").compile((numbers, number, number, number, number, numbers))


def _clip(sums, grad_scale, max_grad_norm, largest, propagate, record):
    grad_scale, taken, norm = clip_text(grad_scale, _combine(sums), max_grad_norm, largest, propagate)
    record[GRAD_SCALE], record[TAKEN], record[NORM] = grad_scale, taken, norm
    record[SKIPPED] += 1.0 - taken


@cache
def _clip_each_kernel():
    number, indices = types.float64, types.Array(types.int64, 1, "C")
    arguments = types.Array(number, 1, "C"), indices, indices, number, number, types.Array(number, 2, "C")
    return jit(_clip_each, "clip_each").compile(arguments)


def _clip_each(sums, ends, clocks, grad_scale, max_grad_norm, hyper):
    start = 0
    for index in range(ends.size):
        # A copy, since the sums of all are added up in place afterwards.
        squared_norm = _combine(sums[start : ends[index]].copy())
        hyper[clocks[index], CLIP] = clip_of_one(grad_scale, squared_norm, max_grad_norm)
        start = ends[index]


@register_jitable
def _combine(sums):
    lanes = view(_lanes_on_stack(), 0, LANES, 0.0)
    count = sums.size
    while count > 1:
        groups = (count + BLOCK - 1) // BLOCK
        for group in range(groups):
            lanes[:] = 0.0
            for begin in range(group * BLOCK, min((group + 1) * BLOCK, count), LANES):
                line = sums[begin : min(begin + LANES, count)]
                for lane in range(line.size):
                    lanes[lane] += line[lane]
            sums[group] = _sum_of(lanes)
        count = groups
    return sums[0]
