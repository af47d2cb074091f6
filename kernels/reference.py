"""The in-place NumPy reference: the texts run on whole arrays. What every other kernel must equal bit for bit."""

from typing import Any

import numpy as np

from fastadam.kernels import stored
from fastadam.kernels.texts import casts, fold
from fastadam.kernels.texts.formats import EXPONENT_BLOCK


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


def launch_flat(update, flats, gradient, hyper, carried, grad_scale):
    """One step of flat arrays with one row of hyperparameters; `carried` is brought up to date."""
    size, dtype = flats[0].size, update.storage.arithmetic(flats[0])
    table, rows, blocks = np.zeros((1, fold.COLUMNS), dtype), [0], [(0, size, 0, 0, 0)]
    launch = launcher(update, dtype, size)
    launch(flats, [gradient], blocks, rows, hyper.reshape(1, -1), carried.reshape(1, -1), table, grad_scale)


def _run(update, flats, gradient, scalars, start, stop):
    """Step elements `start` to `stop`, whose blocks of shared exponents begin at `start`."""
    storage, columns = update.storage, dict(zip(update.columns, scalars, strict=False))
    cut = {"g": gradient}
    for name, flat in zip(update.flats, flats, strict=True):
        cut[name] = flat[_blocks(start, stop) if name.endswith("_exponent") else slice(start, stop)]
    values = [stored.load(storage, name, cut) for name in update.buffers]
    results = update.element(*values, *scalars[: len(update.scalars)])
    random: dict[str, Any] = {}
    if storage.dithers:
        places = casts.first_place(np.arange(start, stop).astype(np.uint32), np.uint32(columns["seed"]))
        turns = {name: np.uint32(columns[name]) for name in ("turn", "toss")}
        random = {"word": casts.random_word(places), **turns}
    for name, value in zip(update.written, results, strict=True):
        stored.store(storage, name, value, cut, random)


def _blocks(start, stop):
    return slice(start // EXPONENT_BLOCK, -(-stop // EXPONENT_BLOCK))
