"""Builds contenders, and compares each with float64 before it may be timed."""

import numpy as np

from fastadam.bench.contender import FORMULAS, Arrays, Built
from fastadam.bench.oracle import expected, gradient_factor
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.workloads import Workload

# Elements of each tensor that are compared, at most: float64 of all would take ten times the memory.
COMPARED = 20_000
# The norms to which gradients are scaled in the steps that are compared. They differ in size and sign, and not all are
# clipped. With the same gradient at each step Adam would move by lr whatever else it computes.
NORMS = (None, 0.5, -1.5)
# The whole movement may be off by this part of it; roundings to 16 or 8 bits cancel one another on average.
DRIFT = 0.1


def build(name: str, workload: Workload, kind: str) -> Built:
    """Contender `name` on `workload`, after steps that were compared with float64; raise if they were wrong."""
    contender = CONTENDERS[name]
    params, grads = workload.random(seed=0), workload.gradients(seed=1)
    if contender.is_limit:
        return contender.build(params, grads, kind)
    start, first = _sample(params), {key: grad.copy() for key, grad in grads.items()}
    built = contender.build(params, grads, kind)
    formula = FORMULAS.get(kind, contender.formula)
    sampled, factors = [], []
    for step in range(contender.steps):
        gradients = _of_norm(first, NORMS[step % len(NORMS)])
        sampled.append(_sample(gradients))
        factors.append(gradient_factor(formula, gradients))
        built.feed(gradients)
        built.step()
    _compare(contender, kind, start, _sample(built.params()), expected(formula, start, sampled, factors))
    built.feed(first)
    if built.settle is not None:
        built.settle()
    return built


def _compare(contender, kind, start, found, values):
    """Raise unless `found` are the expected `values`: one by one, and in the sum of all movements."""
    who, (relative, absolute) = f"{contender.name}, {kind}", contender.tolerance
    if found.keys() != values.keys():
        raise AssertionError(f"{who}: {found.keys() ^ values.keys()}")
    for key, value in found.items():
        far = ~np.isclose(value, values[key], relative, absolute)
        if far.mean() > contender.strays:
            np.testing.assert_allclose(value, values[key], relative, absolute, err_msg=f"{who}: {key}")
    along = whole = 0.0
    for key, before in start.items():
        direction = values[key] - before
        along += float(direction @ (found[key] - before.astype(np.float64)))
        whole += float(direction @ direction)
    if sum(map(len, start.values())) >= COMPARED // 10 and abs(along / whole - 1) > DRIFT:
        raise AssertionError(f"{who}: moved {along / whole:.2f} times as far as it should have")


def _of_norm(grads: Arrays, norm: float | None) -> Arrays:
    """Gradients in reverse order, scaled to `norm`, with the other sign if it is negative; unchanged if it is None."""
    if norm is None:
        return grads
    total = sum(float(np.vdot(grad, grad)) for grad in grads.values()) ** 0.5
    factor = np.float32(norm / total)
    return {name: factor * grad.reshape(-1)[::-1].reshape(grad.shape) for name, grad in grads.items()}


def _sample(arrays: Arrays) -> Arrays:
    """Elements at both ends of each array and evenly between them, all of a small one, as copies."""
    return {name: _spread(np.asarray(array).reshape(-1)) for name, array in arrays.items()}


def _spread(flat):
    if flat.size <= COMPARED:
        return flat.copy()
    ends = np.arange(COMPARED // 4)
    between = np.linspace(0, flat.size - 1, COMPARED // 2).astype(np.int64)
    return flat[np.unique(np.concatenate([ends, between, flat.size - 1 - ends]))]
