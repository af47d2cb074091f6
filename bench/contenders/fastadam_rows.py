"""fastadam with gradients of some rows of a table. The contender "fastadam" steps all rows of it."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle

import numpy as np

import fastadam
from fastadam.bench.contender import Built, Contender
from fastadam.bench.contenders.fastadam_adam import packed
from fastadam.bench.layouts import ROWS


def build(params, grads, kind, mode):
    """Step the rows that have a gradient; after `settle`, other rows each time.

    It is then in the state of a long run, in which each row was stepped at some time.
    """
    ((name, (length, width)),) = ((name, table.shape) for name, table in params.items())
    optimizer, rng = packed(params, sparse=mode), np.random.default_rng(0)
    count = int(length * ROWS)
    values = rng.standard_normal((count, width), np.float32)
    turns: Iterator[dict] = iter(())

    def feed(gradients):
        nonlocal turns
        rows = np.flatnonzero(gradients[name].any(axis=1))
        turns = cycle([{name: fastadam.SparseRows(rows, gradients[name][rows])}])

    def settle():
        nonlocal turns
        for start in range(0, length, count):
            rows = np.arange(start, min(start + count, length))
            optimizer.step({name: fastadam.SparseRows(rows, values[: len(rows)])})
        chosen = [rng.choice(length, count, replace=False) for _ in range(60)]
        turns = cycle([{name: fastadam.SparseRows(rows, values)} for rows in chosen])

    feed(grads)
    return Built(lambda: optimizer.step(next(turns)), lambda: params, feed, settle=settle)


CONTENDERS = tuple(
    Contender(f"fastadam, {mode} rows", partial(build, mode=mode), kinds=("rows",), layout="rows")
    for mode in ("lazy", "exact")
)
