"""The reduction of :mod:`norm <fastadam.kernels.norm>` on CUDA, what follows from it, and the fold: one launch."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastadam.kernels import FIRST, PARAMETER, Pass
from fastadam.kernels.blocks import BLOCK
from fastadam.kernels.cuda import source
from fastadam.kernels.cuda.device_tables import DIVISOR_AT, FACTOR, FACTOR_AT, FOUND_INF_AT, ROW, CudaTables
from fastadam.kernels.cuda.source import (
    LAYOUT,
    THREADS,
    declarations,
    kernel_of,
    number_type,
    pointer,
    statements,
    upload,
)
from fastadam.kernels.norm import LANES
from fastadam.kernels.texts.clip import CLIP, CLIP_EACH
from fastadam.kernels.texts.formats import FORMATS
from fastadam.kernels.texts.member import CLIP as CLIP_AT
from fastadam.kernels.texts.update import Update

assert THREADS == LANES


class Kind(NamedTuple):
    """How gradients are stored: the dtype of the arithmetic, and the format."""

    dtype: np.dtype
    format: str


class Folded(NamedTuple):
    """What is folded alike."""

    update: Update
    dtype: np.dtype


# The sum of squares of the entry of a CUDA block.
_SQUARES = """
const ptrdiff_t entry = 5 * (ptrdiff_t)blockIdx.x;
{gradient}
const int size = __ldg(&blocks[entry + {STOP}]) - __ldg(&blocks[entry + {START}]);
double sum = 0.0;
#pragma unroll 8
for (int k = lane; k < size; k += {LANES}) {{ double value = {load}; sum += value * value; }}
"""
# The first group of the sums of blocks that a CUDA block adds up.
_SUMS = """
double sum = 0.0;
#pragma unroll 8
for (ptrdiff_t k = first + lane; k < first + {BLOCK} && k < count; k += {LANES}) sum += __ldcg(&sums[k]);
"""
# What is left of a sum that is there already.
_SUM = """
ptrdiff_t first = blockIdx.x, stride = 1;
double sum = lane == 0 ? __ldcg(&sums[first]) : 0.0;
"""
# The lanes of a CUDA block, by halves: their sum ends in `halves[0]`.
_HALVES = """
  __syncthreads();
  halves[lane] = sum;
  for (int half = {LANES} / 2; half > 0; half /= 2) {{
    __syncthreads();
    if (lane < half) halves[lane] += halves[lane + half];
  }}
  if (lane == 0) sums[first] = halves[0];
"""
# The last of up to `BLOCK` neighbours to finish adds up what they have left, in place: where the first sum of the group
# was; and so on until one sum is left. The order of the additions does not depend on which is the last. A counter of
# neighbours is zero again after the last of them. It returns whether the CUDA block is the last of all.
_ADD_UP = (
    """
__shared__ bool is_last;
auto add_up = [&](double* sums, ptrdiff_t count, ptrdiff_t first, ptrdiff_t stride, unsigned* finished, double sum) {{
while (true) {{
"""
    + _HALVES
    + """
  if (stride >= count) return true;
  const ptrdiff_t group = first / ({BLOCK} * stride), groups = (count - 1) / ({BLOCK} * stride) + 1;
  first = group * {BLOCK} * stride;
  const ptrdiff_t stop = first + {BLOCK} * stride;
  const unsigned neighbours = ((stop < count ? stop : count) - first - 1) / stride + 1;
  __threadfence();
  __syncthreads();
  if (lane == 0) is_last = atomicInc(&finished[group], neighbours - 1) == neighbours - 1;
  __syncthreads();
  if (!is_last) return false;
  __threadfence();
  sum = 0.0;
  #pragma unroll 8
  for (ptrdiff_t k = first + lane * stride; k < stop && k < count; k += {LANES} * stride) sum += __ldcg(&sums[k]);
  stride *= {BLOCK};
  finished += groups;
}}
}};
"""
)
_SCALE = """
double grad_scale = asked[{FACTOR}];
if (asked[{FACTOR_AT}] != 0.0) grad_scale = grad_scale * (double)__ldg({factor});
if (asked[{DIVISOR_AT}] != 0.0) grad_scale = grad_scale / (double)__ldg({divisor});
"""
# The last CUDA block with sums of a parameter writes the factor that clips its gradients. The sums of all are added up
# in another order, and so from another copy.
_EACH = (
    """
{{
const ptrdiff_t entry = 4 * (ptrdiff_t)blockIdx.x, begin = __ldg(&of_each[entry]);
double* own_sums = &own[begin];
unsigned* own_counters = &counters[__ldg(&of_each[entry + 3])];
if (add_up(own_sums, __ldg(&of_each[entry + 1]), blockIdx.x - begin, 1, own_counters, sum) && lane == 0) {{
  double squared_norm = own_sums[0], max_grad_norm = max_of_each, clip;
"""
    + _SCALE
    + """
  {clip_each}
  hyper[{HYPER} * __ldg(&of_each[entry + 2]) + {CLIP}] = clip;
}}
}}
"""
)
_ALL = "if (!add_up(&sums[0], count, first, stride, &counters[0], sum)) return;"
_SETTLE = (
    """
