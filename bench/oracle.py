"""The steps of the contenders in float64, in plain NumPy, on whole gradients of any size."""

from collections.abc import Callable
from functools import partial

import numpy as np

from fastadam.bench.contender import (
    BETAS,
    CLIP_VALUE,
    EMA_DECAY,
    EPS,
    LR,
    MAX_NORM,
    WEIGHT_DECAY,
    Arrays,
    Formula,
    rate,
    with_averages,
)

BETA1, BETA2 = BETAS


def expected(formula: Formula, params: Arrays, gradients: list[Arrays], factors: list[float]) -> Arrays:
    """The parameters after one step for each of `gradients`, times its factor; and their averages, if any."""
    values, averages = {}, {}
    for index, (name, start) in enumerate(params.items()):
        p = start.astype(np.float64)
        averages[name] = p.copy()
        update = _MEMBERS[formula.member](p, rate(index) if formula.rates else LR)
        for step, (factor, grads) in enumerate(zip(factors, gradients, strict=True), start=1):
            g = factor * grads[name].astype(np.float64)
            update(step, np.clip(g, -CLIP_VALUE, CLIP_VALUE) if formula.clip_value else g)
            averages[name] += (1 - EMA_DECAY) * (p - averages[name])
        values[name] = p
    return with_averages(values, averages) if formula.average else values


def gradient_factor(formula: Formula, grads: Arrays) -> float:
    """The factor on all gradients of a step: its scale, and that of clipping by their norm."""
    if not formula.clip_norm:
        return formula.scale
    total = sum(float(np.einsum("i,i->", g.reshape(-1), g.reshape(-1), dtype=np.float64)) for g in grads.values())
    return formula.scale * min(1.0, MAX_NORM / (formula.scale * total**0.5 + 1e-6))


def _adam(p, lr, decay=0.0, amsgrad=False):
    m, v, largest = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)

    def update(step, g):
        p[...] *= 1 - lr * decay
        m[...] += (1 - BETA1) * (g - m)
        v[...] += (1 - BETA2) * (g * g - v)
        np.maximum(largest, v, out=largest)
        root = np.sqrt((largest if amsgrad else v) / (1 - BETA2**step))
        p[...] -= lr * m / (1 - BETA1**step) / (root + EPS)

    return update


def _nadam(p, lr):
    m, v, product = np.zeros_like(p), np.zeros_like(p), 1.0

    def update(step, g):
        nonlocal product
        now, after = (BETA1 * (1 - 0.5 * 0.96 ** (0.004 * t)) for t in (step, step + 1))
        product *= now
        m[...] += (1 - BETA1) * (g - m)
        v[...] += (1 - BETA2) * (g * g - v)
        ahead = (1 - now) / (1 - product) * g + after / (1 - product * after) * m
        p[...] -= lr * ahead / (np.sqrt(v / (1 - BETA2**step)) + EPS)

    return update


def _adamax(p, lr):
    m, largest = np.zeros_like(p), np.zeros_like(p)

    def update(step, g):
        m[...] += (1 - BETA1) * (g - m)
        largest[...] = np.maximum(BETA2 * largest, np.abs(g) + EPS)
        p[...] -= lr / (1 - BETA1**step) * m / largest

    return update


def _radam(p, lr):
    m, v = np.zeros_like(p), np.zeros_like(p)
    most = 2 / (1 - BETA2) - 1

    def update(step, g):
        m[...] += (1 - BETA1) * (g - m)
        v[...] += (1 - BETA2) * (g * g - v)
        length = most - 2 * step * BETA2**step / (1 - BETA2**step)
        direction = m / (1 - BETA1**step)
        if length > 5:
            factor = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
            direction = direction * np.sqrt(factor * (1 - BETA2**step)) / (np.sqrt(v) + EPS)
        p[...] -= lr * direction

    return update


_MEMBERS: dict[str, Callable[..., Callable]] = {
    "Adam": _adam,
    "AdamW": partial(_adam, decay=WEIGHT_DECAY),
    "AMSGrad": partial(_adam, amsgrad=True),
    "NAdam": _nadam,
    "Adamax": _adamax,
    "RAdam": _radam,
}
