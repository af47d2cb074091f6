"""The reduction of :mod:`norm <fastadam.kernels.norm>`, compiled by Numba."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from fastadam.kernels import CLOCK, GRAD_SCALE, GRADIENT, NORM, SKIPPED, START, STOP, TAKEN, Launch, Tables
from fastadam.kernels.cpu.casts import SOURCES
from fastadam.kernels.cpu.driver import LEAF, LEAVES, launch_of
from fastadam.kernels.cpu.jit import jit, leaf
from fastadam.kernels.cpu.loop import NAMES, number_like
from fastadam.kernels.cpu.tuning import tuning
from fastadam.kernels.norm import LANES, LINES
from fastadam.kernels.subnormals import flushed
from fastadam.kernels.texts.clip import clip as clip_text
from fastadam.kernels.texts.formats import Formats
from fastadam.kernels.texts.text import block, function

register_jitable(clip_text)


def squares(dtype: np.dtype, format: str, blocks: np.ndarray, tables: Tables, lanes: Any) -> Launch:
    """The launch that writes the sums of squares of the gradients of each block: level 0 of the reduction.

    `lanes` is float64 (blocks, LANES); `format` is how the gradients are stored.
    """
    leaves = _leaves(np.dtype(dtype), format, _ahead(np.dtype(dtype), format, blocks))
    # Each block has a row of `lanes` in place of one of scalars.
    rows = blocks.copy()
    rows[:, CLOCK] = np.arange(len(blocks))
    return launch_of(
        rows,
        (leaves, lanes, tables.addresses),
        leaves=leaves.ctypes.data,
        table=lanes.ctypes.data,
        table_bytes=lanes.strides[0],
        addresses=tables.addresses.ctypes.data,
        address_bytes=tables.addresses.strides[0],
    )


def clip(lanes: Any, grad_scale: float, max_grad_norm: float, largest: float, propagate: float, tables: Tables) -> None:
    """Add up `lanes`, and write what follows from the norm into `tables.record`."""
    with flushed():
        _clip_kernel()(lanes, grad_scale, max_grad_norm, largest, propagate, tables.record)


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
    """`leaf(lanes_row, address_row, start, stop, first)`: add up a block of gradients, lane by lane.

    Memory is fetched so many bytes `ahead`, unless that is 0.
    """
    formats = Formats(g=format)
    line = LANES * formats.itemsize("g", dtype)
    fetched = [f"fetch_to_read(line.ctypes.data + {ahead}, {line})"] if ahead else []
    # The square of a float32 is exact in float64, so that it has the same bits fused or not.
    square_added = _square_added if dtype == np.float64 else _square_fused
    source = block(
        "def squares(lanes_row, address_row, start, stop, first):",
        f"sums = view(lanes_row, 0, {LANES}, float64(0))",
        f"address = view(address_row, {GRADIENT}, 1, int64(0))[0]",
        f"gradient = view(address, first, stop - start, {number_like(formats, 'g', dtype)})",
        "sums[:] = 0.0",
        block(
            f"for begin in range(0, stop - start, {LANES}):",
            f"line = gradient[begin : begin + {LANES}]",
            *fetched,
            block(
                "for lane in range(line.size):",
                f"value = float64({formats.load('g', 'line[lane]')})",
                "sums[lane] = square_added(value, sums[lane])",
            ),
        ),
        "return 0",
    )
    return function(source, callees=SOURCES, square_added=square_added, **NAMES)


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
    lanes, record, number = types.Array(types.float64, 2, "C"), types.Array(types.float64, 1, "C"), types.float64
    return jit(_clip, "clip").compile((lanes, number, number, number, number, record))


def _clip(lanes, grad_scale, max_grad_norm, largest, propagate, record):
    grad_scale, taken, norm = clip_text(grad_scale, _combine(lanes), max_grad_norm, largest, propagate)
    record[GRAD_SCALE], record[TAKEN], record[NORM] = grad_scale, taken, norm
    record[SKIPPED] += 1.0 - taken


@register_jitable
def _combine(lanes):
    count = lanes.shape[0]
    while count > 1:
        groups = (count + LINES - 1) // LINES
        for group in range(groups):
            sums, first = lanes[group], group * LINES
            sums[:] = lanes[first]
            for line in lanes[first + 1 : min(first + LINES, count)]:
                for lane in range(LANES):
                    sums[lane] += line[lane]
        count = groups
    total = lanes[0, 0]
    for lane in range(1, LANES):
        total += lanes[0, lane]
    return total
