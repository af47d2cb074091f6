"""The reduction of :mod:`norm <fastadam.kernels.norm>` on CUDA, and what follows from the norm."""

from functools import cache

import cupy
import numpy as np

from fastadam.kernels import ADDRESSES, FIRST, GRADIENT, PARAMETER
from fastadam.kernels.cuda.source import LAYOUT, THREADS, kernel_of, number_type, pointer, statements
from fastadam.kernels.norm import LANES, LINES
from fastadam.kernels.texts.clip import CLIP
from fastadam.kernels.texts.formats import FORMATS

assert THREADS == LANES

_SQUARES = """
const ptrdiff_t entry = 5 * (ptrdiff_t)blockIdx.x;
{gradient}
const int size = __ldg(&blocks[entry + {STOP}]) - __ldg(&blocks[entry + {START}]);
double sum = 0.0;
#pragma unroll 8
for (int k = threadIdx.x; k < size; k += {LANES}) {{ double value = {load}; sum += value * value; }}
lanes[i] = sum;
"""

# A CUDA block adds up the first level's group of its number, in place: where the first line of the group was. Then the
# last of up to LINES neighbours to finish adds up what they have left, and so on until one line is left. The order of
# the additions does not depend on which is the last. A counter of neighbours is zero again after the last of them.
_CLIP = """
const ptrdiff_t count = lanes.size() / {LANES}, lane = threadIdx.x;
unsigned* finished = &counters[0];
ptrdiff_t first = {LINES} * (ptrdiff_t)blockIdx.x, stride = 1;
__shared__ bool is_last;
while (true) {{
  ptrdiff_t stop = first + {LINES} * stride;
  double sum = __ldcg(&lanes[{LANES} * first + lane]);
  #pragma unroll 8
  for (ptrdiff_t k = first + stride; k < stop && k < count; k += stride) sum += __ldcg(&lanes[{LANES} * k + lane]);
  lanes[{LANES} * first + lane] = sum;
  stride *= {LINES};
  if (stride >= count) break;
  const ptrdiff_t group = first / ({LINES} * stride), groups = (count - 1) / ({LINES} * stride) + 1;
  first = group * {LINES} * stride;
  stop = first + {LINES} * stride;
  const unsigned neighbours = ((stop < count ? stop : count) - first - 1) / stride + 1;
  __threadfence();
  __syncthreads();
  if (lane == 0) is_last = atomicInc(&finished[group], neighbours - 1) == neighbours - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  finished += groups;
}}
__syncthreads();
if (lane != 0) return;
double squared_norm = lanes[0], grad_scale = scale, norm, taken;
for (ptrdiff_t k = 1; k < {LANES}; ++k) squared_norm += lanes[k];
{statements}
record[{GRAD_SCALE}] = grad_scale; record[{TAKEN}] = taken; record[{NORM}] = norm; record[{SKIPPED}] += 1.0 - taken;
"""


@cache
def squares_kernel(dtype: np.dtype, format: str) -> cupy.ElementwiseKernel:
    """The sums of squares of each block: a CUDA block for each of them, a thread for each lane."""
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
    return kernel_of(f"fastadam_squares_{number_type(dtype)}_{format}", inputs, ["raw float64 lanes"], body)


@cache
def clip_kernel() -> cupy.ElementwiseKernel:
    """The rest of the reduction, in one launch, and what follows from the norm."""
    body = _CLIP.format(LANES=LANES, LINES=LINES, **LAYOUT, statements=statements(CLIP))
    inputs = ["float64 scale", "float64 max_grad_norm", "float64 largest", "float64 propagate"]
    return kernel_of("fastadam_clip", inputs, ["raw float64 lanes", "raw uint32 counters", "raw float64 record"], body)


def groups_of(count: int) -> int:
    """How many CUDA blocks add up `count` lines of lanes; no more counters are needed."""
    return -(-count // LINES)
