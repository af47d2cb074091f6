"""The full source of CuPy's elementwise kernels, which it takes no GPU to write."""

import cupy
import numpy as np
from cupy._core import _carray, _kernel, _scalar, core

from fastadam.kernels.cuda.norm import Folded, settle_kernel
from fastadam.kernels.cuda.source import OPTIONS, PREAMBLE
from fastadam.kernels.cuda.step import step_kernel


def parameters(kernel):
    """CuPy's descriptions of the parameters of `kernel`, in order."""
    return kernel.in_params + kernel.out_params


def kernels_of(update, dtype):
    """The kernels of a step of `update`: the fold on the device, and elements, guarded and not."""
    dtype = np.dtype(dtype)
    fold = settle_kernel(None, (Folded(update, dtype),))
    return [fold, *(step_kernel(update, dtype, guarded) for guarded in (False, True))]


def source(*kernels, dtype="f4"):
    """The CUDA source of a program of `kernels`, as CuPy writes it; `dtype` is that of what has no type of its own."""
    codes = [_code(kernel, dtype).replace(PREAMBLE, "") for kernel in kernels]
    # Each has types of its own.
    spaces = [f"namespace kernel_{index} {{\n{code}\n}}" for index, code in enumerate(codes)]
    return "\n".join([*(f"#include <{header}>" for header in core._cupy_header_list), PREAMBLE, *spaces])


def dtype_of(parameter, dtype):
    """The dtype of a parameter of a kernel that is called with `dtype`."""
    return np.dtype(parameter.dtype or dtype)


def _code(kernel, dtype):
    # CuPy's kinds of kernel arguments.
    of_array, of_indexer, of_scalar = 1, 2, 3
    infos = []
    for parameter in parameters(kernel):
        kind = dtype_of(parameter, dtype).type
        by_value = not parameter.raw and parameter in kernel.in_params
        infos.append(
            _kernel._ArgInfo(of_scalar, _scalar.CScalar, kind, 0, True, True)
            if by_value
            else _kernel._ArgInfo(of_array, cupy.ndarray, kind, 1, True, True)
        )
    infos.append(_kernel._ArgInfo(of_indexer, _carray.Indexer, None, 1, True, True))
    types = {p.ctype: dtype_of(p, dtype).type for p in parameters(kernel) if p.dtype is None}
    return _kernel._get_elementwise_kernel_code(
        tuple(infos),
        _kernel._TypeMap(tuple(types.items())),
        kernel.params,
        kernel.operation,
        kernel.name,
        kernel.preamble,
        **kernel.kwargs,
    )


def compiler_options():
    """The options with which CuPy compiles `source`, without the architecture."""
    return (*core.assemble_cupy_compiler_options(OPTIONS), "-ftz=true")
