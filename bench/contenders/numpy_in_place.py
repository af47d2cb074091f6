"""NumPy without temporaries: every operation writes into m, v, p or one scratch array."""

import numpy as np

from fastadam.bench.contender import BETAS, EPS, LR, Built, Contender


def build(params, grads, kind):
    moments = {name: (np.zeros_like(p), np.zeros_like(p), np.empty_like(p)) for name, p in params.items()}
    count = 0

    def step():
        nonlocal count
        count += 1
        bias1, root2 = 1 - BETAS[0] ** count, (1 - BETAS[1] ** count) ** 0.5
        for name, p in params.items():
            g, (m, v, scratch) = grads[name], moments[name]
            np.subtract(g, m, out=scratch)
            scratch *= 1 - BETAS[0]
            m += scratch
            np.multiply(g, g, out=scratch)
            scratch -= v
            scratch *= 1 - BETAS[1]
            v += scratch
            np.sqrt(v, out=scratch)
            scratch += EPS * root2
            np.divide(m, scratch, out=scratch)
            scratch *= LR * root2 / bias1
            p -= scratch

    return Built(step, lambda: params, grads.update)


CONTENDERS = (Contender("NumPy, in place", build),)
