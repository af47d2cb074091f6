"""What rows have missed, as described in :mod:`catch_up <fastadam.kernels.texts.catch_up>`, made up for on CUDA."""

from functools import cache

import cupy
import numpy as np

from fastadam.kernels.cuda.source import THREADS, declarations, kernel_of, number_type, pointer, statements
from fastadam.kernels.texts.catch_up import CATCH_UP, COLUMNS

# Columns of the blocks of rows.
PARAMETER, SLOT, START, STOP = range(4)

_CATCH_UP = """
typedef {number} T;
const ptrdiff_t entry = 4 * (ptrdiff_t)blockIdx.x;
const ptrdiff_t start = blocks[entry + {START}], size = blocks[entry + {STOP}] - start;
const ptrdiff_t row_start = starts[blocks[entry + {SLOT}]], row_stop = starts[blocks[entry + {SLOT}] + 1];
{pointers}
for (ptrdiff_t k = threadIdx.x; k < size; k += {THREADS}) {{
  {loads}
  for (ptrdiff_t row = row_start; row < row_stop; ++row) {{
    {scalars}
    {locals}
    {statements}
  }}
  {stores}
}}
"""


@cache
def catch_up_kernel(dtype: np.dtype) -> cupy.ElementwiseKernel:
    """For every element of each block the rows of its slot, one after the other."""
    text, buffers, number = CATCH_UP.text, CATCH_UP.buffers, np.dtype(dtype).name
    address = f"addresses[{len(buffers)} * blocks[entry + {PARAMETER}] + {{}}]"
    scalars = [f"T {name} = table[{COLUMNS} * row + {column}];" for column, name in enumerate(CATCH_UP.scalars)]
    body = _CATCH_UP.format(
        number=number_type(dtype),
        pointers=" ".join(pointer("T", f"{name}_at", address.format(k), "start") for k, name in enumerate(buffers)),
        loads=" ".join(f"T {name} = {name}_at[k];" for name in buffers),
        scalars=" ".join(scalars),
        locals=declarations("T", text.locals),
        statements=statements(text),
        stores=" ".join(f"{name}_at[k] = {name};" for name in CATCH_UP.written),
        SLOT=SLOT,
        START=START,
        STOP=STOP,
        THREADS=THREADS,
    )
    inputs = ["raw int64 addresses", "raw int64 blocks", f"raw {number} table", "raw int64 starts"]
    return kernel_of(f"fastadam_catch_up_{number_type(dtype)}", inputs, [], body)
