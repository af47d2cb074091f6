"""The one driver of all launches: it calls a leaf by its address for each block, serially or on all threads.

A leaf is compiled once for an update text, `leaf(table_row, address_row, start, stop, first)`: all arguments are int64,
and the first two are addresses. Before the blocks, each clock is folded: `fold(hyper, carried, table, record)`, all
addresses. What is launched is told by a `JOB`, the addresses and sizes of tables, so that a call takes one integer.
Subnormals are zero around all that a thread calls.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numba
import numpy as np
from numba import carray, int64, prange
from numba import types as numba_types
from numba.extending import intrinsic, register_jitable

from fastadam.kernels import ADDRESSES, CARRIED, CLOCK, FIRST, GRADIENT, HYPER, PARAMETER, START, STOP
from fastadam.kernels.blocks import BLOCK
from fastadam.kernels.cpu import threads
from fastadam.kernels.cpu.jit import jit
from fastadam.kernels.cpu.pointers import call, view
from fastadam.kernels.cpu.prefetch import fetch
from fastadam.kernels.switches import flush, restore

# While block i is stepped, the first FETCHED elements of block i + AHEAD are prefetched, if it lies far from the one
# before it: more than NEAR elements away. On rows of 256 bytes all over a table, 10,000 rows take 0.48 ms in place of
# 0.88 ms.
AHEAD, FETCHED, NEAR = 4, 64, 64

# Columns of a row of leaves: addresses of the leaf and of the fold, how many columns of the addresses may be
# prefetched, and from ITEMSIZES on the bytes of an element of each of them; 0 for what is not prefetched.
LEAF, FOLD, COLUMNS, ITEMSIZES = range(4)
LEAVES = ITEMSIZES + ADDRESSES

JOB = np.dtype(
    [
        ("blocks", np.int64),  # int64 (count, 5)
        ("count", np.int64),
        ("together", np.int64),  # blocks that a thread takes at a time
        ("leaves", np.int64),  # int64 (clocks, LEAVES)
        ("leaf_bytes", np.int64),  # of a row; 0: one row for all clocks
        ("table", np.int64),  # rows of scalars, a row for each clock
        ("table_bytes", np.int64),  # of a row
        ("addresses", np.int64),  # int64, a row for each parameter
        ("address_bytes", np.int64),  # of a row
        ("clocks", np.int64),  # int64 (folded,): those to fold
        ("folded", np.int64),
        ("hyper", np.int64),
        ("carried", np.int64),
        ("record", np.int64),
    ]
)


def launch_of(blocks: np.ndarray, held: Any, **job: int) -> Callable[[], None]:
    """A function that runs a job over `blocks`; whatever the job's addresses point into is `held`.

    What is not said of the job is zero.
    """
    blocks = np.ascontiguousarray(blocks, np.int64)
    told = np.zeros(1, JOB)
    total = int((blocks[:, STOP] - blocks[:, START]).sum())
    # About BLOCK elements, so that the mode is not set around each row of a table.
    together = max(1, len(blocks) * BLOCK // max(1, total))
    for name, value in {"blocks": blocks.ctypes.data, "count": len(blocks), "together": together, **job}.items():
        told[name] = value
    if total < threads.PARALLEL_FROM:
        launch = partial(driver(parallel=False), told.ctypes.data)
    else:
        launch = partial(threads.on_threads(lambda parallel: driver(parallel=parallel)), told.ctypes.data)
    launch.held = told, blocks, held  # type: ignore[attr-defined]
    return launch


@cache
def driver(*, parallel: bool) -> Callable[[int], None]:
    """The machine code of the driver, for the address of a job.

    A call of it skips Numba's look at the types of the arguments, which takes half the time of a short one.
    """
    function, name = (_drive_threads, "drive_parallel") if parallel else (_drive, "drive_serial")
    return jit(function, name, parallel=parallel).compile((int64,))


def _drive(address):
    _fold_clocks(address)
    _step_blocks(address, 0, _job_at(address).count)


def _drive_threads(address):
    _fold_clocks(address)
    count, together = _job_at(address).count, _job_at(address).together
    for part in prange((count + together - 1) // together):
        _step_blocks(address, part * together, min((part + 1) * together, count))


@register_jitable
def _fold_clocks(address):
    job = _job_at(address)
    mode = flush()
    for index in range(job.folded):
        _fold(address, index)
    restore(mode)


@register_jitable
def _step_blocks(address, first, stop):
    mode = flush()
    for index in range(first, stop):
        _step(address, np.int64(index))
    restore(mode)


@register_jitable
def _fold(address, index):
    job = _job_at(address)
    clock = _number(job.clocks, index)
    fold = _number(_leaves_of(job, clock), FOLD)
    table = job.table + clock * job.table_bytes
    call(fold, job.hyper + 8 * HYPER * clock, job.carried + 8 * CARRIED * clock, table, job.record)


@register_jitable
def _step(address, index):
    job = _job_at(address)
    if _is_far(job, index + AHEAD):
        _fetch(job, index + AHEAD)
    block = _block(job, index)
    clock, parameter = block[CLOCK], block[PARAMETER]
    leaf = _number(_leaves_of(job, clock), LEAF)
    table, row = job.table + clock * job.table_bytes, job.addresses + parameter * job.address_bytes
    call(leaf, table, row, block[START], block[STOP], block[FIRST])


@register_jitable
def _is_far(job, index):
    """Whether there is a block `index`, and it lies where the processor does not expect it after the one before."""
    if index >= job.count:
        return False
    block, before = _block(job, index), _block(job, index - 1)
    leaves, column = _leaves_of(job, block[CLOCK]), GRADIENT + 1
    if _number(leaves, COLUMNS) <= column:
        return False
    itemsize = _number(leaves, ITEMSIZES + column)
    begin = _number(job.addresses + block[PARAMETER] * job.address_bytes, column) + block[START] * itemsize
    end = _number(job.addresses + before[PARAMETER] * job.address_bytes, column) + before[STOP] * itemsize
    return not 0 <= begin - end <= NEAR * itemsize


@register_jitable
def _fetch(job, index):
    block = _block(job, index)
    leaves, row = _leaves_of(job, block[CLOCK]), job.addresses + block[PARAMETER] * job.address_bytes
    size = min(block[STOP] - block[START], FETCHED)
    for column in range(_number(leaves, COLUMNS)):
        start = block[FIRST] if column == GRADIENT else block[START]
        fetch(_number(row, column), start, size, _number(leaves, ITEMSIZES + column))


@register_jitable
def _block(job, index):
    return view(job.blocks, 5 * index, 5, np.int64(0))


@register_jitable
def _leaves_of(job, clock):
    return job.leaves + clock * job.leaf_bytes


@register_jitable
def _number(address, index):
    """Number `index` of the int64 that begin at `address`."""
    return view(address, index, 1, np.int64(0))[0]


@register_jitable
def _job_at(address):
    return carray(_job_pointer(address), 1)[0]


@intrinsic
def _job_pointer(_, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return numba_types.CPointer(numba.from_dtype(JOB))(address), generate
