"""The CUDA kernels: CuPy elementwise launches whose bodies are the statements of the texts."""

from functools import cache

import cupy
import numpy as np

from fastadam.kernels.cuda.norm import clip, squares_launcher
from fastadam.kernels.cuda.rows import catch_up
from fastadam.kernels.cuda.source import kernel_of, numbered, upload
from fastadam.kernels.cuda.step import fold_rows, step_flat, step_rows, threads_of
from fastadam.kernels.texts import fold
from fastadam.kernels.texts.formats import NATIVE

__all__ = [
    "DIRECT_FROM",
    "address",
    "blocks_of",
    "catch_up",
    "clip",
    "copy_out",
    "launch_flat",
    "launcher",
    "squares_launcher",
    "upload",
]

# A copy of a gradient would be a launch as well, so each is read where it lies.
DIRECT_FROM = 0


def launcher(update, dtype, size):
    """`launch(flats, addresses, blocks, rows, hyper, carried, table, grad_scale)`, on the current stream.

    `grad_scale` is a number, or the record of `clip`, which also says whether the step is taken at all. Nothing waits
    for the device.
    """

    def launch(flats, addresses, blocks, rows, hyper, carried, table, grad_scale):
        guarded = not isinstance(grad_scale, float)
        record = (grad_scale,) if guarded else ()
        pieces, count = blocks
        with flats[0].device:
            fold_rows(update, guarded)(rows, grad_scale, hyper, carried, table)
            step_rows(update, guarded)(addresses, pieces, len(pieces), table, *record, *flats, size=count)

    return launch


def launch_flat(update, flats, gradient, hyper, carried, grad_scale):
    """One step of flat arrays, with the scalars by value: it can be captured in a CUDA graph."""
    scalars = np.zeros(fold.COLUMNS)
    with np.errstate(all="ignore"):
        update.fold_row(hyper, carried, grad_scale, scalars)
    size = flats[0].size
    values = [size, *scalars[: len(update.columns)]]
    threads = int(threads_of(update.storage, np.int64(size)))
    with flats[0].device:
        step_flat(update)(*values, gradient, *flats, size=threads)


def copy_out(p, low, kind):
    """Write `p`, rounded to `kind` ("bfloat16" or "float16"), into the bits `low`."""
    with p.device:
        rounding(kind)(p, low)


def address(array):
    """Where `array` lies on the device."""
    return array.data.ptr


def blocks_of(pieces, like, storage=NATIVE):
    """`pieces` (start, stop, row, parameter, offset), in the form that `launch` takes, on the device of `like`."""
    pieces = np.asarray(pieces, np.int64).reshape(-1, 5)
    pieces, count = numbered(pieces, threads_of(storage, pieces[:, 1] - pieces[:, 0]))
    return upload(pieces, like), count


@cache
def rounding(kind):
    """The bits of each element, rounded to `kind`."""
    return kernel_of(f"fastadam_to_{kind}", ["T p"], ["uint16 low"], f"low = to_{kind}(p)")


def device_problem():
    """Why no CUDA device works, or None if one does."""
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device ({error})"
    return None if count else "CuPy finds no CUDA device"
