"""The CUDA kernel of the fold: a thread for each clock."""

from functools import cache

import cupy
import numpy as np

from fastadam.kernels import TAKEN
from fastadam.kernels.cuda.source import LAYOUT, declarations, kernel_of, number_type, statements, step_name
from fastadam.kernels.texts.update import Update

# Launched over no clocks at all, a kernel is only compiled.
_FOLD = """
typedef {number} T;
if (i >= clocks.size()) return;
const ptrdiff_t clock = clocks[i];
{taken}
const double* clock_hyper = &hyper[{HYPER} * clock];
double* clock_carried = &carried[{CARRIED} * clock];
T* scalars = reinterpret_cast<T*>(&table[{SCALARS} * clock]);
double grad_scale = record[{GRAD_SCALE}];
{loads}
{locals}
{statements}
{stores}
"""


@cache
def fold_kernel(update: Update, dtype: np.dtype, guarded: bool) -> cupy.ElementwiseKernel:
    """The fold of each of `clocks`: the scalars of its row of the table, and what is carried on."""
    text = update.fold
    needed = {*text.arguments, *update.columns}
    loads = [f"double {name} = clock_hyper[{k}];" for k, name in enumerate(update.hyper) if name in needed]
    loads += [f"double {name} = clock_carried[{k}];" for k, name in enumerate(update.carried) if name in needed]
    stores = [f"clock_carried[{k}] = {name};" for k, name in enumerate(update.carried) if name in text.assigned]
    stores += [f"scalars[{k}] = {name};" for k, name in enumerate(update.columns)]
    body = _FOLD.format(
        **LAYOUT,
        number=number_type(dtype),
        taken=f"if (record[{TAKEN}] == 0.0) return;" if guarded else "",
        loads=" ".join(loads),
        locals=declarations("double", text.locals),
        statements=statements(text),
        stores=" ".join(stores),
    )
    inputs = ["raw int64 clocks", "raw float64 hyper", "raw float64 record"]
    return kernel_of(step_name(update, "fold", guarded), inputs, ["raw float64 carried", "raw float64 table"], body)
