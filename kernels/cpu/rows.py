"""What rows have missed, as of :mod:`catch_up <fastadam.kernels.texts.catch_up>`, made up for by a compiled kernel."""

from functools import cache
from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import register_jitable

from fastadam.kernels import GRADIENT, Launch
from fastadam.kernels.cpu.driver import COLUMNS, ITEMSIZES, LEAF, LEAVES, launch_of
from fastadam.kernels.cpu.jit import jit, leaf
from fastadam.kernels.cpu.loop import repeated_loop_of
from fastadam.kernels.cpu.mask import set_mask, swap_mask
from fastadam.kernels.cpu.threads import on_threads
from fastadam.kernels.texts import catch_up as catching_up
from fastadam.kernels.texts.catch_up import CATCH_UP, close_run, gap, nodes

for _each in (gap, close_run, nodes):
    register_jitable(_each)


def catch_up(addresses: np.ndarray, dtype: np.dtype, blocks: np.ndarray, table: Any, starts: Any) -> Launch:
    """The launch that makes up for missed steps: blocks (PARAMETER, slot, START, STOP).

    Each gets rows `starts[slot]` to `starts[slot + 1]` of `table`. Row PARAMETER of `addresses` has where p, m and v
    begin.
    """
    dtype, slots = np.dtype(dtype), blocks[:, 1]
    leaves = _leaves(dtype)
    # The leaf has its first row of `table` in place of that of a clock, and how many there are in place of FIRST.
    told = np.column_stack([blocks[:, 0], starts[slots], blocks[:, 2:], starts[slots + 1] - starts[slots]])
    # As rows of addresses are, with a column for the gradient.
    padded = np.pad(addresses, ((0, 0), (GRADIENT + 1, 0)))
    return launch_of(
        told,
        (leaves, table, padded),
        leaves=leaves.ctypes.data,
        table=table.ctypes.data,
        table_bytes=table.strides[0],
        addresses=padded.ctypes.data,
        address_bytes=padded.strides[0],
    )


@cache
def _leaves(dtype):
    row = np.zeros(LEAVES, np.int64)
    row[LEAF], row[COLUMNS] = leaf(repeated_loop_of(CATCH_UP, dtype)).address, GRADIENT + 1 + len(CATCH_UP.flats)
    row[ITEMSIZES + GRADIENT + 1 :][: len(CATCH_UP.flats)] = dtype.itemsize
    return row


def catch_up_table(lasts, now, history, totals, dtype):
    """The table of `make_up` for rows last stepped at each of `lasts`, and where the rows of each begin."""
    tolerance, cutoff = (0.1, 1e-10) if dtype == np.float32 else (0.0, 1e-19)
    counts = np.zeros(len(lasts), np.int64)
    arguments = lasts, now, history, totals, tolerance, cutoff
    find = on_threads(_nodes_kernel) if len(lasts) > 8 else _nodes_kernel(False)
    find(*arguments, np.zeros((0, catching_up.COLUMNS)), np.zeros(len(lasts) + 1, np.int64), counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    table = np.zeros((starts[-1], catching_up.COLUMNS))
    find(*arguments, table, starts, counts)
    return table.astype(dtype), starts


@cache
def _nodes_kernel(parallel):
    number, integers, doubles = types.float64, types.Array(types.int64, 1, "C"), types.Array(types.float64, 2, "C")
    signature = integers, types.int64, doubles, doubles, number, number, doubles, integers, integers
    if parallel:
        return jit(_nodes_on_threads, "nodes_parallel", parallel=True).compile((types.int64, *signature))
    return jit(_nodes, "nodes_serial").compile(signature)


def _nodes_on_threads(threads, lasts, now, history, totals, tolerance, cutoff, table, starts, counts):
    mask = swap_mask(threads)
    for slot in prange(lasts.size):
        rows = table[starts[slot] : starts[slot + 1]]
        counts[slot] = nodes(lasts[slot], now, history, totals, tolerance, cutoff, rows)
    set_mask(mask)


def _nodes(lasts, now, history, totals, tolerance, cutoff, table, starts, counts):
    for slot in range(lasts.size):
        rows = table[starts[slot] : starts[slot + 1]]
        counts[slot] = nodes(lasts[slot], now, history, totals, tolerance, cutoff, rows)
