"""One numexpr expression for each of m, v and p: blocks in the cache, all threads."""

import os

import numba
import numpy as np

from fastadam.bench.contender import BETAS, EPS, LR, Built, Contender


def build(params, grads, kind):
    import numexpr

    if not {"NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys():  # its own choice ends at 16
        numexpr.set_num_threads(min(numba.config.NUMBA_NUM_THREADS, numexpr.MAX_THREADS))
    moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
    blend1, blend2 = np.float32(1 - BETAS[0]), np.float32(1 - BETAS[1])
    count = 0

    def step():
        nonlocal count
        count += 1
        bias1, bias2 = 1 - BETAS[0] ** count, 1 - BETAS[1] ** count
        size, eps = np.float32(LR * np.sqrt(bias2) / bias1), np.float32(EPS * np.sqrt(bias2))
        for name, p in params.items():
            g, (m, v) = grads[name], moments[name]
            names = {"p": p, "g": g, "m": m, "v": v, "b1": blend1, "b2": blend2, "size": size, "eps": eps}
            numexpr.evaluate("m + b1 * (g - m)", names, out=m)
            numexpr.evaluate("v + b2 * (g * g - v)", names, out=v)
            numexpr.evaluate("p - size * m / (sqrt(v) + eps)", names, out=p)

    return Built(step, lambda: params, grads.update)


CONTENDERS = (Contender("numexpr", build, needs=("numexpr",), threads="numexpr"),)
