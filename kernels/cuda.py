"""The CUDA kernels: CuPy elementwise launches whose bodies are the statements of the texts."""

from functools import cache

import cupy
import numpy as np
from cupy._core import _carray, _kernel, _scalar, core

from fastadam.kernels import catch_up as catching_up
from fastadam.kernels import fold
from fastadam.kernels.norm import LANES, ROWS

# A copy of a gradient would be a launch as well, so each is read where it lies.
DIRECT_FROM = 0

# No contraction to fused multiply-adds, and IEEE division and square root: what the CPU computes. CuPy adds -ftz=true.
OPTIONS = ("--fmad=false", "--prec-div=true", "--prec-sqrt=true")

# The functions of the texts that CUDA lacks. maximum and minimum return a NaN of either side, as NumPy's do.
_PREAMBLE = """
template <class T> __device__ T maximum(T a, T b) { return a >= b || a != a ? a : b; }
template <class T> __device__ T minimum(T a, T b) { return a <= b || a != a ? a : b; }
__device__ unsigned int bits_of(float value) { unsigned int bits; memcpy(&bits, &value, 4); return bits; }
__device__ unsigned short to_bfloat16(float value) {
  unsigned int bits = bits_of(value);
  return (value != value ? bits | 0x400000u : bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}
__device__ unsigned short to_float16(float value) {
  unsigned int bits = bits_of(value), size = bits & 0x7FFFFFFFu, sign = (bits ^ size) >> 16, half;
  float absolute;
  memcpy(&absolute, &size, 4);
  // Rebias the exponent from 127 to 15 and add half of the last place; adding 0.5 rounds a subnormal at its last place.
  half = size + 0xC8000FFFu + (size >> 13 & 1u) >> 13;
  if (size < 0x38800000u) half = bits_of(absolute + 0.5f) - 0x3F000000u;
  if (size >= 0x47800000u) half = size > 0x7F800000u ? 0x7E00u : 0x7C00u;
  return half | sign;
}
"""

# CuPy binds arrays by reference. The update works on locals, so that an element is read and written once.
_ELEMENT = """
T g = {gradient};
{loads}
{scalars}
{locals}
{statements}
{stores}
"""

# Thread i works on the element that lies i elements after the first in the pieces; the piece is found by halving.
_FIND = """
ptrdiff_t piece = 0, above = count;
#pragma unroll 1
while (above - piece > 1) {{
  ptrdiff_t middle = (piece + above) / 2;
  if (pieces[{width} * middle + {width} - 1] <= i) piece = middle; else above = middle;
}}
piece *= {width};
ptrdiff_t inside = i - pieces[piece + {width} - 1], k = pieces[piece] + inside;
"""

_ROWS = """
ptrdiff_t row = {columns} * pieces[piece + 2];
T* gradient = reinterpret_cast<T*>(addresses[pieces[piece + 3]]) + pieces[piece + 4] + inside;
{element}
"""

_CATCH_UP = """
{loads}
for (ptrdiff_t row = starts[pieces[piece + 2]]; row < starts[pieces[piece + 2] + 1]; ++row) {{
  {scalars}
  {locals}
  {statements}
}}
{stores}
"""

_FOLD = """
double *hyper = &all_hyper[{hyper} * row], *carried = &all_carried[{carried} * row];
T* table = &all_table[{columns} * row];
{taken}
{loads}
{locals}
{statements}
{stores}
"""

