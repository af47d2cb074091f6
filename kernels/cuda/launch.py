"""The CUDA backend: the functions of :class:`Backend <fastadam.kernels.Backend>`. Nothing here waits for the device."""

from functools import cache

import cupy
import numpy as np

from fastadam.kernels import CLOCK, START, STOP, blocks
from fastadam.kernels.cuda import source
from fastadam.kernels.cuda.device_tables import CudaTables
from fastadam.kernels.cuda.norm import Kind, OfEach, Pending, Squares, folds_of, settle
from fastadam.kernels.cuda.rows import PARAMETER, catch_up_kernel
from fastadam.kernels.cuda.source import THREADS, kernel_of, upload
from fastadam.kernels.cuda.step import elements_of, step_kernel
from fastadam.kernels.steps import Steps

# The compute capability that is needed, in tenths: the first whose lanes of a warp are named in shuffles and barriers.
OLDEST = 70
# A copy of a gradient would be a launch as well, so each is read where it lies.
DIRECT_FROM = 0


def tables(parameters, clocks, device_of):
    """Tables of zeros on the device of `device_of`."""
    return CudaTables(parameters, clocks, device_of.device, settle)


def address(array):
    """Where `array` lies on the device."""
    return array.data.ptr


def is_captured(device_of):
    """Whether the current stream of the device of `device_of` is being captured."""
    with device_of.device:
        return cupy.cuda.get_current_stream().is_capturing()


def launcher(passes, tables, *, guarded):
    """What folds the clocks of `passes` and launches the step of each, on the current stream.

    The device folds if anything on it decides about the step, with what is left of the reduction; else the host does.
    """
    # Imported only now, as it loads Numba.
    from fastadam.kernels.cpu.launch import folder

    with tables.device:
        steps = [_call(each, tables, guarded) for each in passes]
        folds = folds_of(passes, tables)
    fold = folder(passes, tables.host)

    def launch():
        with tables.device:
            if folds.clocks.size:
                if tables.decides():
                    tables.to_device()
                    settle(tables, folds)
                else:
                    fold()
                    tables.push(rows=True)
            for kernel, blocks, record, threads in steps:
                arrays = tables.device_addresses, tables.gradients, blocks, tables.rows, *record
                source.launch(kernel, arrays, threads)

    return Steps(launch)


def _call(step, tables, guarded):
    """(kernel, blocks, record if it is read, threads) of the launch of a pass."""
    kernel = _compiled(step.update, np.dtype(step.dtype), guarded, tables.device.id)
    total = int((step.blocks[:, STOP] - step.blocks[:, START]).sum())
    cut = blocks.cut(step.blocks, elements_of(step.update, total)).copy()
    cut[:, CLOCK] = tables.row_of(cut[:, CLOCK])
    record = (tables.device_record,) if guarded else ()
    return kernel, upload(cut, tables), record, THREADS * len(cut)


@cache
def _compiled(update, dtype, guarded, device_id):
    """The kernel of the step, compiled for a device, the current one."""
    kernel = step_kernel(update, dtype, guarded)
    # CuPy compiles when it launches, for arrays of so many dimensions: over no blocks at all.
    no_blocks, one = cupy.zeros((0, 5), np.int64), cupy.zeros(1)
    source.launch(kernel, (no_blocks[:, 0], no_blocks[:, 0], no_blocks, one, *((one,) if guarded else ())), 1)
    return kernel


def squares(dtype, format, blocks, tables, sums):
    """What writes the sum of squares of the gradients of each block into `sums`."""
    return Squares(Kind(np.dtype(dtype), format), blocks, tables, sums)


def clip(sums, grad_scale, max_grad_norm, largest, propagate, tables, squares=(), each=None):
    """Let the next step be what follows from the norm: its launch adds up the sums, or the reading of `tables.record`.

    Squares of one kind are part of that launch.
    """
    tables.use(grad_scale)
    merged = squares[0] if len(squares) == 1 else None
    for write in () if merged else squares:
        write()
    tables.pending = Pending(sums, merged, (max_grad_norm, largest, propagate), each)


def each(ends, clocks, max_grad_norm, tables):
    """What the reduction is to know to clip the gradients of each parameter by their own norm; None without any."""
    return OfEach(ends, clocks, max_grad_norm, tables) if len(ends) else None


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
    if not count:
        return "CuPy finds no CUDA device"
    newest = max(int(cupy.cuda.Device(number).compute_capability) for number in range(count))
    if newest < OLDEST:
        return f"kernels need a GPU of compute capability {OLDEST / 10}, and there is one of {newest / 10}"
    return None
