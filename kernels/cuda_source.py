"""CUDA source from the texts: what CuPy's elementwise kernels are made of, and their source without a GPU."""

import cupy
import numpy as np
from cupy._core import _carray, _kernel, _scalar, core

from fastadam.kernels.c_functions import c_function
from fastadam.kernels.casts import CASTS
from fastadam.kernels.text import Text

# No contraction to fused multiply-adds, and IEEE division and square root: what the CPU computes. CuPy adds -ftz=true.
OPTIONS = ("--fmad=false", "--prec-div=true", "--prec-sqrt=true")

# The functions of the texts that CUDA lacks. maximum and minimum return a NaN of either side, as NumPy's do.
_BUILT_IN = """
typedef unsigned char uint8; typedef unsigned short uint16; typedef unsigned int uint32; typedef float float32;
template <class T> __device__ T maximum(T a, T b) { return a >= b || a != a ? a : b; }
template <class T> __device__ T minimum(T a, T b) { return a <= b || a != a ? a : b; }
template <class T> __device__ T where(bool condition, T value, T other) { return condition ? value : other; }
__device__ inline uint32 bits_of(float value) { uint32 bits; memcpy(&bits, &value, 4); return bits; }
__device__ inline float float_of(uint32 bits) { float value; memcpy(&value, &bits, 4); return value; }
__device__ inline uint32 warp_maximum(uint32 value) {
  for (int distance = 16; distance > 0; distance /= 2)
    value = maximum(value, (uint32)__shfl_xor_sync(0xFFFFFFFFu, value, distance));
  return value;
}
"""
PREAMBLE = "\n".join([_BUILT_IN, *(c_function(cast) for cast in CASTS)])

# Thread i works on what lies i places after the first in the pieces; the piece is found by halving.
FIND = """
ptrdiff_t piece = 0, above = count;
#pragma unroll 1
while (above - piece > 1) {{
  ptrdiff_t middle = (piece + above) / 2;
  if (pieces[{width} * middle + {width} - 1] <= i) piece = middle; else above = middle;
}}
piece *= {width};
ptrdiff_t inside = i - pieces[piece + {width} - 1];
"""


def kernel_of(name: str, inputs: list[str], outputs: list[str], body: str) -> cupy.ElementwiseKernel:
    """The elementwise kernel with this body."""
    return cupy.ElementwiseKernel(
        ", ".join(inputs), ", ".join(outputs), body, name, options=OPTIONS, no_return=True, preamble=PREAMBLE
    )


def upload(array, like):
    """A copy of a NumPy array on the device of `like`."""
    with like.device:
        return cupy.asarray(array)


def numbered(pieces: np.ndarray, threads: np.ndarray) -> tuple[np.ndarray, int]:
    """`pieces`, each with how many of the `threads` of each are before it, and how many there are in all."""
    return np.column_stack([pieces, np.cumsum(threads) - threads]), int(threads.sum())


def declared(kind: str, names: list[str] | tuple[str, ...]) -> str:
    """The declaration of locals."""
    return f"{kind} {', '.join(names)};" if names else ""


def statements(text: Text) -> str:
    """The statements of a text."""
    return "\n".join(f"{statement};" for statement in text.statements)


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
