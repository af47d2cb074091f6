"""The compiled kernel of a plain step without an optimizer around it: what a call of fastadam cannot go below."""

from functools import partial

import numpy as np

from fastadam.bench.contender import BETAS, EPS, LR, Built, Contender
from fastadam.kernels import cpu
from fastadam.kernels.texts import fold
from fastadam.kernels.texts.update import ADAM


def launch(p, g, m, v, *, parallel: bool = False):
    """A function that takes a step of Adam on flat float32 arrays, in place."""
    kernel = cpu.compiled(ADAM, np.dtype(np.float32), parallel=parallel)
    addresses, blocks = np.array([cpu.address(g)]), cpu.blocks_of([(0, p.size, 0, 0, 0)])
    values = {"lr": LR, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "sign": 1.0}
    hyper = np.array([[values.get(name, 0.0) for name in fold.HYPER]])
    rows, carried = np.zeros(1, np.int64), np.array([fold.FIRST_CARRIED])
    table = np.zeros((1, fold.COLUMNS), np.float32)
    return partial(kernel, (p, m, v), addresses, blocks, rows, hyper, carried, table, 1.0)


def build(params, grads, kind):
    ((name, p),), (g,) = params.items(), grads.values()
    flat, held = p.reshape(-1), g.reshape(-1)
    step = launch(flat, held, *(np.zeros(p.size, np.float32) for _ in "mv"))

    def feed(others):
        held[...] = others[name].reshape(-1)

    return Built(step, lambda: params, feed)


CONTENDERS = (Contender("kernel alone", build, kinds=("calls",)),)
