"""The in-place NumPy reference: the texts run on whole arrays. What every other kernel must equal bit for bit."""

import numpy as np

from fastadam.kernels import fold


def launcher(update, dtype, size):
    """`launch(flats, gradients, blocks, rows, hyper, carried, table, grad_scale)`, for any size and dtype."""

    def launch(flats, gradients, blocks, rows, hyper, carried, table, grad_scale):
        with np.errstate(all="ignore"):
            for row in rows:
                update.fold_row(hyper[row], carried[row], grad_scale, table[row])
            for start, stop, row, parameter, offset in blocks:
                cut = {name: flat[start:stop] for name, flat in zip(update.flats, flats, strict=True)}
                cut["g"] = gradients[parameter][offset : offset + stop - start]
                _run(update, cut, table[row])

    return launch


def launch_flat(update, flats, gradient, hyper, carried, grad_scale):
    """One step of flat arrays with one row of hyperparameters; `carried` is brought up to date."""
    size, dtype = flats[0].size, flats[0].dtype
    table, rows, blocks = np.zeros((1, fold.COLUMNS), dtype), [0], [(0, size, 0, 0, 0)]
    launch = launcher(update, dtype, size)
    launch(flats, [gradient], blocks, rows, hyper.reshape(1, -1), carried.reshape(1, -1), table, grad_scale)


def _run(update, cut, scalars):
    results = update.element(*(cut[name] for name in update.buffers), *scalars[: len(update.scalars)])
    for name, result in zip(update.written, results, strict=True):
        if result is not cut[name]:
            cut[name][...] = result
