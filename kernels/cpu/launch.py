"""The CPU kernel: one pass over flat buffers, compiled by Numba from the update text, serial or on all threads."""

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import prange, types
from numba.extending import register_jitable

from fastadam.kernels.cpu.jit import jit
from fastadam.kernels.cpu.loop import loop_of
from fastadam.kernels.cpu.norm import clip, squares_launcher
from fastadam.kernels.cpu.prefetch import AHEAD, fetch_of, is_far
from fastadam.kernels.cpu.rows import catch_up, catch_up_table
from fastadam.kernels.cpu.threads import PARALLEL_FROM, on_threads
from fastadam.kernels.texts import casts, fold
from fastadam.kernels.texts.formats import EXPONENT_BLOCK, NATIVE

__all__ = [
    "BLOCK",
    "DIRECT_FROM",
    "PARALLEL_FROM",
    "address",
    "blocks_of",
    "catch_up",
    "catch_up_table",
    "clip",
    "copy_out",
    "launch_flat",
    "launcher",
    "squares_launcher",
    "upload",
]

# A gradient of this size or more is read where it lies; a smaller one is first copied into the flat buffer, which costs
# less than to find out its address.
DIRECT_FROM = PARALLEL_FROM

# Elements that a thread takes at a time. From 4,096 to 262,144 they make no difference beyond 5% (bench/constants.py).
BLOCK = 16_384
assert BLOCK % EXPONENT_BLOCK == 0

# What `jit` puts in the place of these names, from the texts.
_loop: Any = None
_fetch: Any = None
_fold_row: Any = None


def launcher(update, dtype, size):
    """`launch(flats, addresses, blocks, rows, hyper, carried, table, grad_scale)` for `size` elements of `dtype`."""
    if size < PARALLEL_FROM:
        return compiled(update, np.dtype(dtype), parallel=False)
    return on_threads(lambda parallel: compiled(update, np.dtype(dtype), parallel=parallel))


def launch_flat(update, flats, gradient, hyper, carried, grad_scale):
    """One step of flat arrays."""
    size, dtype = flats[0].size, update.storage.arithmetic(flats[0])
    table, rows = np.zeros((1, fold.COLUMNS), dtype), np.zeros(1, np.int64)
    blocks = blocks_of([(0, size, 0, 0, 0)])
    launch = launcher(update, dtype, size)
    addresses = np.array([address(gradient)])
    launch(flats, addresses, blocks, rows, hyper.reshape(1, -1), carried.reshape(1, -1), table, grad_scale)


def upload(array, like=None):
    """`array`, where a kernel on the device of `like` can read it."""
    return array


def copy_out(p, low, kind):
    """Write `p`, rounded to `kind` ("bfloat16" or "float16"), into the bits `low`."""
    with np.errstate(all="ignore"):
        low[...] = casts.to_bfloat16(p) if kind == "bfloat16" else casts.to_float16(p)


def address(array):
    """Where `array` lies; it must live on until the launch that reads it returns."""
    return array.__array_interface__["data"][0]


def blocks_of(pieces, like=None, storage=NATIVE):
    """`pieces` (start, stop, row, parameter, offset), cut into blocks that threads share."""
    pieces = np.asarray(pieces, np.int64).reshape(-1, 5)
    sizes = pieces[:, 1] - pieces[:, 0]
    if not len(sizes) or sizes.max() <= BLOCK:
        return pieces
    counts = -(-sizes // BLOCK)
    blocks = np.repeat(pieces, counts, axis=0)
    inside = BLOCK * (np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts))
    blocks[:, 0] += inside
    blocks[:, 4] += inside
    np.minimum(blocks[:, 1], blocks[:, 0] + BLOCK, out=blocks[:, 1])
    return blocks


@cache
def compiled(update, dtype, *, parallel):
    """The machine code of one of the twins for arithmetic in `dtype`, compiled now or loaded from the disk cache.

    A call of it skips Numba's look at the types of all arguments, which takes half the time of a short one.
    """
    return twins(update)[parallel].compile(signature(update, dtype))


def signature(update, dtype):
    """The types of the arguments of a launch."""
    element = numba.from_dtype(dtype)
    carried = {"native": element, "uint16": types.uint16, "uint8": types.uint8}
    flats = [types.Array(carried[update.storage.dtype(name)], 1, "C") for name in update.flats]
    integers, doubles = types.Array(types.int64, 1, "C"), types.Array(types.float64, 2, "C")
    blocks, table = types.Array(types.int64, 2, "C"), types.Array(element, 2, "C")
    return types.BaseTuple.from_types(flats), integers, blocks, integers, doubles, doubles, table, types.float64


@cache
def twins(update):
    """The serial and the parallel kernel of `update`: one loop, compiled twice."""
    return twin(update, parallel=False), twin(update, parallel=True)


def twin(update, *, parallel):
    """One of the two, not yet compiled."""
    names = {
        "_loop": register_jitable(loop_of(update)),
        "_fetch": register_jitable(fetch_of(update)),
        "_fold_row": register_jitable(update.fold_row),
    }
    name = f"{update.name}_{'parallel' if parallel else 'serial'}"
    return jit(_one_pass, name, f"{update.sources}{update.storage}", names, parallel=parallel)


def _one_pass(flats, addresses, blocks, rows, hyper, carried, table, grad_scale):
    for row in rows:
        _fold_row(hyper[row], carried[row], grad_scale, table[row])
    for index in prange(blocks.shape[0]):
        if is_far(blocks, index + AHEAD):
            _fetch(flats, addresses, blocks, index + AHEAD)
        start, stop, row, parameter, offset = blocks[index]
        _loop(table[row], addresses[parameter], offset, flats, start, stop)
