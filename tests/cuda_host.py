"""The CUDA source, unmodified, compiled by g++ and run thread by thread on the CPU."""

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from fastadam.kernels import cuda

# What CUDA's compiler has built in and a host compiler has not.
_SHIMS = """
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
static struct { unsigned x; } threadIdx, blockIdx, blockDim, gridDim;
// For functions in CuPy's headers that no elementwise kernel calls.
template <class T, class U> T atomicCAS(T*, U, U) { abort(); }
unsigned long long atomicAdd(unsigned long long*, unsigned long long) { abort(); }
int __float_as_int(float) { abort(); }
float __int_as_float(int) { abort(); }
long long __double_as_longlong(double) { abort(); }
double __longlong_as_double(long long) { abort(); }
unsigned __popc(unsigned) { abort(); }
unsigned __popcll(unsigned long long) { abort(); }
"""

# Every thread of a launch of 3 blocks of 128, one after the other.
_LAUNCH = """
extern "C" void launch(ptrdiff_t size, T* p, const T* g, T* m, T* v, const T* scalars) {{
  using Flat = CArray<T, 1, 1, 1>;
  blockDim.x = 128;
  gridDim.x = 3;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)
      {kernel}(Flat(const_cast<T*>(g), &size), {scalars}, Flat(p, &size), Flat(m, &size), Flat(v, &size),
               CIndexer<1, 1>(&size));
}}
"""


def run_on_host(update, p, g, m, v, scalars):
    """Launch the CUDA kernel of `update` on NumPy arrays, in place, on the CPU."""
    rounded = np.array(scalars, p.dtype)
    pointers = [buffer.ctypes.data_as(ctypes.c_void_p) for buffer in (p, g, m, v, rounded)]
    _library(update, p.dtype).launch(ctypes.c_ssize_t(p.size), *pointers)


@cache
def _library(update, dtype):
    with tempfile.TemporaryDirectory() as folder:
        return compile_on_host(cuda.source(update, dtype), update, Path(folder))


def compile_on_host(source, update, folder):
    """The shared library of a CUDA `source` of `update`, without contraction to fused multiply-adds."""
    scalars = ", ".join(f"scalars[{index}]" for index in range(len(update.scalars)))
    launch = _LAUNCH.format(kernel=cuda.elementwise(update).name, scalars=scalars)
    (folder / "kernel.cpp").write_text(_SHIMS + source + launch)
    # CuPy's own headers only: those of the CUDA toolkit are for its compilers.
    include = [option for option in cuda.compiler_options() if option.startswith("-I") and "cupy" in option]
    command = ["g++", "-O2", "-std=c++17", "-ffp-contract=off", "-w", "-shared", "-fPIC", *include]
    subprocess.run([*command, "kernel.cpp", "-o", "kernel.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernel.so"))
