"""Who steps: each contender is built for a workload and then has a `step` to time and the `params` to compare."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fastadam
from fastadam.kernels import fold, reference
from fastadam.kernels.update import compose
from fastadam.recipes import update_for
from fastadam.textbook import TextbookAdam


class Contender(NamedTuple):
    """`step()` takes one Adam step with the same gradients each time; `params()` gives the parameters as they are.

    `prepare()` is called, outside of the time taken, before every few steps: it restores gradients that a step zeroes.
    """

    step: Callable[[], Any]
    params: Callable[[], dict[str, np.ndarray]]
    prepare: Callable[[], Any] | None = None


def textbook(params, grads) -> Contender:
    """The NumPy Adam of a textbook: moments in dictionaries, a fresh array for every operation."""
    optimizer = TextbookAdam()

    def step():
        params.update(optimizer.step(params, grads))

    return Contender(step, lambda: params)


def fastadam_mapping(params, grads) -> Contender:
    """`opt.step(grads)` with a mapping of separately allocated gradients."""
    optimizer = fastadam.Adam(params)
    return Contender(lambda: optimizer.step(grads), lambda: params)


def fastadam_written(params, grads) -> Contender:
    """`opt.step()` with gradients that have been written into `opt.grads`."""
    return Contender(_written(params, grads).step, lambda: params)


def _written(params, grads):
    return fill(fastadam.Adam(params), grads)


def fill(optimizer, grads):
    """`optimizer`, with gradients written where it keeps them."""
    for name, grad in grads.items():
        optimizer.grads[name] = grad
    return optimizer


def numpy_in_place(params, grads) -> Contender:
    """The update text on NumPy arrays, in place on flat buffers."""
    optimizer = _written(params, grads)
    flat = optimizer.buffers
    update, hyper = update_for(optimizer.param_groups[0])
    carried = np.array(fold.FIRST_CARRIED)
    flats = flat.p, flat.m, flat.v
    return Contender(lambda: reference.launch_flat(update, flats, flat.g, hyper, carried, 1.0), lambda: params)


def torch_fused(params, grads) -> Contender:
    """`torch.optim.Adam(fused=True)` on CPU tensors."""
    return _torch(params, grads, fused=True)


def torch_default(params, grads) -> Contender:
    """`torch.optim.Adam` as it comes: on the CPU, a loop over tensors and operations."""
    return _torch(params, grads)


def _torch(params, grads, **settings):
    import torch

    tensors = {name: torch.nn.Parameter(torch.from_numpy(param)) for name, param in params.items()}
    for name, tensor in tensors.items():
        tensor.grad = torch.from_numpy(grads[name])
    optimizer = torch.optim.Adam(tensors.values(), **settings)
    return Contender(optimizer.step, lambda: {name: tensor.detach().numpy() for name, tensor in tensors.items()})


def touch(p, g, m, v):
    p += g
    m += g
    v += g


TOUCH = compose("touch", (touch,), ())


def limit(params, grads) -> Contender:
    """No Adam: the kernel's own loop with three additions for arithmetic, so the same loads and stores."""
    return Contender(launch_of(_written(params, grads), TOUCH), lambda: params)


def launch_of(optimizer, update) -> Callable[[], Any]:
    """The launch of `update` in place of the optimizer's own, on all that has been written into its buffers."""
    (plan,) = optimizer._plans
    (launch,) = [plan.launch(update, rows, plan.pieces(merged=True)) for rows in plan.updates().values()]
    addresses = optimizer._gradients[0].written().addresses
    call, *arguments = launch
    flats, blocks, rows = arguments
    return lambda: call(flats, addresses, blocks, rows, plan.hyper, plan.carried, plan.table, 1.0)


CONTENDERS = {
    "NumPy, textbook": textbook,
    "NumPy, in place": numpy_in_place,
    "torch default": torch_default,
    "torch fused": torch_fused,
    "fastadam, step(grads)": fastadam_mapping,
    "fastadam, step()": fastadam_written,
    "limit": limit,
}
# Contender -> the package that it needs, which is not installed.
MISSING = {
    name: "torch"
    for name in ("torch default", "torch fused", "torch, loops", "torch, fastest of each", "torch fused, float32")
    if not importlib.util.find_spec("torch")
}


def expected(name: str, params: dict[str, np.ndarray], grads: dict[str, np.ndarray], steps: int) -> dict:
    """The parameters after `steps` of a contender, in float64."""
    params = {key: value.astype(np.float64) for key, value in params.items()}
    optimizer = TextbookAdam()
    for _ in range(steps):
        params = optimizer.step(params, grads) if name != "limit" else {k: v + grads[k] for k, v in params.items()}
    return params
