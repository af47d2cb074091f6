"""The CUDA source, unmodified, compiled by g++ and run thread by thread on the CPU."""

import contextlib
import ctypes
import shutil
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path

import cuda_program
import numpy as np
from cuda_program import parameters

from fastadam.kernels import cuda, norm
from fastadam.kernels.cuda import norm as cuda_norm
from fastadam.kernels.cuda import rows as cuda_rows
from fastadam.kernels.cuda import source as cuda_source
from fastadam.kernels.cuda import step as cuda_step

HAS_COMPILER = shutil.which("g++") is not None

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
struct Index { unsigned x; };
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;
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

# A shuffle between the 32 threads of a warp, which are threads of the CPU.
_SHUFFLE = """
#include <barrier>
#include <thread>
#include <vector>
static std::barrier<> warp(32);
static unsigned lanes[32];
unsigned __shfl_xor_sync(unsigned, unsigned value, int distance) {
  unsigned lane = threadIdx.x % 32;
  lanes[lane] = value;
  warp.arrive_and_wait();
  unsigned other = lanes[lane ^ distance];
  warp.arrive_and_wait();
  return other;
}
static void launch_together(void (*each)(unsigned)) {
  for (unsigned first = 0; first < 384; first += 32) {
    std::vector<std::thread> others;
    for (unsigned lane = 1; lane < 32; ++lane) others.emplace_back(each, first + lane);
    each(first);
    for (auto& other : others) other.join();
  }
}
"""
# Without shuffles every thread runs after the other.
_NO_SHUFFLE = """
unsigned __shfl_xor_sync(unsigned, unsigned, int) { abort(); }
static void launch_together(void (*each)(unsigned)) { for (unsigned thread = 0; thread < 384; ++thread) each(thread); }
"""

# A launch of 3 blocks of 128 threads.
_LAUNCH = """
static ptrdiff_t size;
static void** arguments;
static const ptrdiff_t* sizes;
static void launch_thread(unsigned thread) {{
  blockDim.x = 128; gridDim.x = 3; blockIdx.x = thread / 128; threadIdx.x = thread % 128;
  {kernel}({arguments}, CIndexer<1, 1>(&size));
}}
extern "C" void launch(ptrdiff_t given_size, void** given_arguments, const ptrdiff_t* given_sizes) {{
  size = given_size; arguments = given_arguments; sizes = given_sizes;
  launch_together(launch_thread);
}}
"""


def run_on_host(kernel, *arguments, size=None):
    """Launch a CuPy elementwise `kernel` on NumPy arrays and numbers, on the CPU; arrays are written in place."""
    flat = [argument.reshape(-1) if isinstance(argument, np.ndarray) else argument for argument in arguments]
    arrays = [isinstance(argument, np.ndarray) for argument in flat]
    if size is None:
        pairs = zip(flat, parameters(kernel), strict=True)
        size = next(a.size for a, parameter in pairs if not parameter.raw and isinstance(a, np.ndarray))
    key = tuple((argument.dtype if is_array else None) for argument, is_array in zip(flat, arrays, strict=True))
    library = _library(kernel, key)
    types = dict(zip((parameter.ctype for parameter in parameters(kernel)), key, strict=True))
    held = []
    for argument, parameter in zip(flat, parameters(kernel), strict=True):
        if not isinstance(argument, np.ndarray):
            dtype = parameter.dtype or types[parameter.ctype] or _template_dtype(kernel, key)
            with np.errstate(over="ignore"):
                argument = np.array(argument, dtype)
        held.append(argument)
    pointers = (ctypes.c_void_p * len(held))(*(argument.ctypes.data for argument in held))
    sizes = (ctypes.c_ssize_t * len(held))(*(argument.size for argument in held))
    library.launch(ctypes.c_ssize_t(size), pointers, sizes)


def by_host(guarded):
    """The function that runs a launch of `members.Launch` on the CPU, in place."""

    def run(launch):
        grad_scale = np.array([launch.grad_scale, 1.0, 0.0, 0.0]) if guarded else launch.grad_scale
        flats, rest = launch.flats.values(), (launch.hyper, launch.carried, launch.table, grad_scale)
        launch_on_host(launch.update, flats, launch.gradients, launch.pieces, launch.rows, *rest)

    return run


def stand_ins_for(kernel, dtype, numbers):
    """Arguments like those that `kernel` is launched with on parameters of `dtype`; `numbers` are passed by value."""
    return [
        0.0 if parameter.name in numbers else np.empty(0, parameter.dtype or dtype) for parameter in parameters(kernel)
    ]


class OnHost(np.ndarray):
    """A NumPy array in the place of CuPy's, for the functions of `cuda` that launch kernels."""

    device = contextlib.nullcontext()


def on_host(array):
    """`array` as `OnHost`, over the same memory."""
    return array.view(OnHost)


