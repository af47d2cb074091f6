"""The reduction of :mod:`norm <fastadam.kernels.norm>` on CUDA, and what follows from the norm."""

from functools import cache

import cupy
import numpy as np

from fastadam.kernels import ADDRESSES, FIRST, GRADIENT, PARAMETER
from fastadam.kernels.blocks import BLOCK
from fastadam.kernels.cuda.source import LAYOUT, THREADS, kernel_of, number_type, pointer, statements
from fastadam.kernels.norm import LANES
from fastadam.kernels.texts.clip import CLIP
from fastadam.kernels.texts.formats import FORMATS

assert THREADS == LANES

# The lanes of a CUDA block, by halves: their sum ends in `halves[0]`.
_HALVES = """
__shared__ double halves[{LANES}];
halves[threadIdx.x] = sum;
for (int half = {LANES} / 2; half > 0; half /= 2) {{
  __syncthreads();
  if (threadIdx.x < half) halves[threadIdx.x] += halves[threadIdx.x + half];
}}
"""

_SQUARES = (
    """
const ptrdiff_t entry = 5 * (ptrdiff_t)blockIdx.x;
{gradient}
const int size = __ldg(&blocks[entry + {STOP}]) - __ldg(&blocks[entry + {START}]);
double sum = 0.0;
#pragma unroll 8
for (int k = threadIdx.x; k < size; k += {LANES}) {{ double value = {load}; sum += value * value; }}
"""
    + _HALVES
    + """
if (threadIdx.x == 0) sums[blockIdx.x] = halves[0];
"""
)

# A CUDA block adds up the first level's group of its number, in place: where the first sum of the group was. Then the
# last of up to `BLOCK` neighbours to finish adds up what they have left, and so on until one sum is left. The order of
# the additions does not depend on which is the last. A counter of neighbours is zero again after the last of them.
_CLIP = (
    """
const ptrdiff_t count = sums.size(), lane = threadIdx.x;
unsigned* finished = &counters[0];
ptrdiff_t first = {BLOCK} * (ptrdiff_t)blockIdx.x, stride = 1;
__shared__ bool is_last;
while (true) {{
  ptrdiff_t stop = first + {BLOCK} * stride;
  double sum = 0.0;
  #pragma unroll 8
  for (ptrdiff_t k = first + lane * stride; k < stop && k < count; k += {LANES} * stride) sum += __ldcg(&sums[k]);
"""
    + _HALVES
    + """
  if (lane == 0) sums[first] = halves[0];
  stride *= {BLOCK};
  if (stride >= count) break;
  const ptrdiff_t group = first / ({BLOCK} * stride), groups = (count - 1) / ({BLOCK} * stride) + 1;
  first = group * {BLOCK} * stride;
  stop = first + {BLOCK} * stride;
  const unsigned neighbours = ((stop < count ? stop : count) - first - 1) / stride + 1;
  __threadfence();
  __syncthreads();
  if (lane == 0) is_last = atomicInc(&finished[group], neighbours - 1) == neighbours - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  finished += groups;
}}
if (lane != 0) return;
double squared_norm = sums[0], grad_scale = scale, norm, taken;
{statements}
record[{GRAD_SCALE}] = grad_scale; record[{TAKEN}] = taken; record[{NORM}] = norm; record[{SKIPPED}] += 1.0 - taken;
"""
)


@cache
def squares_kernel(dtype: np.dtype, format: str) -> cupy.ElementwiseKernel:
    """The sum of squares of each block: a CUDA block for each of them, a thread for each lane."""
    (stored,) = FORMATS[format].dtypes
    kind = number_type(dtype) if stored == "native" else stored
    address = f"__ldg(&addresses[{ADDRESSES} * __ldg(&blocks[entry + {PARAMETER}]) + {GRADIENT}])"
    body = _SQUARES.format(
        gradient=pointer(f"const {kind}", "gradient", address, f"__ldg(&blocks[entry + {FIRST}])"),
        load=FORMATS[format].load.format("gradient[k]"),
        LANES=LANES,
        **LAYOUT,
    )
    inputs = ["raw int64 addresses", "raw int64 blocks"]
    return kernel_of(f"fastadam_squares_{number_type(dtype)}_{format}", inputs, ["raw float64 sums"], body)


@cache
def clip_kernel() -> cupy.ElementwiseKernel:
    """The rest of the reduction, in one launch, and what follows from the norm."""
    body = _CLIP.format(LANES=LANES, BLOCK=BLOCK, **LAYOUT, statements=statements(CLIP))
    inputs = ["float64 scale", "float64 max_grad_norm", "float64 largest", "float64 propagate"]
    return kernel_of("fastadam_clip", inputs, ["raw float64 sums", "raw uint32 counters", "raw float64 record"], body)


def groups_of(count: int) -> int:
    """How many CUDA blocks add up the sums of `count` blocks; no more counters are needed."""
    return -(-count // BLOCK)
