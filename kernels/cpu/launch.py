"""The CPU backend's launches: leaves for the update texts, and the jobs of the driver that calls them."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numba.extending import register_jitable

from fastadam.kernels import CARRIED, CLOCK, GRAD_SCALE, HYPER, SCALARS, START, STOP, Launch, Pass, Tables
from fastadam.kernels.cpu.driver import COLUMNS, FOLD, ITEMSIZES, LEAF, LEAVES, launch_of
from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.loop import NAMES, loop_of
from fastadam.kernels.cpu.threads import PARALLEL_FROM
from fastadam.kernels.cpu.tuning import tuning
from fastadam.kernels.host_tables import HostTables
from fastadam.kernels.subnormals import flushed
from fastadam.kernels.texts import casts
from fastadam.kernels.texts.power import power
from fastadam.kernels.texts.text import block, function
from fastadam.kernels.texts.update import Update

# A gradient of this size or more is read where it lies; a smaller one is first copied into the flat buffer, which costs
# less than to find out its address.
DIRECT_FROM = PARALLEL_FROM


def tables(parameters: int, clocks: int, device_of: Any = None) -> HostTables:
    """Tables of zeros."""
    return HostTables.zeros(parameters, clocks)


def address(array: Any) -> int:
    """Where `array` begins; it must live on until the launch that reads it returns."""
    return array.__array_interface__["data"][0]


def is_captured(device_of: Any = None) -> bool:
    """Never: there are no graphs."""
    return False


def copy_out(p: np.ndarray, copy: np.ndarray, format: str) -> None:
    """Write flat `p`, rounded to "bfloat16" or "float16", into the bits `copy`."""
    with flushed(), np.errstate(all="ignore"):
        copy[...] = casts.to_bfloat16(p) if format == "bfloat16" else casts.to_float16(p)


def launcher(passes: Sequence[Pass], tables: Tables, *, guarded: bool) -> Launch:
    """The launch that runs `passes` once: the fold of each clock, then the elements of each block."""
    leaves, ahead = np.zeros((len(tables.hyper), LEAVES), np.int64), _ahead(passes)
    for each in passes:
        # Clocks that have been folded before are those of blocks alone.
        leaves[each.clocks] = leaves[each.blocks[:, CLOCK]] = leaves_of(each.update, np.dtype(each.dtype), ahead)
    clocks = np.concatenate([np.zeros(0, np.int64), *(each.clocks for each in passes)])
    blocks = passes[0].blocks if len(passes) == 1 else np.concatenate([_NO_BLOCKS, *(each.blocks for each in passes)])
    return _launch_of(blocks, leaves, clocks, tables)


def _launch_of(blocks, leaves, clocks, tables):
    arrays = leaves, clocks, tables.addresses, tables.hyper, tables.carried, tables.table, tables.record
    return launch_of(
        blocks,
        arrays,
        leaves=leaves.ctypes.data,
        leaf_bytes=leaves.strides[0],
        table=address(tables.table),
        table_bytes=tables.table.strides[0],
        addresses=address(tables.addresses),
        address_bytes=tables.addresses.strides[0],
        clocks=clocks.ctypes.data,
        folded=len(clocks),
        hyper=address(tables.hyper),
        carried=address(tables.carried),
        record=address(tables.record),
    )


register_jitable(power)

_NO_BLOCKS = np.zeros((0, 5), np.int64)


def folder(passes: Sequence[Pass], tables: Tables) -> Callable[[], None]:
    """A function that folds the clocks of `passes`, once each, and steps nothing."""
    leaves = np.zeros((len(tables.hyper), LEAVES), np.int64)
    for each in passes:
        leaves[each.clocks, FOLD] = leaf(fold_of(each.update, np.dtype(each.dtype))).address
    clocks = np.concatenate([np.zeros(0, np.int64), *(each.clocks for each in passes)])
    return _launch_of(_NO_BLOCKS, leaves, clocks, tables)


def _ahead(passes):
    """How many elements ahead memory is fetched in a launch of `passes`."""
    chosen = tuning()
    if not chosen.elements:
        return 0
    return chosen.elements if sum(map(_bytes, passes)) >= chosen.least else 0


def _bytes(step):
    """What a pass reads or writes, without exponents."""
    arrays = [flat for flat in ("g", *step.update.flats) if not flat.endswith("_exponent")]
    each = sum(step.update.storage.itemsize(flat, np.dtype(step.dtype)) for flat in arrays)
    return each * int((step.blocks[:, STOP] - step.blocks[:, START]).sum())


@cache
def leaves_of(update: Update, dtype: np.dtype, ahead: int = 0) -> np.ndarray:
    """The row of leaves of a clock that steps `update` with arithmetic in `dtype`; compiles what it points to."""
    row = np.zeros(LEAVES, np.int64)
    row[LEAF] = leaf(loop_of(update, dtype, ahead)).address
    row[FOLD] = leaf(fold_of(update, dtype)).address
    row[COLUMNS] = 1 + len(update.flats)
    for column, flat in enumerate(("g", *update.flats), ITEMSIZES):
        row[column] = 0 if flat.endswith("_exponent") else update.storage.itemsize(flat, dtype)
    return row


def fold_of(update: Update, dtype: np.dtype) -> Callable:
    """`fold(hyper_row, carried_row, table_row, record)`, of four addresses: the fold of one clock."""
    source = block(
        "def fold(hyper_row, carried_row, table_row, record):",
        f"hyper = view(hyper_row, 0, {HYPER}, float64(0))",
        f"carried = view(carried_row, 0, {CARRIED}, float64(0))",
        f"table = view(table_row, 0, {SCALARS}, {dtype.name}(0))",
        f"grad_scale = view(record, {GRAD_SCALE}, 1, float64(0))[0]",
        "fold_row(hyper, carried, grad_scale, table)",
        "return 0",
    )
    # The name of the fold tells its text.
    return function(source, callees=update.fold_row.__name__, fold_row=register_jitable(update.fold_row), **NAMES)
