"""What the tests of the optimizer share: random named arrays, and the ways to give a step its gradients."""

import numpy as np
import pytest

from fastadam.kernels import cpu
from fastadam.memory.arrays import as_array, on_host

LARGE = cpu.DIRECT_FROM  # from here on a gradient is read where it lies, and a buffer is stepped by threads
HYPER = {"lr": 3e-3, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.05}
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
sizes = pytest.mark.parametrize("size", [5, LARGE + 5], ids=["small", "large"])
both = pytest.mark.parametrize("flat", [False, True], ids=["where they lie", "flat"])


def make(shapes, seed=0, dtype=np.float32):
    """Name -> random array."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def copies(arrays):
    return {name: np.array(array) for name, array in arrays.items()}


def pmv(opt):
    """Copies of all parameters, first and second moments, each joined flat in the order of the parameters.

    How the optimizer holds its parameters makes no difference. Moments are as they are stored; Lion has no second ones.
    """
    state = [opt.state_dict()["state"][name] for name in opt.params]
    moments = [key for key in ("exp_avg", "exp_avg_sq", "exp_inf") if key in state[0]]
    return tuple(
        np.concatenate([on_host(as_array(array, "state")).ravel() for array in arrays])
        for arrays in (opt.params.values(), *([entry[key] for entry in state] for key in moments))
    )


def by_mapping(opt, grads, **options):
    opt.step(grads, **options)


def by_flat_array(opt, grads, **options):
    flat = np.zeros(opt.buffers.size, opt.buffers.dtype("g"))
    for name, view in opt.buffers.views(flat).items():
        view[...] = grads[name]
    opt.step(flat, **options)


def by_assignment(opt, grads, **options):
    for name, gradient in grads.items():
        opt.grads[name] = gradient
    opt.step(**options)


def by_accumulation(opt, grads, **options):
    opt.zero_grad()
    for name, gradient in grads.items():
        opt.grads[name] += gradient
    opt.step(**options)


WAYS = [by_mapping, by_flat_array, by_assignment, by_accumulation]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)

SHAPES = {"w": (3, 5), "b": (), "none": (0, 4), "k": (2, 1, 3), "last": (17,)}
