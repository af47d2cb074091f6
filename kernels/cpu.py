"""The CPU kernel: one pass over flat buffers, compiled by Numba from the update text, serial or on all threads."""

import contextlib
import os
import sys
import threading
import types as python_types
import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, njit, prange, types
from numba.extending import intrinsic, overload, register_jitable

from fastadam.kernels import casts, fold
from fastadam.kernels import catch_up as catching_up
from fastadam.kernels.norm import LANES, ROWS
from fastadam.kernels.text import block, function

# Elements from which the parallel kernel is as fast as the serial one: its launch costs a few us more, which two
# threads win back at 16,000 to 40,000 elements (bench/constants.py).
PARALLEL_FROM = 32_768

# A gradient of this size or more is read where it lies; a smaller one is first copied into the flat buffer, which costs
# less than to find out its address.
DIRECT_FROM = PARALLEL_FROM

# Elements that a thread takes at a time. From 4,096 to 262,144 they make no difference beyond 5% (bench/constants.py).
BLOCK = 16_384

# Blocks from one to the one that is fetched meanwhile, and how many elements of it. On rows of 256 bytes all over a
# table, 10,000 rows take 0.48 ms in place of 0.88 ms.
AHEAD, FETCHED = 4, 64

_HERE = Path(__file__).parent
_OWN_SOURCES = b"".join((_HERE / name).read_bytes() for name in ("cpu.py", "casts.py", "norm.py", "catch_up.py"))


def launcher(update, dtype, size):
    """`launch(flats, addresses, blocks, rows, hyper, carried, table, grad_scale)` for `size` elements of `dtype`."""
    if size < PARALLEL_FROM:
        return compiled(update, np.dtype(dtype), parallel=False)
    return _on_threads(lambda parallel: compiled(update, np.dtype(dtype), parallel=parallel))


def launch_flat(update, flats, gradient, hyper, carried, grad_scale):
    """One step of four flat arrays or more."""
    size, dtype = flats[0].size, flats[0].dtype
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
    low[...] = casts.to_bfloat16(p) if kind == "bfloat16" else casts.to_float16(p)


def address(array):
    """Where `array` lies; it must live on until the launch that reads it returns."""
    return array.__array_interface__["data"][0]


def blocks_of(pieces, like=None):
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
    """The machine code of one of the twins for buffers of `dtype`, compiled now or loaded from the disk cache.

    A call of it skips Numba's look at the types of all arguments, which takes half the time of a short one.
    """
    return twins(update)[parallel].compile(_signature(update, dtype))


def _signature(update, dtype):
    element = numba.from_dtype(dtype)
    flats = [types.Array(types.uint16 if name == "low" else element, 1, "C") for name in update.flats]
    integers, doubles = types.Array(types.int64, 1, "C"), types.Array(types.float64, 2, "C")
    blocks, table = types.Array(types.int64, 2, "C"), types.Array(element, 2, "C")
    return types.BaseTuple.from_types(flats), integers, blocks, integers, doubles, doubles, table, types.float64


@cache
def twins(update):
    """The serial and the parallel kernel of `update`: one loop, compiled twice."""
    return _compile(update, parallel=False), _compile(update, parallel=True)


# What `jit` puts in the place of these names, from the texts.
_loop: Any = None
_fetch: Any = None
_fold_row: Any = None
_clip_text: Any = None
_nodes: Any = None


def _one_pass(flats, addresses, blocks, rows, hyper, carried, table, grad_scale):
    for row in rows:
        _fold_row(hyper[row], carried[row], grad_scale, table[row])
    for index in prange(blocks.shape[0]):
        ahead = index + AHEAD
        if ahead < blocks.shape[0] and _is_far(blocks[ahead - 1, 1], blocks[ahead, 0]):
            _fetch(flats, blocks[ahead, 0], min(blocks[ahead, 1] - blocks[ahead, 0], FETCHED))
            _fetch_part(addresses[blocks[ahead, 3]], blocks[ahead, 4], FETCHED, flats[0].itemsize)
        start, stop, row, parameter, offset = blocks[index]
        gradient = _gradient(addresses[parameter], offset, stop - start, flats[0])
        _loop(table[row], gradient, flats, start, stop)


def catch_up(flats, blocks, table, starts):
    """Make up for missed steps: blocks (start, stop, slot), each by rows `starts[slot]` to `starts[slot + 1]`."""
    size = int((blocks[:, 1] - blocks[:, 0]).sum())
    dtype = flats[0].dtype
    if size < PARALLEL_FROM:
        _catch_up_kernel(dtype, parallel=False)(flats, blocks, table, starts)
    else:
        _on_threads(lambda parallel: _catch_up_kernel(dtype, parallel=parallel))(flats, blocks, table, starts)


