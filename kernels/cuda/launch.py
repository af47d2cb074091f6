"""The CUDA backend: the functions of :class:`Backend <fastadam.kernels.Backend>`. Nothing here waits for the device."""

from functools import cache

import cupy
import numpy as np

from fastadam.kernels import START, STOP, blocks
from fastadam.kernels.cuda import source
from fastadam.kernels.cuda.device_tables import CudaTables
from fastadam.kernels.cuda.fold import fold_kernel
from fastadam.kernels.cuda.norm import clip_kernel, groups_of, squares_kernel
from fastadam.kernels.cuda.rows import PARAMETER, catch_up_kernel
from fastadam.kernels.cuda.source import THREADS, kernel_of, upload
from fastadam.kernels.cuda.step import elements_of, step_kernel
from fastadam.kernels.steps import Steps

# A copy of a gradient would be a launch as well, so each is read where it lies.
DIRECT_FROM = 0
# There is none here: whatever needs it is refused.
clip_each = None


def tables(parameters, clocks, device_of):
    """Tables of zeros on the device of `device_of`."""
    return CudaTables(parameters, clocks, device_of.device)


def address(array):
    """Where `array` lies on the device."""
    return array.data.ptr


def is_captured(device_of):
    """Whether the current stream of the device of `device_of` is being captured."""
    with device_of.device:
        return cupy.cuda.get_current_stream().is_capturing()


def launcher(passes, tables, *, guarded):
    """A function that launches the fold and the step of each of `passes`, on the current stream."""
    with tables.device:
        calls = [call for each in passes for call in _calls(each, tables, guarded)]

    def launch():
        with tables.device:
            for call in calls:
                source.launch(*call)

    return Steps(launch)


def _calls(step, tables, guarded):
    """(kernel, arguments, threads) of the two launches of a pass."""
    fold, elements = _compiled(step.update, np.dtype(step.dtype), guarded, tables.device.id)
    total = int((step.blocks[:, STOP] - step.blocks[:, START]).sum())
    cut = blocks.cut(step.blocks, elements_of(step.update, total))
    record = (tables.record,) if guarded else ()
    clocks = upload(step.clocks, tables)
    yield fold, (clocks, tables.hyper, tables.record, tables.carried, tables.table), len(clocks)
    yield elements, (tables.device_addresses, upload(cut, tables), tables.table, *record), THREADS * len(cut)


@cache
def _compiled(update, dtype, guarded, device_id):
    """The kernels of the fold and of the step, compiled for a device, the current one."""
    fold, step = fold_kernel(update, dtype, guarded), step_kernel(update, dtype, guarded)
    # CuPy compiles when it launches, for arrays of so many dimensions: over no clocks and no blocks at all.
    no_clocks, no_blocks = cupy.zeros(0, np.int64), cupy.zeros((0, 5), np.int64)
    table, record = cupy.zeros((1, 1)), cupy.zeros(1)
    source.launch(fold, (no_clocks, table, record, table, table), 1)
    source.launch(step, (no_blocks, no_blocks, table, *((record,) if guarded else ())), 1)
    return fold, step


def squares(dtype, format, blocks, tables, sums):
    """A function that writes the sum of squares of the gradients of each block into `sums`."""
    with tables.device:
        arguments = tables.device_addresses, upload(blocks, tables), sums

    def launch():
        with tables.device:
            source.launch(squares_kernel(np.dtype(dtype), format), arguments, THREADS * len(blocks))

    return launch


def clip(sums, grad_scale, max_grad_norm, largest, propagate, tables):
    """Add up `sums`, in place, and write what follows from the norm into `tables.record`, in one launch."""
    with tables.device:
        groups = groups_of(len(sums))
        arrays = sums, tables.counters(groups), tables.record
        source.launch(clip_kernel(), (grad_scale, max_grad_norm, largest, propagate, *arrays), THREADS * groups)


def catch_up(addresses, dtype, blocks, table, starts):
    """What makes up for the steps that the rows in `blocks` have missed."""
    kernel = catch_up_kernel(np.dtype(dtype))

    def launch():
        if len(blocks):
            with _device_of(addresses[blocks[0, PARAMETER], 0]):
                arrays = tuple(cupy.asarray(array) for array in (addresses, blocks, table, starts))
                source.launch(kernel, arrays, THREADS * len(blocks))

    return Steps(launch)


def _device_of(place):
    """The device with the memory at this address."""
    return cupy.cuda.Device(cupy.cuda.runtime.pointerGetAttributes(int(place)).device)


def copy_out(p, copy, format):
    """Write `p`, rounded to `format` ("bfloat16" or "float16"), into the bits `copy`."""
    with p.device:
        source.launch(rounding_kernel(format), (p, copy), p.size)


@cache
def rounding_kernel(format):
    """The bits of each element, rounded to `format`."""
    return kernel_of(f"fastadam_to_{format}", ["raw T p"], ["raw uint16 copy"], f"copy[i] = to_{format}(p[i]);")


def device_problem():
    """Why no CUDA device works, or None if one does."""
    if cupy.cuda.runtime.is_hip:
        return "this CuPy is for ROCm, and the kernels are for CUDA"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device ({error})"
    return None if count else "CuPy finds no CUDA device"