_SQUARES = """
ptrdiff_t block = 3 * (i / {lanes}), size = blocks[block + 2];
const T* gradient = reinterpret_cast<const T*>(addresses[blocks[block]]) + blocks[block + 1];
double sum = 0.0;
for (ptrdiff_t k = i % {lanes}; k < size; k += {lanes}) {{ double value = gradient[k]; sum += value * value; }}
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


def launcher(update, dtype, size):
    """`launch(flats, addresses, blocks, rows, hyper, carried, table, grad_scale)`, on the current stream.

    `grad_scale` is a number, or the record of `clip`, which also says whether the step is taken at all. Nothing waits
    for the device.
    """

    def launch(flats, addresses, blocks, rows, hyper, carried, table, grad_scale):
        guarded = not isinstance(grad_scale, float)
        record = (grad_scale,) if guarded else ()
        pieces, count = blocks
        with flats[0].device:
            fold_rows(update, guarded)(rows, grad_scale, hyper, carried, table)
            step_rows(update, guarded)(addresses, pieces, len(pieces), table, *record, *flats, size=count)

    return launch


def launch_flat(update, flats, gradient, hyper, carried, grad_scale):
    """One step of four flat arrays or more, with the scalars by value: it can be captured in a CUDA graph."""
    scalars = np.zeros(fold.COLUMNS)
    with np.errstate(all="ignore"):
        update.fold_row(hyper, carried, grad_scale, scalars)
    with flats[0].device:
        step_flat(update)(*scalars[: len(update.scalars)], gradient, *flats)


def copy_out(p, low, kind):
    """Write `p`, rounded to `kind` ("bfloat16" or "float16"), into the bits `low`."""
    with p.device:
        rounding(kind)(p, low)


def address(array):
    """Where `array` lies on the device."""
    return array.data.ptr


def upload(array, like):
    """A copy of a NumPy array on the device of `like`."""
    with like.device:
        return cupy.asarray(array)


def blocks_of(pieces, like):
    """`pieces` (start, stop, row, parameter, offset), in the form that `launch` takes, on the device of `like`."""
    pieces, count = numbered(np.asarray(pieces, np.int64).reshape(-1, 5))
    return upload(pieces, like), count


def catch_up(flats, blocks, table, starts):
    """Make up for missed steps: blocks (start, stop, slot), each by rows `starts[slot]` to `starts[slot + 1]`."""
    pieces, count = numbered(blocks)
    with flats[0].device:
        held = [upload(array, flats[0]) for array in (pieces, table, starts)]
        catch_up_rows()(held[0], len(pieces), *held[1:], *flats, size=count)


def numbered(pieces):
    """`pieces`, each with how many elements lie in those before it, and how many lie in all."""
    pieces = np.asarray(pieces, np.int64)
    sizes = pieces[:, 1] - pieces[:, 0]
    return np.column_stack([pieces, np.cumsum(sizes) - sizes]), int(sizes.sum())


def squares_launcher(dtype, size):
    """`launch(addresses, blocks, lanes, like)`: level 0 of :mod:`norm <fastadam.kernels.norm>`."""

    def launch(addresses, blocks, lanes, like):
        with lanes.device:
            squares()(addresses, blocks, like, lanes)

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
def step_rows(update, guarded):
    """The pass over all rows: scalars from the table, gradients by address, and no store if the step is not taken."""
    stores = _stores(update, "k")
    if guarded:
        stores = f"if (record[1] != 0.0) {{ {stores} }}"
    if "g" in update.written:
        # Not g: where the step is not taken, the table has the scalars of an earlier one.
        stores += " *gradient = 0;"
    scalars = [f"T {name} = table[row + {index}];" for index, name in enumerate(update.scalars)]
    element = _element(update, "*gradient", " ".join(scalars), stores, "k")
    raw = ["raw int64 addresses", "raw int64 pieces", "int64 count", "raw T table"]
    return _kernel_of(
        f"fastadam_{update.name}_rows",
        [*raw, *(["raw float64 record"] if guarded else [])],
        [f"raw {parameter}" for parameter in _flat_parameters(update)],
        _FIND.format(width=6) + _ROWS.format(columns=fold.COLUMNS, element=element),
    )


@cache
def step_flat(update):
    """The pass over flat arrays with one gradient: scalars by value."""
    inputs = [f"T {name}" for name in update.scalars]
    outputs = _flat_parameters(update)
    gradient = "T g_flat"
    stores = _stores(update)
    if "g" in update.written:
        outputs, stores = [gradient, *outputs], stores + " g_flat = g;"
    else:
        inputs = [*inputs, gradient]
    return _kernel_of(f"fastadam_{update.name}", inputs, outputs, _element(update, "g_flat", "", stores))


@cache
def fold_rows(update, guarded):
    """The fold of each of `rows`: the scalars of its row of the table, and what is carried on."""
    text = update.fold
    needed = {*text.arguments, *update.scalars}
    loads = [f"double {name} = hyper[{index}];" for index, name in enumerate(fold.HYPER) if name in needed]
    loads += [f"double {name} = carried[{index}];" for index, name in enumerate(fold.CARRIED) if name in needed]
    loads += ["double grad_scale = record[0];" if guarded else "double grad_scale = scale;"]
    stores = [f"carried[{index}] = {name};" for index, name in enumerate(fold.CARRIED) if name in text.assigned]
    stores += [f"table[{index}] = {name};" for index, name in enumerate(update.scalars)]
    body = _FOLD.format(
        hyper=len(fold.HYPER),
        carried=len(fold.CARRIED),
        columns=fold.COLUMNS,
        taken="if (record[1] == 0.0) continue;" if guarded else "",
        loads=" ".join(loads),
        locals=_declared("double", text.locals),
        statements=_statements(text),
        stores=" ".join(stores),
    )
    inputs = ["int64 row", "raw float64 record" if guarded else "float64 scale"]
    outputs = ["raw float64 all_hyper", "raw float64 all_carried", "raw T all_table"]
    return _kernel_of(f"fastadam_{update.name}_fold", inputs, outputs, body)


@cache
def catch_up_rows():
    """Every row of the table that belongs to an element, one after the other."""
    update = catching_up.CATCH_UP
    scalars = [f"T {name} = table[{catching_up.COLUMNS} * row + {k}];" for k, name in enumerate(update.scalars)]
    body = _CATCH_UP.format(
        loads=_loads(update, "k"),
        scalars=" ".join(scalars),
        locals=_declared("T", update.text.locals),
        statements=_statements(update.text),
        stores=_stores(update, "k"),
    )
    inputs = ["raw int64 pieces", "int64 count", "raw T table", "raw int64 starts"]
    outputs = [f"raw {parameter}" for parameter in _flat_parameters(update)]
    return _kernel_of("fastadam_catch_up", inputs, outputs, _FIND.format(width=4) + body)


@cache
def rounding(kind):
    """The bits of each element, rounded to `kind`."""
    return _kernel_of(f"fastadam_to_{kind}", ["T p"], ["uint16 low"], f"low = to_{kind}(p)")


@cache
def squares():
    """A lane of a block: the sum of the squares of its column."""
    inputs = ["raw int64 addresses", "raw int64 blocks", "raw T like"]
    return _kernel_of("fastadam_squares", inputs, ["float64 lanes"], _SQUARES.format(lanes=LANES))


@cache
def row_sums():
    """Lane by lane, the sums of groups of blocks."""
    body = _ROW_SUMS.format(lanes=LANES, rows=ROWS)
    return _kernel_of("fastadam_row_sums", ["int64 count", "int64 stride"], ["raw float64 rows"], body)


@cache
def clip_record():
    """The end of the reduction: norm, clipped scale and whether the step is taken."""
    inputs = ["raw float64 lanes", "float64 scale", "float64 max_grad_norm", "float64 largest", "float64 propagate"]
    body = _CLIP.format(lanes=LANES, statements=_statements(fold.CLIP))
    return _kernel_of("fastadam_clip", inputs, ["raw float64 record"], body)


def _kernel_of(name, inputs, outputs, body):
    return cupy.ElementwiseKernel(
        ", ".join(inputs), ", ".join(outputs), body, name, options=OPTIONS, no_return=True, preamble=_PREAMBLE
    )


def _element(update, gradient, scalars, stores, index=None):
    return _ELEMENT.format(
        gradient=gradient,
        loads=_loads(update, index),
        scalars=scalars,
        locals=_declared("T", [name for name in update.text.locals if name != "g"]),
        statements=_statements(update.text),
        stores=stores,
    )


def _loads(update, index):
    kinds = {"low": "unsigned short"}
    return " ".join(f"{kinds.get(name, 'T')} {name} = {_in_flat(name, index)};" for name in update.flats)


def _flat_parameters(update):
    return [f"{'uint16' if name == 'low' else 'T'} {name}_flat" for name in update.flats]


def _stores(update, index=None):
    return " ".join(f"{_in_flat(name, index)} = {name};" for name in update.flats if name in update.written)


def _in_flat(name, index):
    return f"{name}_flat[{index}]" if index else f"{name}_flat"


def _declared(kind, names):
    return f"{kind} {', '.join(names)};" if names else ""


def _statements(text):
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


def device_problem():
    """Why no CUDA device works, or None if one does."""
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no CUDA device ({error})"
    return None if count else "CuPy finds no CUDA device"
