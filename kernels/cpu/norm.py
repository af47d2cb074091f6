"""The reduction of :mod:`norm <fastadam.kernels.norm>`, compiled by Numba."""

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import prange, types
from numba.extending import register_jitable

from fastadam.kernels.cpu.casts import COMPILED, SOURCES
from fastadam.kernels.cpu.jit import jit
from fastadam.kernels.cpu.loop import view
from fastadam.kernels.cpu.threads import PARALLEL_FROM, on_threads
from fastadam.kernels.norm import LANES, ROWS
from fastadam.kernels.texts import fold
from fastadam.kernels.texts.formats import FORMATS
from fastadam.kernels.texts.text import function

# What `jit` puts in the place of these names.
_load: Any = None
_clip_text: Any = None


def squares_launcher(dtype, size, storage="native"):
    """`launch(addresses, blocks, lanes)`: level 0 of :mod:`norm <fastadam.kernels.norm>`.

    It writes the lanes of each of `blocks` of gradients, `size` elements in all, which are of `dtype` or stored in
    another format.
    """
    if size < PARALLEL_FROM:
        kernel = squares_kernel(np.dtype(dtype), storage, parallel=False)
    else:
        kernel = on_threads(lambda parallel: squares_kernel(np.dtype(dtype), storage, parallel=parallel))
    like = _number_like(np.dtype(dtype), storage)
    return lambda addresses, blocks, lanes: kernel(addresses, blocks, lanes, like)


def _number_like(dtype, storage):
    (carried,) = FORMATS[storage].dtypes
    return np.dtype(dtype if carried == "native" else carried).type(0)


def clip(lanes, grad_scale, max_grad_norm, largest, propagate, record):
    """Combine the `lanes` of all blocks, and write what follows from the norm into `record`; return the factor."""
    return _clip_kernel()(lanes, grad_scale, max_grad_norm, largest, propagate, record)


@cache
def squares_kernel(dtype, storage="native", *, parallel):
    """The machine code of one of the twins: its last argument is a number like those of the gradients."""
    lanes, integers = types.Array(types.float64, 2, "C"), types.Array(types.int64, 2, "C")
    like = numba.from_dtype(_number_like(dtype, storage).dtype)
    signature = types.Array(types.int64, 1, "C"), integers, lanes, like
    load = function(f"def load(number): return {FORMATS[storage].load.format('number')}", callees=SOURCES, **COMPILED)
    name = f"norm_{storage}_{'parallel' if parallel else 'serial'}"
    return jit(_sum_squares, name, names={"_load": register_jitable(load)}, parallel=parallel).compile(signature)


@cache
def _clip_kernel():
    lanes, record, number = types.Array(types.float64, 2, "C"), types.Array(types.float64, 1, "C"), types.float64
    names = {"_clip_text": register_jitable(fold.clip)}
    kernel = jit(_clip, "clip", "".join(fold.CLIP.statements), names)
    return kernel.compile((lanes, number, number, number, number, record))


def _sum_squares(addresses, blocks, lanes, like):
    for index in prange(blocks.shape[0]):
        parameter, offset, size = blocks[index]
        gradient, sums = view(addresses[parameter], offset, size, like), lanes[index]
        sums[:] = 0.0
        for start in range(0, size, LANES):
            row = gradient[start : start + LANES]
            for lane in range(row.size):
                value = np.float64(_load(row[lane]))
                sums[lane] += value * value


def _clip(lanes, grad_scale, max_grad_norm, largest, propagate, record):
    grad_scale, taken, norm = _clip_text(grad_scale, _combine(lanes), max_grad_norm, largest, propagate)
    record[0], record[1], record[2] = grad_scale, taken, norm
    record[3] += 1.0 - taken
    return grad_scale


@register_jitable
def _combine(lanes):
    count = lanes.shape[0]
    while count > 1:
        groups = (count + ROWS - 1) // ROWS
        for group in range(groups):
            sums, first = lanes[group], group * ROWS
            sums[:] = lanes[first]
            for row in lanes[first + 1 : min(first + ROWS, count)]:
                for lane in range(LANES):
                    sums[lane] += row[lane]
        count = groups
    total = lanes[0, 0]
    for lane in range(1, LANES):
        total += lanes[0, lane]
    return total
