"""The CUDA kernel: one CuPy elementwise launch over four flat buffers, its body the statements of the update text."""

from functools import cache

import cupy
import numpy as np
from cupy._core import _carray, _kernel, _scalar, core

# A copy of a gradient would be a launch as well, so each is read where it lies.
DIRECT_FROM = 0

# No contraction to fused multiply-adds, and IEEE division and square root: what the CPU computes. CuPy adds -ftz=true.
OPTIONS = ("--fmad=false", "--prec-div=true", "--prec-sqrt=true")

# CuPy binds arrays by reference. The update works on locals, so that an element is read and written once.
_BODY = """
T p = p_flat, g = g_flat, m = m_flat, v = v_flat;
{statements}
p_flat = p; m_flat = m; v_flat = v;
"""


def launcher(update, size, dtype):
    """`launch(p, g, m, v, scalars)` of `update`: on the current stream, without waiting for it."""
    kernel = elementwise(update)

    def launch(p, g, m, v, scalars):
        with p.device:
            kernel(g, *scalars, p, m, v)

    return launch


@cache
def elementwise(update):
    """The CuPy kernel of `update`, with arguments g, the scalars, and p, m, v in place."""
    return cupy.ElementwiseKernel(
        ", ".join(["T g_flat", *(f"T {scalar}" for scalar in update.scalars)]),
        "T p_flat, T m_flat, T v_flat",
        _BODY.format(statements="\n".join(f"{statement};" for statement in update.statements)),
        f"fastadam_{update.name.lower()}",
        options=OPTIONS,
        no_return=True,
    )


def source(update, dtype):
    """The full CUDA source that CuPy compiles for flat buffers of `dtype`; it takes no GPU to write it."""
    kernel, element = elementwise(update), np.dtype(dtype).type
    # CuPy's kinds of kernel arguments.
    of_array, of_indexer, of_scalar = 1, 2, 3
    array = _kernel._ArgInfo(of_array, cupy.ndarray, element, 1, True, True)
    scalar = _kernel._ArgInfo(of_scalar, _scalar.CScalar, element, 0, True, True)
    indexer = _kernel._ArgInfo(of_indexer, _carray.Indexer, None, 1, True, True)
    arguments = (array, *[scalar] * len(update.scalars), array, array, array, indexer)
    types = _kernel._TypeMap((("T", element),))
    code = _kernel._get_elementwise_kernel_code(
        arguments, types, kernel.params, kernel.operation, kernel.name, kernel.preamble, **kernel.kwargs
    )
    return "\n".join([f"#include <{header}>" for header in core._cupy_header_list] + [code])


def compiler_options():
    """The options with which CuPy compiles `source`, but for the architecture."""
    return (*core.assemble_cupy_compiler_options(OPTIONS), "-ftz=true")


def device_problem():
    """Why no CUDA device works, or None if one does."""
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device ({error})"
    return None if count else "CuPy finds no CUDA device"