__shared__ double settled[2];
if (lane == 0) {{
  double squared_norm = sums[0], norm, taken;
"""
    + _SCALE
    + """
  const double given = grad_scale;
  {statements}
  if (asked[{FOUND_INF_AT}] != 0.0 && __ldg({found_inf}) != 0.0f) taken = 0.0;
  // With a factor for each parameter, what is not finite in one is no factor on others.
  if ({is_each}) grad_scale = given;
  record[{GRAD_SCALE}] = grad_scale; record[{TAKEN}] = taken; record[{NORM}] = norm; record[{SKIPPED}] += 1.0 - taken;
  settled[0] = grad_scale; settled[1] = taken;
}}
__syncthreads();
if (settled[1] == 0.0) return;
const double grad_scale_of_step = settled[0];
"""
)
# What follows from the norm is in the record.
_SETTLED = """
if (record[{TAKEN}] == 0.0) return;
const double grad_scale_of_step = record[{GRAD_SCALE}];
"""
# A thread for each clock: (number of the text, clock, number of its row).
_FOLDS = """
for (ptrdiff_t k = 3 * lane; k < clocks.size(); k += 3 * {LANES}) {{
  const double* clock_hyper = &hyper[{HYPER} * clocks[k + 1]];
  double* row = &rows[{ROW} * clocks[k + 2]];
  double* clock_carried = row + {SCALARS};
  switch (clocks[k]) {{
  {folds}
  }}
}}
"""
_FOLD = """
case {index}: {{
typedef {number} T;
T* scalars = reinterpret_cast<T*>(row);
double grad_scale = grad_scale_of_step;
{loads}
{locals}
{statements}
{stores}
}} break;
"""


@cache
def squares_kernel(kind: Kind) -> cupy.ElementwiseKernel:
    """The sum of squares of each block: a CUDA block for each of them, a thread for each lane."""
    body = _formatted(_BEGIN, "const ptrdiff_t first = blockIdx.x;", _SQUARES, _HALVES, **_squares(kind))
    inputs = ["raw int64 gradients", "raw int64 blocks"]
    return kernel_of(f"fastadam_squares_{_named(kind)}", inputs, ["raw float64 sums"], body)


@cache
def settle_kernel(kind: Kind | None, folds: tuple[Folded, ...], *, each: bool = False) -> cupy.ElementwiseKernel:
    """The whole reduction, what follows from the norm, and the fold of clocks, in one launch.

    A CUDA block begins with the squares of an entry or, without `kind`, with the first group of given sums. If the
    gradients of `each` parameter are clipped by their own norm, it begins with one given sum.
    """
    places = {"factor": FACTOR_AT, "divisor": DIVISOR_AT, "found_inf": FOUND_INF_AT}
    names = {name: f"reinterpret_cast<const float*>((size_t)asked[{place}])" for name, place in places.items()}
    names |= {"statements": statements(CLIP), "clip_each": statements(CLIP_EACH), "is_each": str(each).lower()}
    names |= {"folds": "\n".join(map(_fold, range(len(folds)), folds)), "CLIP": str(CLIP_AT)}
    inputs = ["float64 max_grad_norm", "float64 largest", "float64 propagate"]
    inputs += ["raw int64 clocks", "raw float64 asked"]
    inputs += ["float64 max_of_each", "raw int64 of_each"] if each else ["raw float64 hyper"]
    parts = ["settle", *dict.fromkeys(each.update.name for each in folds)]
    if kind is None and each:
        begin: tuple[str, ...] = _BEGIN, _SUM
    elif kind is None:
        begin = _BEGIN, _FIRST_GROUP, _SUMS
    else:
        begin = _BEGIN, "ptrdiff_t first = blockIdx.x, stride = 1;", _SQUARES
        names |= _squares(kind)
        inputs += ["raw int64 gradients", "raw int64 blocks"]
        parts = ["squares", _named(kind), *parts]
    parts += ["each"] if each else []
    all_parts = *begin, _ADD_UP, *([_EACH] if each else []), _ALL, _SETTLE, *([_FOLDS] if folds else [])
    outputs = ["raw float64 sums", "raw uint32 counters", "raw float64 record", "raw float64 rows"]
    outputs += ["raw float64 hyper", "raw float64 own"] if each else []
    return kernel_of(f"fastadam_{'_'.join(parts)}", inputs, outputs, _formatted(*all_parts, **names))


@cache
def fold_kernel(folds: tuple[Folded, ...]) -> cupy.ElementwiseKernel:
    """The fold of clocks by the record, if the step that it tells of is taken: by one CUDA block."""
    texts = "\n".join(map(_fold, range(len(folds)), folds))
    body = _formatted("const ptrdiff_t lane = threadIdx.x;", _SETTLED, _FOLDS, folds=texts)
    parts = ["fold", *dict.fromkeys(each.update.name for each in folds)]
    inputs = ["raw int64 clocks", "raw float64 hyper", "raw float64 record"]
    return kernel_of(f"fastadam_{'_'.join(parts)}", inputs, ["raw float64 rows"], body)


# Launched over no sums at all, a kernel is only compiled.
_BEGIN = """
const ptrdiff_t lane = threadIdx.x, count = sums.size();
if (count == 0) return;
__shared__ double halves[{LANES}];
"""
_FIRST_GROUP = "ptrdiff_t first = {BLOCK} * (ptrdiff_t)blockIdx.x, stride = {BLOCK};"


def _formatted(*texts, **names):
    return "\n".join(texts).format(
        **LAYOUT,
        **names,
        LANES=LANES,
        BLOCK=BLOCK,
        ROW=ROW,
        FACTOR=FACTOR,
        FACTOR_AT=FACTOR_AT,
        DIVISOR_AT=DIVISOR_AT,
        FOUND_INF_AT=FOUND_INF_AT,
    )


def _named(kind):
    return f"{number_type(kind.dtype)}_{kind.format}"


def _squares(kind):
    (stored,) = FORMATS[kind.format].dtypes
    c_type = number_type(kind.dtype) if stored == "native" else stored
    address = f"__ldg(&gradients[__ldg(&blocks[entry + {PARAMETER}])])"
    gradient = pointer(f"const {c_type}", "gradient", address, f"__ldg(&blocks[entry + {FIRST}])")
    return {"gradient": gradient, "load": FORMATS[kind.format].load.format("gradient[k]")}


def _fold(index, folded):
    """The fold of one clock: the scalars of its row, and what is carried on."""
    update, text = folded.update, folded.update.fold
    needed = {*text.arguments, *update.columns}
    # A factor of its own has been written by another CUDA block.
    loads = [f"double {name} = __ldcg(&clock_hyper[{k}]);" for k, name in enumerate(update.hyper) if name in needed]
    loads += [f"double {name} = clock_carried[{k}];" for k, name in enumerate(update.carried) if name in needed]
    stores = [f"clock_carried[{k}] = {name};" for k, name in enumerate(update.carried) if name in text.assigned]
    stores += [f"scalars[{k}] = {name};" for k, name in enumerate(update.columns)]
    return _FOLD.format(
        index=index,
        number=number_type(folded.dtype),
        loads=" ".join(loads),
        locals=declarations("double", text.locals),
        statements=statements(text),
        stores=" ".join(stores),
    )


class Squares:
    """Writes the sum of squares of the gradients of each block into `sums`, if it is launched alone."""

    def __init__(self, kind: Kind, blocks: np.ndarray, tables: CudaTables, sums: Any):
        self.kind, self.blocks, self._tables, self._sums = kind, upload(blocks, tables), tables, sums

    def __call__(self) -> None:
        """Launch it."""
        tables = self._tables
        with tables.device:
            tables.push()
            arrays = tables.gradients, self.blocks, self._sums
            source.launch(squares_kernel(self.kind), arrays, THREADS * len(self.blocks))


class Folds(NamedTuple):
    """What is folded in a launch: the texts, and int64 numbers of three for each clock, as the kernel takes them."""

    texts: tuple[Folded, ...]
    clocks: cupy.ndarray


def folds_of(passes: Sequence[Pass], tables: CudaTables) -> Folds:
    """The folds of the clocks of `passes`, compiled."""
    rows = [(index, clock, tables.row_of(clock)) for index, each in enumerate(passes) for clock in each.clocks.tolist()]
    folds = Folds(
        tuple(Folded(each.update, np.dtype(each.dtype)) for each in passes),
        upload(np.array(rows, np.int64).reshape(-1), tables),
    )
    if rows:
        _compile(folds.texts, tables.device.id)
    return folds


@cache
def _compile(texts, device_id):
    """Compile for a device, the current one: nothing can be while a graph is captured."""
    no_clocks, none, one = cupy.zeros(0, np.int64), cupy.zeros(0), cupy.zeros(1)
    arrays = no_clocks, one, one, none, cupy.zeros(1, np.uint32), one, one
    source.launch(settle_kernel(None, texts), (*NO_LIMITS, *arrays), 1)


# Of the norm, of the squared norm, and that the step is taken whatever it is.
NO_LIMITS = float("inf"), float("inf"), 1.0


class OfEach:
    """What the reduction is to know to clip the gradients of each parameter by their own norm.

    Attributes:
        max_grad_norm: The limit of each norm.
        counters: How many counters the sums of single parameters need.
        sums: Where they begin, how many there are, their clock and their first counter: of each block, int64 of four.
        own: Memory for the sums of single parameters.
    """

    def __init__(self, ends: np.ndarray, clocks: np.ndarray, max_grad_norm: float, tables: CudaTables):
        self.max_grad_norm = max_grad_norm
        counts = np.diff(ends, prepend=0)
        needed = np.array(list(map(counters_of, counts.tolist())), np.int64)
        self.counters, first = int(needed.sum()), np.cumsum(needed) - needed
        rows = np.stack([ends - counts, counts, clocks, first + counters_of(int(ends[-1]))], axis=1)
        self.sums = upload(np.repeat(rows, counts, axis=0).reshape(-1), tables)
        self.own = upload(np.zeros(int(ends[-1])), tables)


class Pending(NamedTuple):
    """What is left of a reduction: sums of blocks, what writes them first, limits, and what is known of parameters."""

    sums: Any
    squares: Squares | None
    limits: tuple[float, float, float]
    each: OfEach | None


def settle(tables: CudaTables, folds: Folds | None = None) -> None:
    """Launch what is left of the reduction, what follows from it and from what is asked of the step, and the folds."""
    if tables.is_settled and tables.pending is None and folds:
        _fold_settled(tables, folds)
        return
    sums, squares, limits, each = tables.pending or Pending(tables.no_sums, None, NO_LIMITS, None)
    tables.pending, tables.is_settled = None, False
    if each:
        # The device alone knows the factors.
        tables.to_device()
    with tables.device:
        tables.push()
        texts, clocks = folds or ((), tables.no_clocks)
        kernel = settle_kernel(squares.kind if squares else None, texts, each=each is not None)
        gradients = (tables.gradients, squares.blocks) if squares else ()
        counters = tables.counters(counters_of(len(sums)) + (each.counters if each else 0))
        numbers = clocks, tables.asked, *((each.max_grad_norm, each.sums) if each else (tables.device_hyper,))
        written = sums, counters, tables.device_record, tables.rows, *((tables.device_hyper, each.own) if each else ())
        count = len(sums) if squares or each else groups_of(len(sums))
        source.launch(kernel, (*limits, *numbers, *gradients, *written), THREADS * count)


def _fold_settled(tables, folds):
    tables.is_settled = False
    with tables.device:
        tables.push()
        arrays = folds.clocks, tables.device_hyper, tables.device_record, tables.rows
        source.launch(fold_kernel(folds.texts), arrays, THREADS)


def groups_of(count: int) -> int:
    """How many CUDA blocks add up the sums of `count` blocks."""
    return -(-count // BLOCK)


def counters_of(count: int) -> int:
    """How many counters a reduction of `count` blocks needs: one for each group, on all levels."""
    return 0 if count <= 1 else groups_of(count) + counters_of(groups_of(count))
