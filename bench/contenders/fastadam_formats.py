"""fastadam with parameters, gradients and moments stored in fewer bytes than float32."""

from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from fastadam.bench.contender import MAX_NORM, Arrays, Built, Contender, in_rotation, with_averages
from fastadam.bench.contenders.fastadam_adam import ALL, fill, full_step, packed


def build(params, grads, kind, dtype="float32", **options):
    """`step(grads)` with gradients in rotation, in the dtype of the parameters; the full step reads `opt.grads`."""
    stored = np.dtype(np.float32)
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16

        stored = np.dtype(bfloat16)
    params = {name: value.astype(stored) for name, value in params.items()}
    current: Arrays = {}
    turns = cycle(in_rotation({name: value.astype(stored) for name, value in grads.items()}))
    if kind == "full":
        optimizer, step = full_step(params, **options)
    else:
        optimizer = packed(params, max_grad_norm=MAX_NORM if kind == "clip" else None, **options)

        def step():
            optimizer.step(current)

    def feed(gradients):
        nonlocal current
        current = {name: value.astype(stored, copy=False) for name, value in gradients.items()}
        if kind == "full":
            fill(optimizer, current)

    def values():
        averages = dict(optimizer.ema) if kind == "full" else {}
        return with_averages({name: np.asarray(p, np.float32) for name, p in optimizer.masters.items()}, averages)

    feed(next(turns))
    return Built(step, values, feed, lambda: feed(next(turns)))


# Layout -> how fastadam is asked for it.
OPTIONS: dict[str, dict[str, Any]] = {
    "bfloat16 m, v": {"moment_dtype": "bfloat16"},
    "float16 m": {"moment_dtype": ("float16", "float32")},
    "8-bit m, v": {"moment_dtype": "float8"},
    "bfloat16 p, g, m, v": {"dtype": "bfloat16", "moment_dtype": "bfloat16"},
    "bfloat16 p, g, 8-bit m, v": {"dtype": "bfloat16", "moment_dtype": "float8"},
    "masters, bfloat16 g, m, v": {"dtype": "bfloat16", "moment_dtype": "bfloat16", "master_weights": True},
}


def _contender(layout, tolerance, kinds=ALL, strays=0.0):
    options = OPTIONS[layout]
    needs = ("ml_dtypes",) if options.get("dtype") == "bfloat16" else ()
    made = partial(build, **options)
    return Contender(f"fastadam, {layout}", made, needs, kinds, layout, tolerance, strays, rotates=True)


# The last bit of a bfloat16 is worth up to 2**-7 of it, and each of three steps may be rounded up or down by one.
CONTENDERS = (
    _contender("bfloat16 m, v", (1e-5, 2e-5)),
    # Not v, and not with clipping: float16 has nothing below 2**-24.
    _contender("float16 m", (1e-5, 3e-5), ("plain",), 1e-3),
    _contender("8-bit m, v", (1e-5, 5e-4), strays=1e-3),
    _contender("bfloat16 p, g, m, v", (2**-5, 1e-4)),
    _contender("bfloat16 p, g, 8-bit m, v", (2**-5, 1e-3), strays=1e-3),
    # Parameters are rounded once, at the start.
    _contender("masters, bfloat16 g, m, v", (2**-8, 1e-4)),
)
