"""The in-place NumPy reference: the texts run on whole arrays. What every other kernel must equal bit for bit."""

from typing import Any

import numpy as np

from fastadam.kernels import casts, fold
from fastadam.kernels.storage import BLOCK_FORMATS, EXPONENT_BLOCK


def launcher(update, dtype, size):
    """`launch(flats, gradients, blocks, rows, hyper, carried, table, grad_scale)`, for any size and dtype."""

    def launch(flats, gradients, blocks, rows, hyper, carried, table, grad_scale):
        with np.errstate(all="ignore"):
            for row in rows:
                update.fold_row(hyper[row], carried[row], grad_scale, table[row])
            for start, stop, row, parameter, offset in blocks:
                gradient = gradients[parameter][offset : offset + stop - start]
                _run(update, flats, gradient, table[row], start, stop)

    return launch


def launch_flat(update, dtype, flats, gradient, hyper, carried, grad_scale):
    """One step of flat arrays with one row of hyperparameters; `carried` is brought up to date."""
    size = flats[0].size
    table, rows, blocks = np.zeros((1, fold.COLUMNS), dtype), [0], [(0, size, 0, 0, 0)]
    launch = launcher(update, dtype, size)
    launch(flats, [gradient], blocks, rows, hyper.reshape(1, -1), carried.reshape(1, -1), table, grad_scale)


def _run(update, flats, gradient, scalars, start, stop):
    """Step elements `start` to `stop`, whose blocks of shared exponents begin at `start`."""
    storage, columns = update.storage, dict(zip(update.columns, scalars, strict=False))
    cut = {"g": gradient}
    for name, flat in zip(update.flats, flats, strict=True):
        cut[name] = flat[_blocks(start, stop) if name.endswith("_exponent") else slice(start, stop)]
    names: dict[str, Any] = {**vars(casts), **cut}
    for name in storage.blocked:
        names[f"{name}_first"] = _repeated(casts.first_code(cut[f"{name}_exponent"]), gradient.size)
    values = [eval(storage.load(name, "{}"), names) for name in update.buffers]
    results = update.element(*values, *scalars[: len(update.scalars)])
    if storage.dithers:
        names["turn"] = np.uint32(columns["turn"])
        names["word"] = casts.random_word(np.arange(start, stop).astype(np.uint32), np.uint32(columns["seed"]))
    for name, value in zip(update.written, results, strict=True):
        names["value"] = value
        if name in storage.blocked:
            cut[f"{name}_exponent"][...] = _exponents(value, BLOCK_FORMATS[name].octaves)
            names[f"{name}_first"] = _repeated(casts.first_code(cut[f"{name}_exponent"]), gradient.size)
        for flat, expression in storage.stores(name, "value"):
            stored = eval(expression, names)
            if stored is not cut[flat]:
                cut[flat][...] = stored


def _blocks(start, stop):
    return slice(start // EXPONENT_BLOCK, -(-stop // EXPONENT_BLOCK))


def _repeated(of_blocks, size):
    return np.repeat(of_blocks, EXPONENT_BLOCK)[:size]


def _exponents(values, octaves):
    firsts = np.arange(0, values.size, EXPONENT_BLOCK)
    largest = np.maximum.reduceat(casts.size_of(values), firsts) if values.size else np.zeros(0, np.uint32)
    return casts.shared_exponent(largest, octaves)
