"""A model with a table, and gradients of some of its rows."""

import numpy as np

ROWS, WIDTH = 60, 7


def draw_rows(rng, dtype, count=4, rows=ROWS, width=WIDTH, scale=1.0):
    """Row indices, some of them twice, and their gradients."""
    return rng.integers(0, rows, count), (scale * rng.standard_normal((count, width))).astype(dtype)


def dense(indices, values, rows=ROWS):
    gradient = np.zeros((rows, *values.shape[1:]), values.dtype)
    np.add.at(gradient, indices, values)
    return gradient


def model(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return {"table": rng.standard_normal((ROWS, WIDTH)).astype(dtype), "bias": np.ones(5, dtype)}
