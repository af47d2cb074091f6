"""fastadam with new arrays of gradients at every step, and `adam_step`, which keeps no state between its steps."""

from itertools import cycle

import numpy as np

import fastadam
from fastadam.bench.contender import BETAS, EPS, LR, Built, Contender
from fastadam.bench.contenders.fastadam_adam import lying


def of_new_arrays(params, grads, kind):
    """`step(grads)` with other arrays than in the step before, because a backward pass makes new ones."""
    optimizer, held = lying(params), (grads, {name: grad.copy() for name, grad in grads.items()})
    turns = cycle(held)

    def feed(others):
        for each in held:
            for name, grad in others.items():
                each[name][...] = grad

    return Built(lambda: optimizer.step(next(turns)), lambda: params, feed)


def of_adam_step(params, grads, kind):
    """`adam_step` on flat arrays, one parameter after the other."""
    arrays = {
        name: (p.reshape(-1), grads[name].reshape(-1), np.zeros(p.size, p.dtype), np.zeros(p.size, p.dtype))
        for name, p in params.items()
    }
    count = 0

    def step():
        nonlocal count
        count += 1
        for p, g, m, v in arrays.values():
            fastadam.adam_step(p, g, m, v, step=count, lr=LR, betas=BETAS, eps=EPS)

    def feed(others):
        for name, grad in others.items():
            arrays[name][1][...] = grad.reshape(-1)

    return Built(step, lambda: params, feed)


CONTENDERS = (
    Contender("fastadam, where they lie, new arrays", of_new_arrays, kinds=("calls",)),
    Contender("fastadam, adam_step", of_adam_step, kinds=("calls",)),
)
