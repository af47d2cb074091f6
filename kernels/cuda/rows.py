"""What rows have missed, as of :mod:`catch_up <fastadam.kernels.texts.catch_up>`, made up for on CUDA."""

from functools import cache

import numpy as np

from fastadam.kernels.cuda.source import FIND, declared, kernel_of, numbered, statements, upload
from fastadam.kernels.cuda.step import flat_parameters, loads, stores
from fastadam.kernels.texts import catch_up as catching_up

_CATCH_UP = """
ptrdiff_t k = pieces[piece] + inside;
{loads}
for (ptrdiff_t row = starts[pieces[piece + 2]]; row < starts[pieces[piece + 2] + 1]; ++row) {{
  {scalars}
  {locals}
  {statements}
}}
{stores}
"""


def catch_up(flats, blocks, table, starts):
    """Make up for missed steps: blocks (start, stop, slot), each by rows `starts[slot]` to `starts[slot + 1]`."""
    blocks = np.asarray(blocks, np.int64)
    pieces, count = numbered(blocks, blocks[:, 1] - blocks[:, 0])
    with flats[0].device:
        held = [upload(array, flats[0]) for array in (pieces, table, starts)]
        catch_up_rows()(held[0], len(pieces), *held[1:], *flats, size=count)


@cache
def catch_up_rows():
    """Every row of the table that belongs to an element, one after the other."""
    update = catching_up.CATCH_UP
    scalars = [f"T {name} = table[{catching_up.COLUMNS} * row + {k}];" for k, name in enumerate(update.scalars)]
    body = _CATCH_UP.format(
        loads=loads(update),
        scalars=" ".join(scalars),
        locals=declared("T", update.text.locals),
        statements=statements(update.text),
        stores=stores(update),
    )
    inputs = ["raw int64 pieces", "int64 count", "raw T table", "raw int64 starts"]
    return kernel_of("fastadam_catch_up", inputs, flat_parameters(update), FIND.format(width=4) + body)
