"""The CUDA source, unmodified, compiled by g++ and run on the CPU.

The threads of a CUDA block take turns, each up to its next shuffle or barrier; its CUDA blocks run one after the other.
"""

import contextlib
import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import cuda_program
import cupy
import numpy as np
from cuda_program import dtype_of, kernels_of, parameters

from fastadam.kernels import GRAD_SCALE, GRADIENT, TAKEN, blocks, cuda
from fastadam.kernels.cuda import device_tables
from fastadam.kernels.cuda import launch as cuda_launch
from fastadam.kernels.cuda import norm as cuda_norm
from fastadam.kernels.cuda import source as cuda_source

HAS_COMPILER = shutil.which("g++") is not None

# What CUDA's compiler has built in and a host compiler has not. A fiber is a thread of a CUDA block.
_SHIMS = """
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#if !defined(__aarch64__)
#include <immintrin.h>
#endif
#define __device__
#define __host__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __builtin_assume(condition)
struct Index { unsigned x; };
static Index threadIdx, blockIdx, blockDim, gridDim;
// For functions in CuPy's headers that no elementwise kernel calls.
template <class T, class U> T atomicCAS(T*, U, U) { abort(); }
unsigned long long atomicAdd(unsigned long long*, unsigned long long) { abort(); }
int __float_as_int(float) { abort(); }
float __int_as_float(int) { abort(); }
long long __double_as_longlong(double) { abort(); }
double __longlong_as_double(long long) { abort(); }
unsigned __popc(unsigned) { abort(); }
unsigned __popcll(unsigned long long) { abort(); }

static unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return low >> shift | high << (32 - shift);
}
template <class V> V __ldg(const V* place) { return *place; }
template <class V> V __ldcg(const V* place) { return *place; }
static unsigned atomicInc(unsigned* counter, unsigned largest) {
  unsigned old = *counter;
  *counter = old >= largest ? 0 : old + 1;
  return old;
}
static void __threadfence() {}

const unsigned THREADS = 128;
static const char* failure;
static ucontext_t scheduler, fibers[THREADS];
static char stacks[THREADS][1 << 16];
static bool ended[THREADS];
static unsigned lanes[THREADS], shuffles[THREADS], arrived, alive, barriers;
static void (*kernel_of_block)();

static void wait() { swapcontext(&fibers[threadIdx.x], &scheduler); }
static unsigned shuffled(unsigned value, unsigned other) {
  unsigned mine = threadIdx.x;
  lanes[mine] = value; ++shuffles[mine];
  wait();
  if (ended[other] || shuffles[other] != shuffles[mine]) failure = "a warp shuffles without all of its lanes";
  unsigned result = lanes[other];
  wait();
  return result;
}
static unsigned __shfl_xor_sync(unsigned, unsigned value, int distance) {
  return shuffled(value, threadIdx.x ^ distance);
}
static unsigned __shfl_sync(unsigned, unsigned value, int lane) {
  return shuffled(value, threadIdx.x / 32 * 32 + lane);
}
static void __syncthreads() {
  unsigned mine = barriers;
  if (++arrived == alive) { arrived = 0; ++barriers; }
  while (mine == barriers && !failure) wait();
}
static void run_fiber() { kernel_of_block(); --alive; ended[threadIdx.x] = true; }
static void run_together() {
  alive = THREADS; arrived = 0;
  for (unsigned thread = 0; thread < THREADS; ++thread) {
    ended[thread] = false; shuffles[thread] = 0;
    getcontext(&fibers[thread]);
    fibers[thread].uc_stack.ss_sp = stacks[thread];
    fibers[thread].uc_stack.ss_size = sizeof(stacks[thread]);
    fibers[thread].uc_link = &scheduler;
    makecontext(&fibers[thread], run_fiber, 0);
  }
  while (alive)
    for (threadIdx.x = 0; threadIdx.x < THREADS; ++threadIdx.x)
      if (!ended[threadIdx.x]) swapcontext(&scheduler, &fibers[threadIdx.x]);
}
// Subnormals are zero, as CuPy's -ftz=true makes those of float32.
#if defined(__aarch64__)
static unsigned long long flush() {
  unsigned long long mode = __builtin_aarch64_get_fpcr64();
  __builtin_aarch64_set_fpcr64(mode | 1 << 24);
  return mode;
}
static void restore(unsigned long long mode) { __builtin_aarch64_set_fpcr64(mode); }
#else
static unsigned flush() { unsigned mode = _mm_getcsr(); _mm_setcsr(mode | 0x8040); return mode; }
static void restore(unsigned mode) { _mm_setcsr(mode); }
#endif
static const char* launch_blocks(
    void (*kernel)(), bool together, bool flushed, ptrdiff_t count, const ptrdiff_t* order
) {
  kernel_of_block = kernel; failure = 0;
  const auto mode = flush();
  if (!flushed) restore(mode);
  blockDim.x = THREADS; gridDim.x = count;
  for (ptrdiff_t k = 0; k < count; ++k) {
    blockIdx.x = order[k];
    if (together) run_together();
    else for (threadIdx.x = 0; threadIdx.x < THREADS; ++threadIdx.x) kernel();
  }
  restore(mode);
  return failure;
}
bool __isGlobal(const void*) { return true; }
static ptrdiff_t size;
static void** arguments;
static const ptrdiff_t* sizes;
"""

