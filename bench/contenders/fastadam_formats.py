"""fastadam with parameters, gradients and moments stored in fewer bytes than float32."""

from functools import partial
from itertools import cycle

import numpy as np

import fastadam
from fastadam.bench.contender import MAX_NORM, Built, Contender, in_rotation, with_averages
from fastadam.bench.contenders.fastadam_adam import fill, full_step


def build(params, grads, kind, dtype="float32", **options):
    """`step(grads)` with gradients in rotation, in the format of the parameters; the full step on written ones."""
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16

        params = {name: value.astype(bfloat16) for name, value in params.items()}
        grads = {name: value.astype(bfloat16) for name, value in grads.items()}
    turns = cycle(in_rotation(grads))
    current = next(turns)
    if kind == "full":
        optimizer, step = full_step(params, **options)
    else:
        optimizer = fastadam.Adam(params, max_grad_norm=MAX_NORM if kind == "clip" else None, **options)

        def step():
            optimizer.step(current)

    def prepare():
        nonlocal current
        current = next(turns)
        if kind == "full":
            fill(optimizer, current)

    def values():
        averages = dict(optimizer.ema) if kind == "full" else {}
        return with_averages({name: np.asarray(p, np.float32) for name, p in params.items()}, averages)

    if kind == "full":
        fill(optimizer, current)
    return Built(step, values, prepare)


def _contender(layout, tolerance, **options):
    needs = ("ml_dtypes",) if options.get("dtype") == "bfloat16" else ()
    kinds = ("plain", "clip", "full")
    made = partial(build, **options)
    return Contender(f"fastadam, {layout}", made, needs, kinds, layout, tolerance, rotates=True)


# The last bit of a bfloat16 is worth up to 2**-7 of it, and each of three steps may be rounded up or down by one.
CONTENDERS = (
    _contender("bfloat16 m, v", (1e-5, 2e-5), moment_dtype="bfloat16"),
    _contender("8-bit m, v", (1e-5, 5e-4), moment_dtype="float8"),
    _contender("bfloat16 p, g, m, v", (2**-5, 1e-4), dtype="bfloat16", moment_dtype="bfloat16"),
    _contender("bfloat16 p, g, 8-bit m, v", (2**-5, 1e-3), dtype="bfloat16", moment_dtype="float8"),
    _contender(
        "masters, bfloat16 g, m, v", (2**-5, 1e-4), dtype="bfloat16", moment_dtype="bfloat16", master_weights=True
    ),
)
