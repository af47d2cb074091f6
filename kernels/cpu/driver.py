"""The one driver of all launches: it calls a leaf by its address for each block, serially or on all threads.

A leaf is compiled once for an update text, `leaf(table_row, address_row, start, stop, first)`: all arguments are int64,
and the first two are addresses. Before the blocks, each clock is folded: `fold(hyper, carried, table, record)`, all
addresses. What is launched is told by a `JOB`, the addresses and sizes of tables, so that a call takes one integer.
Subnormals are zero around all that a thread calls.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numba import config, int64, prange
from numba.extending import register_jitable

from fastadam.kernels import ADDRESSES, CARRIED, CLOCK, FIRST, GRADIENT, HYPER, PARAMETER, START, STOP, Launch
from fastadam.kernels.blocks import BLOCK
from fastadam.kernels.cpu import threads
from fastadam.kernels.cpu.jit import jit, leaf
from fastadam.kernels.cpu.mask import set_mask, swap_mask
from fastadam.kernels.cpu.pointers import call, count, integer_at
from fastadam.kernels.cpu.prefetch import fetch_line
from fastadam.kernels.switches import flush, restore

# While block i is stepped, the first FETCHED elements of block i + AHEAD are prefetched, if it lies far from the one
# before it: more than NEAR elements away. On rows of 256 bytes all over a table, 10,000 rows take 0.48 ms in place of
# 0.88 ms.
AHEAD, FETCHED, NEAR = 4, 64, 64

# Columns of a row of leaves: addresses of the leaf and of the fold, how many columns of the addresses may be
# prefetched, and from ITEMSIZES on the bytes of an element of each of them; 0 for what is not prefetched.
LEAF, FOLD, COLUMNS, ITEMSIZES = range(4)
LEAVES = ITEMSIZES + ADDRESSES

# What a block costs beside its elements, in elements: about 0.15 us. And the fewest parts for a thread.
COST, LEAST_PARTS = 256, 8

# A job is int64 numbers, in this order. Blocks are int64 (COUNT, 5). PARTS, int64 (PART_COUNT + 1,), say where those
# begin that a thread takes at a time. TABLE has rows of scalars, one for each clock; ADDRESSES rows of int64, one for
# each parameter; CLOCKS are int64 (FOLDED,), those to fold. What ends in _BYTES is the size of a row; LEAF_BYTES is 0
# where one row of leaves is for all clocks. FETCH is the address of `fetch_far`, or 0 where there are few blocks: a
# process that has no more does not compile it. The driver itself counts in RUNS how often all of the job was done.
JOB = (
    "blocks",
    "count",
    "parts",
    "part_count",
    "leaves",
    "leaf_bytes",
    "table",
    "table_bytes",
    "addresses",
    "address_bytes",
    "clocks",
    "folded",
    "hyper",
    "carried",
    "record",
    "fetch",
    "runs",
)
BLOCKS, COUNT, PARTS, PART_COUNT, LEAVES_AT, LEAF_BYTES, TABLE, TABLE_BYTES, ADDRESSES_AT, ADDRESS_BYTES = range(10)
CLOCKS, FOLDED, HYPER_AT, CARRIED_AT, RECORD, FETCH, RUNS = range(10, 17)


_NO_PARTS = np.zeros(1, np.int64)


def launch_of(blocks: np.ndarray, held: Any, **job: int) -> Launch:
    """The launch of a job over `blocks`; whatever the job's addresses point into is `held`.

    What is not said of the job is zero.
    """
    blocks = np.ascontiguousarray(blocks, np.int64)
    sizes = blocks[:, STOP] - blocks[:, START]
    is_serial = sizes.sum() < threads.PARALLEL_FROM
    parts = _NO_PARTS if is_serial else parts_of(sizes)
    numbers = {**dict.fromkeys(JOB, 0), "blocks": blocks.ctypes.data, "count": len(blocks), **job}
    numbers["parts"], numbers["part_count"] = parts.ctypes.data, len(parts) - 1
    numbers["fetch"] = leaf(fetch_far).address if len(blocks) > AHEAD else 0
    told = np.array([numbers[name] for name in JOB], np.int64)
    launch: Any
    if is_serial:
        launch = partial(driver(parallel=False), told.ctypes.data)
    else:
        launch = partial(threads.on_threads(lambda parallel: driver(parallel=parallel, nogil=True)), told.ctypes.data)
    launch.held = told, blocks, parts, held
    # One call of machine code: an exception from outside comes before it has begun, or after it has ended.
    launch.begun = launch.ended = told.data[RUNS:]
    return launch


def parts_of(sizes: np.ndarray) -> np.ndarray:
    """Where the blocks, of these `sizes`, begin that a thread takes at a time, and where the last of them end.

    Parts cost the same, that of BLOCK elements or less, and there are several for each of all threads: fewer threads,
    which take as many parts each, one after the other, share them about evenly too.
    """
    costs = sizes + COST
    ends, most = np.cumsum(costs), config.NUMBA_NUM_THREADS
    count = most * max(LEAST_PARTS, round(int(ends[-1]) / (BLOCK * most))) if len(sizes) else 0
    # A block belongs to the part that has its middle.
    shares = np.arange(count + 1) / max(1, count)
    return np.searchsorted(ends - costs / 2, shares * costs.sum()).astype(np.int64)


@cache
def driver(*, parallel: bool, nogil: bool = False) -> Callable[..., None]:
    """The machine code of the driver, for the address of a job; other Python threads run meanwhile if `nogil`.

    That which is `parallel` takes the number of threads first.

    A call of it skips Numba's look at the types of the arguments, which takes half the time of a short one.
    """
    function, name = (_drive_threads, "drive_parallel") if parallel else (_drive, "drive_serial")
    signature = (int64,) * function.__code__.co_argcount
    return jit(function, f"{name}_nogil" if nogil else name, parallel=parallel, nogil=nogil).compile(signature)


# Few functions, and integers alone: each function takes Numba 0.05 s to compile, and a view of an array more.
def _drive(job):
    mode = flush()
    for index in range(integer_at(job, FOLDED)):
        _fold(job, index)
    for index in range(integer_at(job, COUNT)):
        _step(job, np.int64(index))
    restore(mode)
    count(job, RUNS)


def _drive_threads(threads, job):
    mask = swap_mask(threads)
    mode = flush()
    for index in range(integer_at(job, FOLDED)):
        _fold(job, index)
    restore(mode)
    parts = integer_at(job, PARTS)
    for part in prange(integer_at(job, PART_COUNT)):
        mode_of_thread = flush()
        for index in range(integer_at(parts, part), integer_at(parts, part + 1)):
            _step(job, np.int64(index))
        restore(mode_of_thread)
    set_mask(mask)
    count(job, RUNS)


@register_jitable
def _fold(job, index):
    clock = integer_at(integer_at(job, CLOCKS), index)
    leaves = integer_at(job, LEAVES_AT) + clock * integer_at(job, LEAF_BYTES)
    hyper = integer_at(job, HYPER_AT) + 8 * HYPER * clock
    carried = integer_at(job, CARRIED_AT) + 8 * CARRIED * clock
    table = integer_at(job, TABLE) + clock * integer_at(job, TABLE_BYTES)
    call(integer_at(leaves, FOLD), hyper, carried, table, integer_at(job, RECORD))


@register_jitable
def _step(job, index):
    fetch = integer_at(job, FETCH)
    if fetch != 0:
        call(fetch, job, index + AHEAD)
    block = integer_at(job, BLOCKS) + 40 * index
    clock = integer_at(block, CLOCK)
    leaves = integer_at(job, LEAVES_AT) + clock * integer_at(job, LEAF_BYTES)
    table = integer_at(job, TABLE) + clock * integer_at(job, TABLE_BYTES)
    row = integer_at(job, ADDRESSES_AT) + integer_at(block, PARAMETER) * integer_at(job, ADDRESS_BYTES)
    start, stop, first = integer_at(block, START), integer_at(block, STOP), integer_at(block, FIRST)
    call(integer_at(leaves, LEAF), table, row, start, stop, first)


@register_jitable
def is_far(job, index):
    """Whether there is a block `index`, and it lies where the processor does not expect it after the one before."""
    if index >= integer_at(job, COUNT):
        return False
    block, before = integer_at(job, BLOCKS) + 40 * index, integer_at(job, BLOCKS) + 40 * (index - 1)
    leaves = integer_at(job, LEAVES_AT) + integer_at(block, CLOCK) * integer_at(job, LEAF_BYTES)
    if integer_at(leaves, COLUMNS) <= GRADIENT + 1:
        return False
    rows, size = integer_at(job, ADDRESSES_AT), integer_at(job, ADDRESS_BYTES)
    itemsize = integer_at(leaves, ITEMSIZES + GRADIENT + 1)
    begin = integer_at(rows + integer_at(block, PARAMETER) * size, GRADIENT + 1) + integer_at(block, START) * itemsize
    end = integer_at(rows + integer_at(before, PARAMETER) * size, GRADIENT + 1) + integer_at(before, STOP) * itemsize
    return not 0 <= begin - end <= NEAR * itemsize


def fetch_far(job, index):
    """Prefetch block `index`, if there is one and it is far."""
    if not is_far(job, index):
        return 0
    block = integer_at(job, BLOCKS) + 40 * index
    leaves = integer_at(job, LEAVES_AT) + integer_at(block, CLOCK) * integer_at(job, LEAF_BYTES)
    row = integer_at(job, ADDRESSES_AT) + integer_at(block, PARAMETER) * integer_at(job, ADDRESS_BYTES)
    size = min(integer_at(block, STOP) - integer_at(block, START), FETCHED)
    # Not `range`, which takes Numba three times as long.
    column, columns = 0, integer_at(leaves, COLUMNS)
    while column < columns:
        start = integer_at(block, FIRST) if column == GRADIENT else integer_at(block, START)
        itemsize = integer_at(leaves, ITEMSIZES + column)
        line = integer_at(row, column) + start * itemsize
        end = line + size * itemsize
        while line < end:
            fetch_line(line)
            line += 64
        column += 1
    return 0
