"""The compiled kernel of a plain step without an optimizer around it: what a call of fastadam cannot go below."""

from typing import Any
from unittest.mock import patch

import numpy as np

from fastadam.bench.contender import BETAS, EPS, LR, Built, Contender
from fastadam.kernels import GRAD_SCALE, Pass, cpu
from fastadam.kernels.blocks import cut
from fastadam.kernels.cpu import threads
from fastadam.kernels.texts.update import Recipe, update_of


def launch(p, g, m, v, *, parallel: bool = False):
    """A function that takes a step of Adam on flat float32 arrays, in place."""
    update, tables, arrays = update_of(Recipe()), cpu.tables(1, 1), {"p": p, "m": m, "v": v}
    places = [cpu.address(array) for array in (g, *(arrays[name] for name in update.flats))]
    tables.addresses[0, : len(places)] = places
    hyper = {"lr": LR, "beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS, "sign": 1.0}
    tables.hyper[0, : len(update.hyper)] = [hyper.get(name, 0.0) for name in update.hyper]
    tables.record[GRAD_SCALE] = 1.0
    blocks = cut(np.array([[0, 0, 0, p.size, 0]]))
    step = Pass(update, np.dtype(np.float32), np.zeros(1, np.int64), blocks)
    with patch.object(threads, "PARALLEL_FROM", 0 if parallel else p.size + 1):
        launched: Any = cpu.launcher([step], tables, guarded=False)
    # It knows addresses only. This keeps the arrays alive without another call around it.
    launched.arrays = p, g, m, v
    return launched


def build(params, grads, kind):
    ((name, p),), (g,) = params.items(), grads.values()
    flat, held = p.reshape(-1), g.reshape(-1)
    step = launch(flat, held, *(np.zeros(p.size, np.float32) for _ in "mv"))

    def feed(others):
        held[...] = others[name].reshape(-1)

    return Built(step, lambda: params, feed)


CONTENDERS = (Contender("kernel alone", build, kinds=("calls",)),)
