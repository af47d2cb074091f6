"""CUDA source from the texts: what CuPy's elementwise kernels are made of."""

import cupy
import numpy as np

from fastadam.kernels.cuda.c_functions import c_function
from fastadam.kernels.texts.casts import CASTS
from fastadam.kernels.texts.text import Text

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