def catch_up_table(lasts, now, history, totals, dtype):
    """The table of `make_up` for rows last stepped at each of `lasts`, and where the rows of each begin."""
    tolerance, cutoff = (0.1, 1e-10) if dtype == np.float32 else (0.0, 1e-19)
    counts = np.zeros(len(lasts), np.int64)
    arguments = lasts, now, history, totals, tolerance, cutoff
    find = _on_threads(lambda parallel: _nodes_kernel(parallel=parallel and len(lasts) > 8))
    find(*arguments, np.zeros((0, catching_up.COLUMNS)), np.zeros(len(lasts) + 1, np.int64), counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    table = np.zeros((starts[-1], catching_up.COLUMNS))
    find(*arguments, table, starts, counts)
    return table.astype(dtype), starts


@cache
def _catch_up_kernel(dtype, *, parallel):
    update, element = catching_up.CATCH_UP, numba.from_dtype(dtype)
    names = _names_of(update)
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
        ahead = index + AHEAD
        if ahead < blocks.shape[0] and _is_far(blocks[ahead - 1, 1], blocks[ahead, 0]):
            _fetch(flats, blocks[ahead, 0], min(blocks[ahead, 1] - blocks[ahead, 0], FETCHED))
        start, stop, slot = blocks[index]
        for row in range(starts[slot], starts[slot + 1]):
            _loop(table[row], flats[0], flats, start, stop)


def _all_nodes(lasts, now, history, totals, tolerance, cutoff, table, starts, counts):
    for slot in prange(lasts.size):
        rows = table[starts[slot] : starts[slot + 1]]
        counts[slot] = _nodes(lasts[slot], now, history, totals, tolerance, cutoff, rows)


def _compile(update, *, parallel):
    names = {**_names_of(update), "_fold_row": register_jitable(update.fold_row)}
    twin = "parallel" if parallel else "serial"
    return jit(_one_pass, f"{update.name}_{twin}", update.sources, names, parallel=parallel)


def jit(template, name, sources="", names=None, *, parallel=False):
    """`template` compiled under `name`, with `names` for its globals, and cached on disk as long as `sources` stay."""
    # Numba's cache file bears the function's name and nothing of what is inlined. The digest of every text that is
    # compiled here keeps an edited one away from old machine code; the twin's name keeps the twins apart.
    digest = sha256(_OWN_SOURCES + sources.encode()).hexdigest()[:16]
    body = python_types.FunctionType(template.__code__, {**template.__globals__, **(names or {})}, f"{name}_{digest}")
    body.__qualname__ = body.__name__
    # Python's error model would test each division for zero, which stops vectorisation: 4 times slower.
    kernel = njit(parallel=parallel, error_model="numpy")(body)
    # RuntimeError: there is no writable place for a cache. The kernel is then compiled in every process.
    with contextlib.suppress(RuntimeError):
        kernel.enable_caching()
    return kernel


def _names_of(update):
    """The generated functions that a pass over the flat buffers of `update` calls, under the names of `jit`."""
    return {"_loop": register_jitable(_loop_of(update)), "_fetch": register_jitable(_fetch_of(update))}


def _loop_of(update):
    """The loop over the elements of a block. It names every buffer: tuples of arrays would not vectorise."""
    elements = [f"{name}[i]" for name in update.buffers]
    return function(
        block(
            "def loop(table, g, flats, start, stop):",
            *(f"{name} = part(flats[{index}], start, stop)" for index, name in enumerate(update.flats)),
            *(f"{name} = table[{index}]" for index, name in enumerate(update.scalars)),
            "for i in range(p.size):",
            f"    {', '.join(f'{name}[i]' for name in update.written)} = "
            f"element({', '.join((*elements, *update.scalars))})",
        ),
        callees=update.sources,
        element=register_jitable(update.element),
        part=_part,
    )


def _fetch_of(update):
    """The prefetch of some elements of every buffer."""
    fetches = [f"part(flats[{k}].ctypes.data, start, size, flats[{k}].itemsize)" for k in range(len(update.flats))]
    return function(block("def fetch(flats, start, size):", *fetches), part=_fetch_part)


@register_jitable
def _fetch_part(address, start, size, itemsize):
    for byte in range(start * itemsize, (start + size) * itemsize, 64):
        _prefetch(address + byte)


@intrinsic
def _prefetch(_, address):
    """Fetch the line at `address`, for writing."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        # For writing, to be kept in all caches, data.
        builder.call(prefetch, [pointer, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(address), generate


@register_jitable
def _is_far(stop, start):
    """Whether a block that starts at `start` lies where the processor does not expect it, after one up to `stop`."""
    return start - stop > 64 or start < stop


@register_jitable
def _part(flat, start, stop):
    """`flat[start:stop]`, but without a reference count, over which the threads would fight: 80 ns a block."""
    return _gradient(flat.ctypes.data, start, stop - start, flat)


@register_jitable
def _gradient(address, offset, size, like):
    """The array of `size` elements like those of `like` that starts `offset` elements after `address`."""
    return carray(_pointer(address + offset * like.itemsize, like), size)


@intrinsic
def _pointer(_, address, like):
    """`address` as a pointer to elements like those of the array `like`."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), generate


@intrinsic
def _bits(_, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def _from_bits(_, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


# Numba makes uint32 op uint32 a uint64: each result is cast back, or half the lanes are lost.
@overload(casts.to_bfloat16)
def _to_bfloat16(value):
    def cast(value):
        value = np.float32(value)
        bits = _bits(value)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd)
        quiet = np.uint32(bits | np.uint32(0x400000))
        return np.uint16(np.uint32((quiet if value != value else rounded) >> np.uint32(16)))

    return cast


@overload(casts.to_float16)
def _to_float16(value):
    def cast(value):
        bits = _bits(np.float32(value))
        size = np.uint32(bits & np.uint32(0x7FFFFFFF))
        sign = np.uint32(np.uint32(bits ^ size) >> np.uint32(16))
        odd = np.uint32(np.uint32(size >> np.uint32(13)) & np.uint32(1))
        # The exponent is rebiased from 127 to 15 and half of the last place added, modulo 2**32.
        half = np.uint32(np.uint32(np.uint32(size + np.uint32(0xC8000FFF)) + odd) >> np.uint32(13))
        # float16 subnormals: adding 0.5 rounds at their last place.
        shifted = np.float32(_from_bits(size) + np.float32(0.5))
        half = np.uint32(_bits(shifted) - np.uint32(0x3F000000)) if size < np.uint32(0x38800000) else half
        half = np.uint32(0x7C00) if size >= np.uint32(0x47800000) else half
        half = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else half
        return np.uint16(np.uint32(half | sign))

    return cast


def squares_launcher(dtype, size):
    """`launch(addresses, blocks, lanes, like)`: level 0 of :mod:`norm <fastadam.kernels.norm>`.

    It writes the lanes of each of `blocks` of gradients, `size` elements in all, which are of `dtype`, as is `like`.
    """
    if size < PARALLEL_FROM:
        return _squares_kernel(np.dtype(dtype), parallel=False)
    return _on_threads(lambda parallel: _squares_kernel(np.dtype(dtype), parallel=parallel))


def clip(lanes, grad_scale, max_grad_norm, largest, propagate, record):
    """Combine the `lanes` of all blocks, and write what follows from the norm into `record`; return the factor."""
    return _clip_kernel()(lanes, grad_scale, max_grad_norm, largest, propagate, record)


@cache
def _squares_kernel(dtype, *, parallel):
    lanes, integers = types.Array(types.float64, 2, "C"), types.Array(types.int64, 2, "C")
    signature = types.Array(types.int64, 1, "C"), integers, lanes, types.Array(numba.from_dtype(dtype), 1, "C")
    return jit(_sum_squares, f"norm_{'parallel' if parallel else 'serial'}", parallel=parallel).compile(signature)


@cache
def _clip_kernel():
    lanes, record, number = types.Array(types.float64, 2, "C"), types.Array(types.float64, 1, "C"), types.float64
    names = {"_clip_text": register_jitable(fold.clip)}
    kernel = jit(_clip, "clip", "".join(fold.CLIP.statements), names)
    return kernel.compile((lanes, number, number, number, number, record))


def _sum_squares(addresses, blocks, lanes, like):
    for index in prange(blocks.shape[0]):
        parameter, offset, size = blocks[index]
        _square_lanes(_gradient(addresses[parameter], offset, size, like), lanes[index])


@register_jitable
def _square_lanes(gradient, sums):
    sums[:] = 0.0
    for start in range(0, gradient.size, LANES):
        row = gradient[start : start + LANES]
        for lane in range(row.size):
            value = np.float64(row[lane])
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


# One launch at a time: the workqueue layer aborts the process when two Python threads enter parallel kernels, and on
# the other layers two launches only compete for the same cores.
_one_launch = threading.RLock()
_pool_started = False
_forked_from_pool = False


def _on_threads(twin):
    """`twin(parallel)`, launched on all threads where that is safe."""

    def launch(*arguments):
        with _one_launch:
            if _forked_from_pool:
                _warn_once_that_serial()
            elif not _pool_started:
                _start_pool()
            return twin(not _forked_from_pool)(*arguments)

    return launch


def _start_pool():
    # Numba's OpenMP pool resets torch's thread count when it starts.
    global _pool_started
    torch = sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if torch else None
    numba.get_num_threads()
    if torch:
        torch.set_num_threads(torch_threads)
    _pool_started = True


def _after_fork_in_child():
    global _one_launch, _forked_from_pool
    _one_launch = threading.RLock()
    # GNU OpenMP kills a forked child at its first parallel launch. ValueError: the parent has not started a pool.
    with contextlib.suppress(ValueError):
        _forked_from_pool = _forked_from_pool or numba.threading_layer() == "omp"


@cache
def _warn_once_that_serial():
    warnings.warn(
        "fastadam steps on one thread in this process: it was forked from one whose OpenMP threads were running, and "
        "GNU OpenMP would end it. Start workers with multiprocessing's 'spawn' or 'forkserver' to step on all threads.",
        RuntimeWarning,
        stacklevel=5,
    )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
