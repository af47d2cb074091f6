"""The reduction of :mod:`norm <fastadam.kernels.norm>` on CUDA."""

from functools import cache

import numpy as np

from fastadam.kernels.cuda.source import kernel_of, statements
from fastadam.kernels.norm import LANES, ROWS
from fastadam.kernels.texts import fold
from fastadam.kernels.texts.formats import FORMATS

_SQUARES = """
ptrdiff_t block = 3 * (i / {lanes}), size = blocks[block + 2];
const {kind}* gradient = reinterpret_cast<const {kind}*>(addresses[blocks[block]]) + blocks[block + 1];
double sum = 0.0;
for (ptrdiff_t k = i % {lanes}; k < size; k += {lanes}) {{ double value = {load}; sum += value * value; }}
lanes = sum;
"""

# In place: the sum of a group goes where its first row was, which no other thread reads.
_ROW_SUMS = """
ptrdiff_t lane = i % {lanes}, first = i / {lanes} * {rows} * stride, end = first + {rows} * stride;
double sum = rows[first * {lanes} + lane];
for (ptrdiff_t k = first + stride; k < end && k < count; k += stride) sum += rows[k * {lanes} + lane];
rows[first * {lanes} + lane] = sum;
"""

_CLIP = """
double squared_norm = lanes[0], grad_scale = scale, norm, taken;
for (ptrdiff_t k = 1; k < {lanes}; ++k) squared_norm += lanes[k];
{statements}
record[0] = grad_scale; record[1] = taken; record[2] = norm; record[3] += 1.0 - taken;
"""


def squares_launcher(dtype, size, storage="native"):
    """`launch(addresses, blocks, lanes)`: level 0 of :mod:`norm <fastadam.kernels.norm>`.

    The gradients are of `dtype`, or stored in another format.
    """

    def launch(addresses, blocks, lanes):
        with lanes.device:
            squares(np.dtype(dtype), storage)(addresses, blocks, lanes)

    return launch


def levels(count):
    """(distance of the rows that are added up, how many groups of them) until one row of `count` is left."""
    stride = 1
    while stride < count:
        yield stride, -(-count // (ROWS * stride))
        stride *= ROWS


def clip(lanes, grad_scale, max_grad_norm, largest, propagate, record):
    """Combine the `lanes` of all blocks, and write what follows from the norm into `record`, which is returned."""
    with lanes.device:
        for stride, groups in levels(len(lanes)):
            row_sums()(len(lanes), stride, lanes, size=groups * LANES)
        clip_record()(lanes, grad_scale, max_grad_norm, largest, propagate, record, size=1)
    return record


@cache
def squares(dtype, storage="native"):
    """A lane of a block: the sum of the squares of its column."""
    (carried,) = FORMATS[storage].dtypes
    kind = {"float32": "float", "float64": "double"}[dtype.name] if carried == "native" else carried
    body = _SQUARES.format(lanes=LANES, kind=kind, load=FORMATS[storage].load.format("gradient[k]"))
    inputs = ["raw int64 addresses", "raw int64 blocks"]
    return kernel_of(f"fastadam_squares_{dtype}_{storage}", inputs, ["float64 lanes"], body)


@cache
def row_sums():
    """Lane by lane, the sums of groups of blocks."""
    body = _ROW_SUMS.format(lanes=LANES, rows=ROWS)
    return kernel_of("fastadam_row_sums", ["int64 count", "int64 stride"], ["raw float64 rows"], body)


@cache
def clip_record():
    """The end of the reduction: norm, clipped scale and whether the step is taken."""
    inputs = ["raw float64 lanes", "float64 scale", "float64 max_grad_norm", "float64 largest", "float64 propagate"]
    body = _CLIP.format(lanes=LANES, statements=statements(fold.CLIP))
    return kernel_of("fastadam_clip", inputs, ["raw float64 record"], body)
