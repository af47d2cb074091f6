"""The reduction of :mod:`norm <fastadam.kernels.norm>`, compiled by Numba."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from fastadam.kernels import CLOCK, GRAD_SCALE, GRADIENT, NORM, SKIPPED, START, STOP, TAKEN, Tables
from fastadam.kernels.cpu.casts import SOURCES
from fastadam.kernels.cpu.driver import LEAF, LEAVES, launch_of
from fastadam.kernels.cpu.jit import jit, leaf
from fastadam.kernels.cpu.loop import NAMES, itemsize_of, number_like
from fastadam.kernels.cpu.tuning import tuning
from fastadam.kernels.norm import LANES, LINES
from fastadam.kernels.subnormals import flushed
from fastadam.kernels.texts.clip import clip as clip_text
from fastadam.kernels.texts.formats import Formats
from fastadam.kernels.texts.text import block, function

register_jitable(clip_text)

# Lines that are added up at a time.
TOGETHER = 4


def squares(dtype: np.dtype, format: str, blocks: np.ndarray, tables: Tables, lanes: Any) -> Callable[[], None]:
    """A function that writes the sums of squares of the gradients of each block: level 0 of the reduction.

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
    return chosen.bytes if elements * itemsize_of(Formats(g=format), "g", dtype) >= chosen.least else 0


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
    like, size = number_like(formats, "g", dtype), LANES * itemsize_of(formats, "g", dtype)
    fetched = [f"fetch_to_read(gradient.ctypes.data + {size} * line + {ahead}, {TOGETHER * size})"] if ahead else []
    values = [
        line
        for index in range(TOGETHER)
        for line in (
            f"value{index} = float64({formats.load('g', f'part[lane + {index * LANES}]')})",
            f"total += value{index} * value{index}",
        )
    ]
    source = block(
        "def squares(lanes_row, address_row, start, stop, first):",
        f"sums = view(lanes_row, 0, {LANES}, float64(0))",
        f"address = view(address_row, {GRADIENT}, 1, int64(0))[0]",
        f"gradient = view(address, first, stop - start, {like})",
        "sums[:] = 0.0",
        f"whole = (stop - start) // {TOGETHER * LANES} * {TOGETHER}",
        # Their sums stay in registers for so many lines, each added in its turn.
        block(
            f"for line in range(0, whole, {TOGETHER}):",
            f"part = view(gradient.ctypes.data, {LANES} * line, {TOGETHER * LANES}, {like})",
            *fetched,
            block(f"for lane in range({LANES}):", "total = sums[lane]", *values, "sums[lane] = total"),
        ),
        block(
            f"for begin in range({LANES} * whole, stop - start, {LANES}):",
            f"line = gradient[begin : begin + {LANES}]",
            block(
                "for lane in range(line.size):",
                f"value = float64({formats.load('g', 'line[lane]')})",
                "sums[lane] += value * value",
            ),
        ),
        "return 0",
    )
    return function(source, callees=SOURCES, **NAMES)


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
