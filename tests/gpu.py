"""Whether there is a GPU to test on, and what an optimizer on one holds."""

import numpy as np
import pytest

from fastadam.kernels import GRAD_SCALE

SHAPES = {"w": (300, 70), "b": (70,), "scalar": (), "empty": (0, 3), "odd": (3, 11, 7)}


def device_problem() -> str | None:
    """Why no CUDA device can be used, or None."""
    try:
        from fastadam.kernels import cuda
    except ImportError as error:
        return f"CuPy is not installed ({error})"
    return cuda.device_problem()


def tables_on_device(host, like):
    """CUDA tables with what is in `host`, of NumPy arrays, on the device of the array `like`."""
    from fastadam.kernels import cuda

    tables = cuda.tables(len(host.addresses), len(host.hyper), like)
    tables.write("addresses", ..., host.addresses)
    for clock in range(len(host.hyper)):
        tables.write("hyper", (clock, slice(None)), host.hyper[clock])
        tables.write("carried", (clock, slice(None)), host.carried[clock])
    tables.host.table[...] = host.table
    tables.write("record", GRAD_SCALE, host.record[GRAD_SCALE])
    return tables


def draw(seed, library=np) -> dict:
    """An array of each of SHAPES."""
    rng = np.random.default_rng(seed)
    return {name: library.asarray(rng.standard_normal(shape), "f4") for name, shape in SHAPES.items()}


def torch_on_device():
    """Torch, if it works with the GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch is built without CUDA")
    return torch


def on_host(array) -> np.ndarray:
    """A NumPy or CuPy array as a NumPy array."""
    return array if isinstance(array, np.ndarray) else array.get()


def training(optimizer) -> dict:
    """All that trains, on the host: parameters, and every array and count of the state."""
    held = {(name, "p"): on_host(param) for name, param in optimizer.params.items()}
    for name, entry in optimizer.state_dict()["state"].items():
        held |= {(name, key): on_host(value) if hasattr(value, "shape") else value for key, value in entry.items()}
    for extra in ("ema", "copies"):
        try:
            views = getattr(optimizer, extra)
        except AttributeError:
            continue
        held |= {(name, extra): on_host(view) for name, view in views.items()}
    return held


def bits(held: dict) -> dict:
    """The same with the bytes of the arrays."""
    return {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in held.items()}
