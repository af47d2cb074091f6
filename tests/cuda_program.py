"""The full source of CuPy's elementwise kernels, which it takes no GPU to write."""

import cupy
import numpy as np
from cupy._core import _carray, _kernel, _scalar, core

from fastadam.kernels.cuda.source import OPTIONS


def parameters(kernel):
    """CuPy's descriptions of the parameters of `kernel`, in order."""
    return kernel.in_params + kernel.out_params


def source(kernel, arguments):
    """The full CUDA source that CuPy compiles for `kernel`, called with `arguments`; it takes no GPU to write it.

    `arguments` are NumPy arrays in place of CuPy's, and Python numbers for scalars by value.
    """
    # CuPy's kinds of kernel arguments.
    of_array, of_indexer, of_scalar = 1, 2, 3
    pairs = list(zip(parameters(kernel), arguments, strict=True))
    dtypes = {parameter.ctype: a.dtype.type for parameter, a in pairs if isinstance(a, np.ndarray)}
    infos = [
        _kernel._ArgInfo(of_array, cupy.ndarray, argument.dtype.type, 1, True, True)
        if isinstance(argument, np.ndarray)
        else _kernel._ArgInfo(of_scalar, _scalar.CScalar, parameter.dtype or dtypes[parameter.ctype], 0, True, True)
        for parameter, argument in pairs
    ]
    infos.append(_kernel._ArgInfo(of_indexer, _carray.Indexer, None, 1, True, True))
    types = [(parameter.ctype, dtypes[parameter.ctype]) for parameter, _ in pairs if parameter.dtype is None]
    code = _kernel._get_elementwise_kernel_code(
        tuple(infos),
        _kernel._TypeMap(tuple(dict(types).items())),
        kernel.params,
        kernel.operation,
        kernel.name,
        kernel.preamble,
        **kernel.kwargs,
    )
    return "\n".join([f"#include <{header}>" for header in core._cupy_header_list] + [code])


def compiler_options():
    """The options with which CuPy compiles `source`, but for the architecture."""
    return (*core.assemble_cupy_compiler_options(OPTIONS), "-ftz=true")
