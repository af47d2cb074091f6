"""Steps on parameters stored in fewer bytes, beside torch's fused step in float32, and the limits of these bytes.

Three sets of gradients take turns, so that moments go on changing and codes get new exponents as in a training.
"""

from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np
from contenders import Contender
from interleave import Timing
from numba import prange

import fastadam
from fastadam.arrays import as_bits
from fastadam.kernels import fold, reference
from fastadam.kernels.cpu_jit import jit
from fastadam.kernels.storage import EXPONENT_BLOCK

SIZE = 20_000_000
TORCH = "torch fused, float32"
# Elements on which a format's first steps must equal the reference bit for bit.
CHECKED = 800 * EXPONENT_BLOCK


class Format(NamedTuple):
    """How parameters are stored, and the bytes of an element that a step reads and writes."""

    bytes_per_element: int
    dtype: str
    options: dict[str, Any]
    limit: tuple[str, str]


_FLOAT32, _BFLOAT16, _CODES = ("float32", "float32"), ("uint16", "uint16"), ("uint16", "uint8")
FORMATS = {
    "float32": Format(28, "float32", {}, _FLOAT32),
    "bfloat16 m, v": Format(20, "float32", {"moment_dtype": "bfloat16"}, ("float32", "uint16")),
    "8-bit m, v": Format(16, "float32", {"moment_dtype": "float8"}, ("float32", "uint8")),
    "bfloat16 p, g, m, v, stochastic rounding": Format(14, "bfloat16", {"moment_dtype": "bfloat16"}, _BFLOAT16),
    "bfloat16 p, g, 8-bit m, v, stochastic rounding": Format(10, "bfloat16", {"moment_dtype": "float8"}, _CODES),
}
# What each format is to reach, in terms of torch's fused step in float32.
PROMISED = dict(zip(list(FORMATS)[1:], (1.3, 1.4, 1.6, 1.8), strict=True))
COLUMNS = ["stored as", "bytes moved", "bytes kept", "time of a step", "times as fast as torch", "of the limit"]


def stored(values, dtype):
    from ml_dtypes import bfloat16

    return values.astype(np.float32 if dtype == "float32" else bfloat16)


def _gradients(grads, dtype):
    (grad,) = grads.values()
    return cycle([stored(np.roll(grad, shift), dtype) for shift in (0, 1_001, 2_003)])


def of_format(name: str):
    """The maker of a contender that steps in a format."""
    chosen = FORMATS[name]

    def make(params, grads) -> Contender:
        ((key, values),) = params.items()
        start, gradients = stored(values, chosen.dtype), _gradients(grads, chosen.dtype)
        optimizer = fastadam.Adam(start.copy(), **chosen.options)
        _check(optimizer, start, [next(gradients) for _ in range(3)])
        return Contender(lambda: optimizer.step(next(gradients)), lambda: {key: optimizer.masters[0]})

    return make


def _check(optimizer, start, gradients):
    """Take three steps, the first elements of which must equal those of the reference bit for bit."""
    (plan,) = optimizer._plans
    ((update, _),) = plan.updates().items()
    checked = [plan.buffers.flat(name)[: _length(name)] for name in update.flats]
    flats = [np.zeros_like(flat) for flat in checked]
    flats[0][:] = start[:CHECKED].view(flats[0].dtype)
    carried, table = np.array([fold.FIRST_CARRIED]), np.zeros((1, fold.COLUMNS), np.float32)
    launch = reference.launcher(update, np.float32, CHECKED)
    for gradient in gradients:
        optimizer.step(gradient)
        launch(flats, [as_bits(gradient[:CHECKED])], [(0, CHECKED, 0, 0, 0)], [0], plan.hyper, carried, table, 1.0)
    for name, actual, expected_flat in zip(update.flats, checked, flats, strict=True):
        np.testing.assert_array_equal(actual, expected_flat, err_msg=name)


def _length(flat):
    return CHECKED // EXPONENT_BLOCK if flat.endswith("_exponent") else CHECKED


def torch_fused(params, grads) -> Contender:
    """`torch.optim.Adam(fused=True)` in float32."""
    import torch

    ((key, values),) = params.items()
    tensor = torch.nn.Parameter(torch.from_numpy(values))
    optimizer = torch.optim.Adam([tensor], fused=True)
    gradients = cycle([torch.from_numpy(gradient) for gradient in islice(_gradients(grads, "float32"), 3)])

    def step():
        tensor.grad = next(gradients)
        optimizer.step()

    return Contender(step, lambda: {key: tensor.detach().numpy()})


def of_limit(name: str):
    """The maker of the limit of a format: the same loads and stores with three additions for arithmetic."""
    of_parameters, of_moments = FORMATS[name].limit

    def make(params, grads) -> Contender:
        p, g = (np.ones(SIZE, of_parameters) for _ in range(2))
        m, v = (np.ones(SIZE, of_moments) for _ in range(2))
        kernel = jit(_touch, f"touch_{of_parameters}_{of_moments}", parallel=True)
        return Contender(lambda: kernel(p, g, m, v), lambda: params)

    return make


def _touch(p, g, m, v):
    block, one = 16_384, m[0] // m[0]
    for index in prange((p.size + block - 1) // block):
        here = slice(index * block, (index + 1) * block)
        some_p, some_g, some_m, some_v = p[here], g[here], m[here], v[here]
        for i in range(some_p.size):
            some_p[i] += some_g[i]
            some_m[i] += one
            some_v[i] += one


LIMITS = {name: f"limit of {chosen.bytes_per_element} bytes" for name, chosen in FORMATS.items()}
STORAGE = {
    TORCH: torch_fused,
    **{f"fastadam, {name}": of_format(name) for name in FORMATS},
    **{limit: of_limit(name) for name, limit in LIMITS.items()},
}


def rows(timings: dict[str, Timing]) -> list[list[str]]:
    """A row for torch and for each format, in the order of `COLUMNS`."""
    torch = timings[TORCH].median if TORCH in timings else float("nan")
    cells = [[TORCH, "28", "16", f"{1e3 * torch:.2f} ms", "1.00", "-"]]
    for name, chosen in FORMATS.items():
        seconds, limit = timings[f"fastadam, {name}"].median, timings[LIMITS[name]].median
        cells.append(
            [
                f"**{name}**",
                str(chosen.bytes_per_element),
                f"{kept_bytes(chosen):.2f}",
                f"{1e3 * seconds:.2f} ms",
                f"{torch / seconds:.2f}",
                f"{limit / seconds:.2f}",
            ]
        )
    return cells


def kept_bytes(chosen: Format) -> float:
    """Bytes a parameter that stay in memory, exponents included."""
    usage = fastadam.Adam(stored(np.ones(1_000_000), chosen.dtype), **chosen.options).memory_usage()
    return usage.nbytes / usage.parameters


def expected(name: str, params: Any, grads: Any, steps: int) -> None:
    """Formats have been checked bit for bit by their makers, beside which float64 says little."""