_LAUNCH = """
extern "C" const char* launch_{index}(
    ptrdiff_t given_size, void** given_arguments, const ptrdiff_t* given_sizes, ptrdiff_t count, const ptrdiff_t* order
) {{
  size = given_size; arguments = given_arguments; sizes = given_sizes;
  auto kernel = [] {{ kernel_{index}::{kernel}({arguments}, CIndexer<1, 1>(&size)); }};
  return launch_blocks(kernel, {together}, {flushed}, count, order);
}}
"""


def run_on_host(kernel, arguments, size, order=None):
    """Launch a CuPy elementwise `kernel` on NumPy arrays and numbers, on the CPU; arrays are written in place.

    CUDA blocks run in `order`, which changes a permutation of their numbers in place.
    """
    dtypes = [a.dtype for a, p in zip(arguments, parameters(kernel), strict=True) if p.dtype is None]
    dtype = dtypes[0] if dtypes else np.dtype(np.float32)
    run = _launcher(kernel, dtype)
    converted = []
    for argument, parameter in zip(arguments, parameters(kernel), strict=True):
        if isinstance(argument, np.ndarray):
            assert argument.dtype == dtype_of(parameter, dtype)
            assert argument.flags.c_contiguous
            converted.append(argument)
        else:
            converted.append(np.array(argument, parameter.dtype))
    pointers = (ctypes.c_void_p * len(converted))(*(argument.ctypes.data for argument in converted))
    sizes = (ctypes.c_ssize_t * len(converted))(*(argument.size for argument in converted))
    numbers = np.arange(-(-size // cuda_source.THREADS))
    if order:
        order(numbers)
    failure = run(ctypes.c_ssize_t(size), pointers, sizes, ctypes.c_ssize_t(numbers.size), numbers.ctypes.data)
    assert failure is None, failure.decode()


# kernel -> the kernels that are compiled with it.
_TOGETHER = {}


def compile_together(update, dtype):
    """Let the kernels of a step of `update` be compiled as one program, which takes hardly longer than one of them."""
    kernels = kernels_of(update, dtype)
    _TOGETHER.update(dict.fromkeys(kernels, tuple(kernels)))


def _launcher(kernel, dtype):
    kernels = _TOGETHER.get(kernel, (kernel,))
    function = getattr(_library(kernels, dtype), f"launch_{kernels.index(kernel)}")
    function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_ssize_t, *[ctypes.c_void_p] * 2, ctypes.c_ssize_t]
    function.argtypes += [ctypes.c_void_p]
    return function


@cache
def _library(kernels, dtype):
    with tempfile.TemporaryDirectory() as folder:
        return compile_on_host(cuda_program.source(*kernels, dtype=dtype), kernels, Path(folder), dtype)


def compile_on_host(source, kernels, folder, dtype=np.float32):
    """The shared library of a CUDA `source` of `kernels`, without contraction to fused multiply-adds."""
    launches = []
    for index, kernel in enumerate(kernels):
        passed = ", ".join(_passed(kernel, number, dtype) for number in range(len(parameters(kernel))))
        together = any(name in kernel.operation for name in ("warp_maximum", "of_lane", "__syncthreads"))
        names = {"index": index, "kernel": kernel.name, "arguments": passed, "together": str(together).lower()}
        names["flushed"] = str("double" not in kernel.name and "typedef double" not in kernel.operation).lower()
        launches.append(_LAUNCH.format(**names))
    (folder / "kernel.cpp").write_text("\n".join([_SHIMS, source, *launches]))
    # CuPy's own headers only: those of the CUDA toolkit are for its compilers.
    include = [option for option in cuda_program.compiler_options() if option.startswith("-I") and "cupy" in option]
    command = ["g++", "-O1", "-std=c++17", "-ffp-contract=off", "-w", "-shared", "-fPIC", *include]
    subprocess.run([*command, "kernel.cpp", "-o", "kernel.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernel.so"))


def _passed(kernel, number, dtype):
    parameter = parameters(kernel)[number]
    place = f"static_cast<{_c_type(parameter, dtype)}*>(arguments[{number}])"
    if not parameter.raw and parameter in kernel.in_params:
        return f"*{place}"
    return f"CArray<{_c_type(parameter, dtype)}, 1, 1, 1>({place}, &sizes[{number}])"


def _c_type(parameter, dtype):
    names = {"i8": "long long", "f8": "double", "f4": "float", "u4": "unsigned int", "u2": "unsigned short"}
    return {**names, "u1": "unsigned char"}[dtype_of(parameter, dtype).str[1:]]


class FakeDevice(contextlib.nullcontext):
    """A device that is the host."""

    id = "host"


class OnHost(np.ndarray):
    """A NumPy array in the place of CuPy's."""

    device = FakeDevice()

    def get(self):
        """A copy on the host."""
        return np.array(self)

    @property
    def data(self):
        """Where it lies, as CuPy says it."""
        return SimpleNamespace(ptr=self.ctypes.data)


def on_host(array):
    """`array` as `OnHost`, over the same memory."""
    return array.view(OnHost)


class Stream:
    """A stream that does what is put into it when it is waited for, and at once if it is not `lazy`."""

    ptr = 7

    def __init__(self, lazy=False, capturing=False):
        self.lazy, self.capturing, self.waiting, self.done, self.log = lazy, capturing, [], 0, []

    def is_capturing(self):
        return self.capturing

    def put(self, what, act):
        self.log.append(what)
        self.waiting.append(act)
        if not self.lazy:
            self.wait(len(self.waiting))

    def wait(self, count):
        """Do the first `count` things that have ever been put into the stream."""
        for act in self.waiting[self.done : count]:
            act()
        self.done = max(self.done, count)


class Event:
    """A place in a stream."""

    def __init__(self, disable_timing):
        self.stream, self.count = None, 0

    def record(self, stream):
        self.stream, self.count = stream, len(stream.waiting)

    def synchronize(self):
        if self.stream is not None:
            self.stream.wait(self.count)


def fake_cupy(stream):
    """What the functions of `cuda` use of CuPy, on the host; copies are put into `stream`."""

    def copy(target, source, size, kind, pointer):
        assert pointer == stream.ptr
        stream.put("copy", lambda: ctypes.memmove(target, source, size))

    runtime = SimpleNamespace(memcpyAsync=copy, memcpyHostToDevice=1)
    driver = SimpleNamespace(runtime=runtime, get_current_stream=lambda: stream, Event=Event)
    arrays = {
        "zeros": lambda shape, dtype=float: on_host(np.zeros(shape, dtype)),
        "asarray": lambda array: on_host(np.ascontiguousarray(array)),
    }
    return SimpleNamespace(ElementwiseKernel=cupy.ElementwiseKernel, ndarray=OnHost, cuda=driver, **arrays)


@contextlib.contextmanager
def cuda_on_host(stream=None, order=None):
    """Let the functions of `cuda` launch their kernels on the CPU, on arrays `OnHost`, in `stream`."""
    stream = stream or Stream()

    def launch(kernel, arguments, size):
        stream.put(kernel.name, lambda: run_on_host(kernel, arguments, size, order))

    fake = fake_cupy(stream)
    with contextlib.ExitStack() as stack:
        for module in (cuda_launch, cuda_source, cuda_norm, device_tables):
            stack.enter_context(mock.patch.object(module, "cupy", fake))
        stack.enter_context(mock.patch.object(cuda_source, "launch", launch))
        stack.enter_context(mock.patch.object(cuda_launch, "_device_of", return_value=FakeDevice()))
        yield stream


def cuda_tables_like(tables):
    """Tables of `cuda` with what is in `tables`; inside of `cuda_on_host`."""
    copied = cuda.tables(len(tables.addresses), len(tables.hyper), on_host(tables.hyper))
    copied.write("addresses", ..., tables.addresses)
    for clock in range(len(tables.hyper)):
        copied.write("hyper", (clock, slice(None)), tables.hyper[clock])
        copied.write("carried", (clock, slice(None)), tables.carried[clock])
    copied.host.table[...] = tables.table
    copied.write("record", GRAD_SCALE, tables.record[GRAD_SCALE])
    return copied


def launcher(passes, tables, *, guarded):
    """`cuda.launcher` on the CPU, for the arrays that the `HostTables` point to; if `guarded`, the device folds."""
    for each in passes:
        compile_together(each.update, each.dtype)
    found_inf = np.array([tables.record[TAKEN] == 0.0], np.float32)

    def launch():
        with cuda_on_host():
            copied = cuda_tables_like(tables)
            run = cuda.launcher(passes, copied, guarded=guarded)
            if guarded:
                copied.ask(found_inf_at=found_inf.ctypes.data)
            run()
        for name in ("hyper", "carried", "table"):
            getattr(tables, name)[...] = getattr(copied, name)

    return launch


def clip_on_host(gradients, grad_scale, max_grad_norm, largest, propagate, record, format="native", order=None):
    """What `cuda.squares` and `cuda.clip` write into `record`, on the CPU."""
    cut = blocks.cut(np.array([[k, 0, 0, g.size, 0] for k, g in enumerate(gradients)], np.int64).reshape(-1, 5))
    with cuda_on_host(order=order):
        tables = cuda.tables(len(gradients), 1, on_host(record))
        tables.addresses[:, GRADIENT] = [gradient.ctypes.data for gradient in gradients]
        tables.device_record = on_host(record)
        # Gradients without elements have one block of zeros.
        sums = on_host(np.full(max(1, len(cut)), np.nan if len(cut) else 0.0))
        dtype = gradients[0].dtype if gradients and format == "native" else np.dtype(np.float32)
        squares = cuda.squares(dtype, format, cut, tables, sums)
        cuda.clip(sums, grad_scale, max_grad_norm, largest, propagate, tables, [squares] if len(cut) else [])
        assert tables.record[TAKEN] in (0.0, 1.0)
        assert not tables.counters(1).any(), "counters are zero after a launch"
    return record
