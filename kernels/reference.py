"""The in-place NumPy reference: the texts run on whole arrays. What every other kernel must equal bit for bit.

Memory is read and written where the tables say that it begins. As in every kernel, subnormals are zero.
"""

import ctypes
from itertools import pairwise
from typing import Any

import numpy as np

from fastadam.kernels import GRAD_SCALE, GRADIENT, NORM, SCALARS, SKIPPED, TAKEN, Each, norm, stored
from fastadam.kernels.host_tables import HostTables
from fastadam.kernels.steps import Steps
from fastadam.kernels.subnormals import flushed
from fastadam.kernels.texts import casts
from fastadam.kernels.texts.catch_up import CATCH_UP
from fastadam.kernels.texts.clip import clip as clip_text
from fastadam.kernels.texts.clip import clip_of_one
from fastadam.kernels.texts.formats import EXPONENT_GROUP, Formats
from fastadam.kernels.texts.member import CLIP

# As on the CPU.
DIRECT_FROM = 32_768


def tables(parameters, clocks, device_of=None):
    """Tables of zeros."""
    return HostTables.zeros(parameters, clocks)


def address(array):
    """Where `array` begins."""
    return array.__array_interface__["data"][0]


def is_captured(device_of=None):
    """Never: there are no graphs."""
    return False


def launcher(passes, tables, *, guarded):
    """A function that runs `passes` once: the fold of each clock, then the elements of each block."""

    def launch():
        taken = not guarded or tables.record[TAKEN] != 0.0
        with flushed(), np.errstate(all="ignore"):
            for step in passes:
                if taken:
                    _fold(step, tables)
                for block in step.blocks:
                    (_step if taken else _zero)(step, block, tables)

    return Steps(launch)


def squares(dtype, format, blocks, tables, sums):
    """A function that writes the sum of squares of the gradients of each block into `sums`."""
    formats = Formats(g=format)

    def launch():
        with flushed(), np.errstate(all="ignore"):
            for index, block in enumerate(blocks):
                gradient = _gradient(formats, np.dtype(dtype), block, tables)
                sums[index] = norm.squares_of(stored.load(formats, "g", {"g": gradient}))[0]

    return launch


def clip(sums, grad_scale, max_grad_norm, largest, propagate, tables, squares=(), each=None):
    """Call `squares`, add up `sums`, and write what follows from the norm into `tables.record`."""
    for write in squares:
        write()
    if each is not None:
        clip_each(sums, each.ends, each.clocks, grad_scale, each.max_grad_norm, tables)
    record, given = tables.record, grad_scale
    with flushed(), np.errstate(all="ignore"):
        squared_norm = np.float64(norm.combine(sums))
        grad_scale, taken, length = clip_text(grad_scale, squared_norm, max_grad_norm, largest, propagate)
    # What is not finite in the gradient of one parameter is no factor on those of others.
    record[GRAD_SCALE] = grad_scale if each is None else given
    record[TAKEN], record[NORM] = taken, length
    record[SKIPPED] += 1.0 - taken


def each(ends, clocks, max_grad_norm, tables):
    """What `clip` is to know to clip the gradients of each parameter by their own norm."""
    return Each(ends, clocks, max_grad_norm)


def clip_each(sums, ends, clocks, grad_scale, max_grad_norm, tables):
    """Write the factor that clips the gradients of each parameter into the hyperparameters of its clock."""
    with flushed(), np.errstate(all="ignore"):
        for (start, end), clock in zip(pairwise([0, *ends]), clocks, strict=True):
            squared_norm = np.float64(norm.combine(sums[start:end]))
            tables.hyper[clock, CLIP] = clip_of_one(grad_scale, squared_norm, max_grad_norm)


def catch_up(addresses, dtype, blocks, table, starts):
    """What makes up for what rows have missed, each block by rows `starts[slot]` to `starts[slot + 1]` of `table`."""

    def launch():
        with flushed(), np.errstate(all="ignore"):
            for parameter, slot, start, stop in blocks:
                arrays = [_view(address, dtype, start, stop) for address in addresses[parameter]]
                for row in range(starts[slot], starts[slot + 1]):
                    for array, value in zip(arrays, CATCH_UP.element(*arrays, *table[row]), strict=True):
                        array[...] = value

    return Steps(launch)


def copy_out(p, copy, format):
    """Write flat `p`, rounded to "bfloat16" or "float16", into the bits `copy`."""
    with flushed(), np.errstate(all="ignore"):
        stored.store(Formats(copy=format), "copy", p, {"copy": copy})


def _fold(step, tables):
    for clock in step.clocks:
        row = _row(step, clock, tables)
        step.update.fold_row(tables.hyper[clock], tables.carried[clock], tables.record[GRAD_SCALE], row)


def _row(step, clock, tables):
    """The scalars of a clock, in the dtype of the arithmetic."""
    return tables.table[clock].view(step.dtype)[:SCALARS]


def _step(step, block, tables):
    """Step the elements of a block; its first element begins an exponent group where there are exponents."""
    update, (parameter, clock, start, stop, _) = step.update, block
    formats, row = update.storage, tables.addresses[parameter]
    flats = {"g": _gradient(formats, step.dtype, block, tables)} if "g" in update.buffers else {}
    for column, flat in enumerate(update.flats, GRADIENT + 1):
        flats[flat] = _view(row[column], _dtype(formats, flat, step.dtype), *_bounds(flat, start, stop))
    scalars = _row(step, clock, tables)
    values = [stored.load(formats, name, flats) for name in update.buffers]
    results = update.element(*values, *scalars[: len(update.scalars)])
    random = _random(update, scalars, row[GRADIENT + 1 + len(update.flats)], start, stop)
    for name, value in zip(update.written, results, strict=True):
        stored.store(formats, name, value, flats, random)


def _random(update, scalars, place, start, stop):
    """What rounds the elements stochastically."""
    columns = dict(zip(update.columns, scalars, strict=False))
    if not update.storage.dithers:
        return {}
    numbers = np.arange(start, stop)
    chunks, indices = (numbers // casts.CHUNK + place).astype(np.uint32), (numbers % casts.CHUNK).astype(np.uint32)
    word = casts.random_word(chunks, indices)
    turns = {"uint32": np.uint32, **{name: np.uint32(columns[name]) for name in ("turn", "toss")}}
    return {name: word * np.uint32(multiple) + eval(turn, turns) for name, (multiple, turn) in casts.TURNED.items()}


def _zero(step, block, tables):
    """Zero the gradient of a block, where the update does."""
    if "g" in step.update.written:
        _gradient(step.update.storage, step.dtype, block, tables)[...] = 0


def _gradient(formats, dtype, block, tables):
    parameter, _, start, stop, first = block
    return _view(tables.addresses[parameter, GRADIENT], _dtype(formats, "g", dtype), first, first + stop - start)


def _dtype(formats, flat, arithmetic):
    name = formats.dtype(flat)
    return arithmetic if name == "native" else np.dtype(name)


def _bounds(flat, start, stop):
    return (start // EXPONENT_GROUP, -(-stop // EXPONENT_GROUP)) if flat.endswith("_exponent") else (start, stop)


def _view(address, dtype, start, stop) -> Any:
    """Numbers `start` to `stop` of the memory that begins at `address`, as an array."""
    size, dtype = int(stop - start), np.dtype(dtype)
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(int(address) + int(start) * dtype.itemsize)
    return np.ndarray(size, dtype, memory)
