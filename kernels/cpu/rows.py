"""What rows have missed, as of :mod:`catch_up <fastadam.kernels.texts.catch_up>`, made up for by a compiled kernel."""

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import prange, types
from numba.extending import register_jitable

from fastadam.kernels.cpu.jit import jit
from fastadam.kernels.cpu.loop import loop_of
from fastadam.kernels.cpu.prefetch import AHEAD, fetch_of, is_far
from fastadam.kernels.cpu.threads import PARALLEL_FROM, on_threads
from fastadam.kernels.texts import catch_up as catching_up

# What `jit` puts in the place of these names.
_loop: Any = None
_fetch: Any = None
_nodes: Any = None


def catch_up(flats, blocks, table, starts):
    """Make up for missed steps: blocks (start, stop, slot), each by rows `starts[slot]` to `starts[slot + 1]`."""
    size = int((blocks[:, 1] - blocks[:, 0]).sum())
    dtype = flats[0].dtype
    if size < PARALLEL_FROM:
        catch_up_kernel(dtype, parallel=False)(flats, blocks, table, starts)
    else:
        on_threads(lambda parallel: catch_up_kernel(dtype, parallel=parallel))(flats, blocks, table, starts)


def catch_up_table(lasts, now, history, totals, dtype):
    """The table of `make_up` for rows last stepped at each of `lasts`, and where the rows of each begin."""
    tolerance, cutoff = (0.1, 1e-10) if dtype == np.float32 else (0.0, 1e-19)
    counts = np.zeros(len(lasts), np.int64)
    arguments = lasts, now, history, totals, tolerance, cutoff
    find = on_threads(lambda parallel: _nodes_kernel(parallel=parallel and len(lasts) > 8))
    find(*arguments, np.zeros((0, catching_up.COLUMNS)), np.zeros(len(lasts) + 1, np.int64), counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    table = np.zeros((starts[-1], catching_up.COLUMNS))
    find(*arguments, table, starts, counts)
    return table.astype(dtype), starts


@cache
def catch_up_kernel(dtype, *, parallel):
    """The machine code of one of the twins."""
    update, element = catching_up.CATCH_UP, numba.from_dtype(dtype)
    names = {"_loop": register_jitable(loop_of(update)), "_fetch": register_jitable(fetch_of(update))}
    flat, integers = types.Array(element, 1, "C"), types.Array(types.int64, 1, "C")
    blocks, table = types.Array(types.int64, 2, "C"), types.Array(element, 2, "C")
    name = f"catch_up_{'parallel' if parallel else 'serial'}"
    kernel = jit(_catch_up, name, update.sources, names, parallel=parallel)
    return kernel.compile((types.UniTuple(flat, len(update.flats)), blocks, table, integers))


@cache
def _nodes_kernel(*, parallel):
    integers, doubles = types.Array(types.int64, 1, "C"), types.Array(types.float64, 2, "C")
    names = {"_nodes": register_jitable(catching_up.nodes)}
    register_jitable(catching_up.close_run)
    register_jitable(catching_up.gap)
    kernel = jit(_all_nodes, f"nodes_{'parallel' if parallel else 'serial'}", names=names, parallel=parallel)
    number = types.float64
    return kernel.compile((integers, types.int64, doubles, doubles, number, number, doubles, integers, integers))


def _catch_up(flats, blocks, table, starts):
    for index in prange(blocks.shape[0]):
        if is_far(blocks, index + AHEAD):
            _fetch(flats, starts, blocks, index + AHEAD)
        start, stop, slot = blocks[index]
        for row in range(starts[slot], starts[slot + 1]):
            _loop(table[row], 0, 0, flats, start, stop)


def _all_nodes(lasts, now, history, totals, tolerance, cutoff, table, starts, counts):
    for slot in prange(lasts.size):
        rows = table[starts[slot] : starts[slot + 1]]
        counts[slot] = _nodes(lasts[slot], now, history, totals, tolerance, cutoff, rows)