def patch_cuda(monkeypatch):
    """Let the functions of `cuda` launch their kernels on the CPU, on arrays `OnHost`."""
    kernels = {
        cuda: ("step_rows", "step_flat", "fold_rows", "rounding"),
        cuda_norm: ("squares", "row_sums", "clip_record"),
        cuda_rows: ("catch_up_rows",),
    }
    for module, names in kernels.items():
        for name in names:
            monkeypatch.setattr(module, name, partial(_host_launch, getattr(module, name)))
    monkeypatch.setattr(cuda, "upload", lambda array, like: array)
    monkeypatch.setattr(cuda_rows, "upload", lambda array, like: array)


def _host_launch(kernel_of, *arguments):
    return partial(run_on_host, kernel_of(*arguments))


def _template_dtype(kernel, key):
    return next(d for d, p in zip(key, parameters(kernel), strict=True) if p.dtype is None and d is not None)


@cache
def _library(kernel, key):
    stand_ins = stand_ins_of(key)
    with tempfile.TemporaryDirectory() as folder:
        return compile_on_host(cuda_program.source(kernel, stand_ins), kernel, stand_ins, Path(folder))


def stand_ins_of(key):
    """Arguments of the dtypes in `key`; None is a number."""
    return [0.0 if dtype is None else np.empty(0, dtype) for dtype in key]


def compile_on_host(source, kernel, arguments, folder):
    """The shared library of a CUDA `source` of `kernel`, without contraction to fused multiply-adds."""
    passed = []
    for index, (parameter, argument) in enumerate(zip(parameters(kernel), arguments, strict=True)):
        pointer = f"static_cast<{parameter.ctype}*>(arguments[{index}])"
        is_array = isinstance(argument, np.ndarray)
        passed.append(f"CArray<{parameter.ctype}, 1, 1, 1>({pointer}, &sizes[{index}])" if is_array else f"*{pointer}")
    launch = _LAUNCH.format(kernel=kernel.name, arguments=", ".join(passed))
    shuffle, standard = (_SHUFFLE, "c++20") if "warp_maximum" in kernel.operation else (_NO_SHUFFLE, "c++17")
    (folder / "kernel.cpp").write_text(_SHIMS + shuffle + source + launch)
    # CuPy's own headers only: those of the CUDA toolkit are for its compilers.
    include = [option for option in cuda_program.compiler_options() if option.startswith("-I") and "cupy" in option]
    command = ["g++", "-O2", f"-std={standard}", "-pthread", "-ffp-contract=off", "-w", "-shared", "-fPIC", *include]
    subprocess.run([*command, "kernel.cpp", "-o", "kernel.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernel.so"))


def launch_on_host(update, flats, gradients, blocks, rows, hyper, carried, table, grad_scale):
    """What `cuda.launcher` launches, on the CPU. `grad_scale` is a number or a record of `clip_on_host`."""
    guarded = isinstance(grad_scale, np.ndarray)
    addresses = addresses_of(gradients)
    pieces, count = pieces_on_host(blocks, update.storage)
    run_on_host(cuda.fold_rows(update, guarded), rows, grad_scale, hyper, carried, table)
    record = (grad_scale,) if guarded else ()
    run_on_host(cuda.step_rows(update, guarded), addresses, pieces, len(pieces), table, *record, *flats, size=count)


def run_flat_on_host(launch, table):
    """What `cuda.launch_flat` launches, on the CPU, with the scalars of a row of the table."""
    update, size = launch.update, launch.gradients[0].size
    threads = int(cuda_step.threads_of(update.storage, size))
    arrays = *launch.gradients, *launch.flats.values()
    scalars = map(float, table[: len(update.columns)])
    run_on_host(cuda_step.step_flat(update), size, *scalars, *arrays, size=threads)


def pieces_on_host(pieces, storage):
    """What `cuda.blocks_of` uploads."""
    pieces = np.asarray(pieces, np.int64).reshape(-1, 5)
    return cuda_source.numbered(pieces, cuda_step.threads_of(storage, pieces[:, 1] - pieces[:, 0]))


def clip_on_host(gradients, grad_scale, max_grad_norm, largest, propagate, record, storage="native"):
    """What `cuda.squares_launcher` and `cuda.clip` launch, on the CPU."""
    blocks = norm.blocks_of([gradient.size for gradient in gradients])
    # Gradients without elements have one block of zeros.
    lanes = np.zeros((max(1, len(blocks)), norm.LANES))
    if len(blocks):
        squares = cuda_norm.squares(gradients[0].dtype if storage == "native" else np.dtype(np.float32), storage)
        run_on_host(squares, addresses_of(gradients), blocks, lanes)
    for stride, groups in cuda_norm.levels(len(lanes)):
        run_on_host(cuda_norm.row_sums(), len(lanes), stride, lanes, size=groups * norm.LANES)
    run_on_host(cuda_norm.clip_record(), lanes, grad_scale, max_grad_norm, largest, propagate, record, size=1)
    return record


def addresses_of(gradients):
    return np.array([gradient.ctypes.data for gradient in gradients], np.int64)
