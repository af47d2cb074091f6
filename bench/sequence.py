"""The full step of a training loop: unscale, finite check, clip by global norm, AdamW, EMA, zero gradients."""

from functools import partial
from typing import Any

import numpy as np
from contenders import Contender, fill, launch_of
from numba import prange

import fastadam
from fastadam.kernels import norm
from fastadam.kernels.cpu_jit import jit
from fastadam.kernels.cpu_loop import view
from fastadam.kernels.update import compose, zero_gradient

# fp32: the norm reads g; the pass reads p, g, m, v and the average, and writes them all.
BYTES_PER_ELEMENT = 44
SCALE, MAX_NORM, LR, WEIGHT_DECAY, EMA_DECAY = 0.5, 1.0, 1e-3, 1e-2, 0.999
BETAS, EPS = (0.9, 0.999), 1e-8


def fastadam_full(params, grads) -> Contender:
    """One `step()`, and the one reduction before it."""
    optimizer = fastadam.AdamW(
        params, LR, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_NORM, nonfinite="skip", ema_decay=EMA_DECAY,
        zero_grad=True,
    )  # fmt: skip
    restore = partial(fill, optimizer, grads)
    restore()
    return Contender(lambda: optimizer.step(grad_scale=SCALE), lambda: _with_averages(params, optimizer.ema), restore)


def _torch_state(params, grads):
    import torch

    tensors = [torch.nn.Parameter(torch.from_numpy(param)) for param in params.values()]
    averages = [tensor.detach().clone() for tensor in tensors]
    sources = [torch.from_numpy(grad) for grad in grads.values()]
    for tensor, source in zip(tensors, sources, strict=True):
        tensor.grad = source.clone()

    def restore():
        for tensor, source in zip(tensors, sources, strict=True):
            tensor.grad.copy_(source)

    def values():
        found = [
            {key: each.detach().numpy() for key, each in zip(params, every, strict=True)}
            for every in (tensors, averages)
        ]
        return _with_averages(*found)

    return torch, tensors, averages, restore, values


def _with_averages(params, averages):
    return {**params, **{f"average of {key}": average for key, average in averages.items()}}


def torch_best(params, grads) -> Contender:
    """The fastest that torch has for each part: its own AMP function, foreach clipping, fused AdamW, foreach EMA."""
    torch, tensors, averages, restore, values = _torch_state(params, grads)
    optimizer = torch.optim.AdamW(tensors, LR, weight_decay=WEIGHT_DECAY, fused=True)
    found, inverse = torch.zeros(1), torch.tensor(SCALE)

    def step():
        with torch.no_grad():
            gradients = [tensor.grad for tensor in tensors]
            found.zero_()
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, inverse)
            if found.item():
                return
            torch.nn.utils.clip_grad_norm_(tensors, MAX_NORM, foreach=True)
            optimizer.step()
            torch._foreach_lerp_(averages, tensors, 1 - EMA_DECAY)
            torch._foreach_zero_(gradients)

    return Contender(step, values, restore)


def torch_loops(params, grads) -> Contender:
    """What people write: loops over the parameters around `torch.optim.AdamW` as it comes."""
    torch, tensors, averages, restore, values = _torch_state(params, grads)
    optimizer = torch.optim.AdamW(tensors, LR, weight_decay=WEIGHT_DECAY)

    def step():
        with torch.no_grad():
            for tensor in tensors:
                tensor.grad.mul_(SCALE)
            if not all(torch.isfinite(tensor.grad).all() for tensor in tensors):
                return
            torch.nn.utils.clip_grad_norm_(tensors, MAX_NORM)
            optimizer.step()
            for average, tensor in zip(averages, tensors, strict=True):
                average.mul_(EMA_DECAY).add_(tensor, alpha=1 - EMA_DECAY)
            optimizer.zero_grad(set_to_none=False)

    return Contender(step, values, restore)


def touch_all(p, g, m, v, ema):
    p += g
    m += g
    v += g
    ema += g


def make_zero():
    zero = 0.0  # noqa: F841 (a stage)


TOUCH_ALL = compose("touch_all", (touch_all, zero_gradient), (make_zero,))


def sequence_limit(params, grads) -> Contender:
    """No Adam: one read of the gradients, and then the kernel's own loop with additions for arithmetic."""
    optimizer = fastadam.Adam(params, ema_decay=EMA_DECAY)
    restore = partial(fill, optimizer, grads)
    restore()
    launch, (plan,) = launch_of(optimizer, TOUCH_ALL), optimizer._plans
    addresses = optimizer._gradients[0].written().addresses
    blocks = norm.blocks_of([segment.stop - segment.start for segment in plan.segments])
    lanes, read = np.zeros((len(blocks), norm.LANES)), jit(_read, "read", parallel=plan.buffers.p.size > 32_768)

    def step():
        read(addresses, blocks, lanes)
        launch()

    return Contender(step, lambda: params, restore)


def _read(addresses, blocks, lanes):
    for index in prange(blocks.shape[0]):
        parameter, offset, size = blocks[index]
        gradient = view(addresses[parameter], offset, size, np.int32(0))
        total = 0
        for i in range(size):
            total += gradient[i]
        lanes[index, 0] = total


SEQUENCE = {
    "torch, loops": torch_loops,
    "torch, fastest of each": torch_best,
    "fastadam, one step()": fastadam_full,
    "limit of 44 bytes": sequence_limit,
}


def expected(name: str, params: Any, grads: Any, steps: int) -> dict[str, np.ndarray]:
    """The parameters after `steps` of a contender, in float64."""
    params = {key: value.astype(np.float64) for key, value in params.items()}
    if name.startswith("limit"):
        return {key: value + steps * grads[key] for key, value in params.items()}
    scaled = {key: SCALE * value.astype(np.float64) for key, value in grads.items()}
    total = np.sqrt(sum(float(np.sum(value**2)) for value in scaled.values()))
    factor = min(1.0, MAX_NORM / (total + 1e-6))
    averages = {key: value.copy() for key, value in params.items()}
    moments = {key: (np.zeros_like(value), np.zeros_like(value)) for key, value in params.items()}
    for step in range(1, steps + 1):
        for key, p in params.items():
            g, (m, v) = factor * scaled[key], moments[key]
            m += (1 - BETAS[0]) * (g - m)
            v += (1 - BETAS[1]) * (g * g - v)
            p *= 1 - LR * WEIGHT_DECAY
            p -= LR * m / (1 - BETAS[0] ** step) / (np.sqrt(v / (1 - BETAS[1] ** step)) + EPS)
            averages[key] += (1 - EMA_DECAY) * (p - averages[key])
    return _with_averages(params, averages)
