"""The step of an offloaded optimizer: bfloat16 gradients, scaled; float32 masters; a bfloat16 copy for the model.

One pass of fastadam beside a pass each for the gradients, for the step and for the copy, as hosts make them.
"""

from functools import partial
from typing import Any

import numpy as np

from fastadam.bench.contender import BETAS, EPS, LR, SCALE, WEIGHT_DECAY, Built, Contender, Formula
from fastadam.bench.contenders import deepspeed_adam, torch_adam


def of_one_pass(params, grads, kind):
    """`fastadam.torch.adamw_step` on lists of tensors."""
    import torch

    from fastadam.torch import adamw_step

    masters, gradients, copies, feed, values = _tensors(params, grads)
    first, second = ([torch.zeros_like(master) for master in masters] for _ in range(2))
    steps = [torch.tensor(0.0) for _ in masters]
    hyper: Any = {"lr": LR, "beta1": BETAS[0], "beta2": BETAS[1], "weight_decay": WEIGHT_DECAY, "eps": EPS}

    def step():
        adamw_step(masters, gradients, first, second, steps, copies, gradient_scale=SCALE, **hyper)

    return Built(step, values, feed)


def of_torch(params, grads, kind):
    """torch's fused step, which divides gradients by a scale on the way."""
    import torch

    masters, gradients, copies, feed, values = _tensors(params, grads)
    for master in masters:
        master.grad = torch.zeros_like(master)
    optimizer = torch.optim.AdamW(masters, LR, BETAS, EPS, WEIGHT_DECAY, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1 / SCALE), torch.tensor(0.0)

    def step():
        torch._foreach_copy_([master.grad for master in masters], gradients)
        optimizer.step()
        torch._foreach_copy_(copies, masters)

    return Built(step, values, feed)


def of_deepspeed(params, grads, kind):
    """DeepSpeed's CPUAdam between the passes that its engine makes."""
    import torch

    masters, gradients, copies, feed, values = _tensors(params, grads)
    for master in masters:
        master.grad = torch.zeros_like(master)
    optimizer = deepspeed_adam.made(masters, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, adamw_mode=True)

    def step():
        taken = [master.grad for master in masters]
        torch._foreach_copy_(taken, gradients)
        torch._foreach_mul_(taken, SCALE)
        optimizer.step()
        torch._foreach_copy_(copies, masters)

    return Built(step, values, feed)


def _tensors(params, grads):
    """Masters, gradients and copies as lists, `feed`, and `params` of what is built."""
    import torch

    masters = [torch.from_numpy(p) for p in params.values()]
    gradients = [torch.from_numpy(grads[name]).bfloat16() for name in params]
    copies = [torch.empty_like(gradient) for gradient in gradients]

    def feed(others):
        for gradient, name in zip(gradients, params, strict=True):
            gradient.copy_(torch.from_numpy(np.ascontiguousarray(others[name])))

    def values():
        assert all(torch.equal(copy, p.bfloat16()) for copy, p in zip(copies, masters, strict=True))
        return torch_adam.values(dict(zip(params, masters, strict=True)))

    return masters, gradients, copies, feed, values


# The gradients are rounded to bfloat16.
_contender = partial(
    Contender,
    kinds=("extras",),
    layout="bfloat16 g, 16-bit copy",
    tolerance=(1e-5, 3e-5),
    formula=Formula("AdamW", SCALE),
)
CONTENDERS = (
    _contender("fastadam, offloaded", of_one_pass, ("torch",), threads="Numba, beside torch"),
    _contender("torch, fused, offloaded", of_torch, ("torch",), threads="torch"),
    _contender("DeepSpeed CPUAdam, offloaded", of_deepspeed, ("deepspeed", "torch", "ninja"), threads="DeepSpeed"),
)
