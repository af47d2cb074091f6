"""CUDA source from the texts: what all kernels begin with, and where kernels are made and launched."""

from typing import Any

import cupy
import numpy as np

from fastadam import kernels
from fastadam.kernels.cuda.c_functions import c_function
from fastadam.kernels.texts.casts import CASTS, splice
from fastadam.kernels.texts.power import power
from fastadam.kernels.texts.text import Text
from fastadam.kernels.texts.update import Update

# Threads of a CUDA block. On an H200 at 1e8 elements, 8-bit moments take 4.4 ps an element with 128, 4.9 with 256 and
# 7.1 with 512 of them; float32 takes 6.7 with 128 and with 256.
THREADS = 128

# What the bodies call the widths and columns of the tables.
LAYOUT = {name: number for name, number in vars(kernels).items() if type(number) is int}

# No contraction to fused multiply-adds, and IEEE division and square root: what the CPU computes. CuPy adds -ftz=true.
OPTIONS = ("--fmad=false", "--prec-div=true", "--prec-sqrt=true")

# The functions of the texts that CUDA lacks. They return a NaN of any argument, as NumPy's do.
_BUILT_IN = """
typedef unsigned char uint8; typedef unsigned short uint16; typedef unsigned int uint32; typedef float float32;
template <class T> __device__ T maximum(T a, T b) { return a >= b || a != a ? a : b; }
template <class T> __device__ T minimum(T a, T b) { return a <= b || a != a ? a : b; }
template <class T> __device__ T signum(T x) { return x > 0 ? T(1) : x < 0 ? T(-1) : x == 0 ? T(0) : x; }
template <class T> __device__ T where(bool condition, T value, T other) { return condition ? value : other; }
__device__ inline uint32 bits_of(float value) { uint32 bits; memcpy(&bits, &value, 4); return bits; }
__device__ inline float float_of(uint32 bits) { float value; memcpy(&value, &bits, 4); return value; }
__device__ inline uint32 warp_maximum(uint32 value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xFFFFFFFFu, value);
#else
  for (int distance = 16; distance > 0; distance /= 2)
    value = maximum(value, (uint32)__shfl_xor_sync(0xFFFFFFFFu, value, distance));
  return value;
#endif
}
// Of the casts, by one instruction: compilers do not find it.
__device__ inline uint32 splice(uint32 upper, uint32 lower) { return __funnelshift_r(lower, upper, 12); }
__device__ inline uint32 of_lane(uint32 value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }
"""

# Four neighbours, in one access of up to 16 bytes, or those from `start` to `stop` of them, one by one. Those narrower
# than 32 bits stay in words: unpacked while the two ways of access meet, each would take a register and a move more.
# `pin` keeps words whole that are to be stored: the compiler would put together twice what both ways of access share.
_FOUR = """
template <class V, bool packed = sizeof(V) < 4> struct alignas(sizeof(V) < 4 ? 4 * sizeof(V) : 16) Four {
  V of[4];
  __device__ inline V get(int j) const { return of[j]; }
  __device__ inline void put(int j, V value) { of[j] = value; }
  __device__ inline void pin() {}
};
template <class V> struct alignas(4 * sizeof(V)) Four<V, true> {
  uint32 words[sizeof(V)];
  __device__ inline V get(int j) const { return V(words[j * sizeof(V) / 4] >> 8 * sizeof(V) * j % 32); }
  __device__ inline void put(int j, V value) {
    const uint32 shift = 8 * sizeof(V) * j % 32, mask = ~(((1u << 8 * sizeof(V)) - 1u) << shift);
    uint32& word = words[j * sizeof(V) / 4];
    word = (word & mask) | uint32(value) << shift;
  }
  __device__ inline void pin() { for (int k = 0; k < sizeof(V); ++k) asm volatile("" : "+r"(words[k])); }
};
template <class V> __device__ inline size_t misaligned(const V* place) {
  return reinterpret_cast<size_t>(place) & (alignof(Four<V>) - 1);
}
template <class V> __device__ inline void load_four(Four<V>& four, const V* place) {
  four = *reinterpret_cast<const Four<V>*>(place);
}
template <class V> __device__ inline void store_four(const Four<V>& four, V* place) {
  *reinterpret_cast<Four<V>*>(place) = four;
}
template <class V> __device__ inline void load_some(Four<V>& four, const V* place, int stop, int start = 0) {
  for (int j = 0; j < 4; ++j) four.put(j, j >= start && j < stop ? place[j] : V(0));
}
template <class V> __device__ inline void store_some(const Four<V>& four, V* place, int stop, int start = 0) {
  for (int j = 0; j < 4; ++j) if (j >= start && j < stop) place[j] = four.get(j);
}
"""
PREAMBLE = "\n".join([_BUILT_IN, *(c_function(each) for each in (*CASTS, power) if each is not splice), _FOUR])


def kernel_of(name: str, inputs: list[str], outputs: list[str], body: str) -> cupy.ElementwiseKernel:
    """The elementwise kernel with this body."""
    # CuPy's loop over elements is left after the first: as a loop it takes 13 registers more.
    operation = f"{body}\nreturn;"
    return cupy.ElementwiseKernel(
        ", ".join(inputs), ", ".join(outputs), operation, name, options=OPTIONS, no_return=True, preamble=PREAMBLE
    )


def step_name(update: Update, part: str, guarded: bool) -> str:
    """The name of a kernel of a step, which profilers show."""
    return f"fastadam_{update.name}_{part}_guarded" if guarded else f"fastadam_{update.name}_{part}"


def launch(kernel: cupy.ElementwiseKernel, arguments: tuple, size: int) -> None:
    """Launch `kernel` with `size` threads, in CUDA blocks of `THREADS`, on the current stream."""
    kernel(*arguments, size=size, block_size=THREADS)


def upload(array: np.ndarray, device_of: Any) -> cupy.ndarray:
    """A copy of a NumPy array on the device of `device_of`, which are tables."""
    with device_of.device:
        return cupy.asarray(array)


def number_type(dtype: np.dtype) -> str:
    """The C type of the arithmetic."""
    return {"float32": "float", "float64": "double"}[np.dtype(dtype).name]


def pointer(kind: str, name: str, address: str, offset: str) -> str:
    """The declaration of a pointer to number `offset` of what begins at `address`."""
    # Unless it is told that the memory is global, the compiler accesses it as what might be shared or local memory.
    place = f"reinterpret_cast<{kind}*>({address}) + {offset}"
    return f"{kind}* {name} = {place}; __builtin_assume(__isGlobal({name}));"


def declarations(kind: str, names: list[str] | tuple[str, ...]) -> str:
    """The declaration of locals."""
    return f"{kind} {', '.join(names)};" if names else ""


def statements(text: Text) -> str:
    """The statements of a text."""
    return "\n".join(f"{statement};" for statement in text.statements)
