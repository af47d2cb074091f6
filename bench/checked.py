"""Contenders at work, each built only with a right answer."""

import numpy as np

from fastadam.bench.contender import FORMULAS, Arrays, Built, in_rotation
from fastadam.bench.contenders import CONTENDERS
from fastadam.bench.truth import expected, gradient_factor
from fastadam.bench.workloads import Workload

# Elements at both ends of each tensor that are compared: float64 of all would take ten times the memory.
COMPARED = 10_000


def build(name: str, workload: Workload, kind: str) -> Built:
    """Contender `name` on `workload`, after steps that were compared with float64."""
    contender = CONTENDERS[name]
    params, grads = workload.random(seed=0), workload.random(seed=1)
    if contender.is_limit:
        return contender.build(params, grads, kind)
    gradients = in_rotation(grads) if contender.rotates else [grads]
    formula = FORMULAS.get(kind, contender.formula)
    factors = [gradient_factor(formula, each) for each in gradients]
    values = expected(formula, _ends(params), [_ends(each) for each in gradients], factors, contender.steps)
    built = contender.build(params, grads, kind)
    for _ in range(contender.steps):
        built.step()
        if built.prepare is not None:
            built.prepare()
    relative, absolute = contender.tolerance
    found = _ends(built.params())
    assert found.keys() == values.keys(), f"{name}: {found.keys() ^ values.keys()}"
    for key, value in found.items():
        np.testing.assert_allclose(value, values[key], relative, absolute, err_msg=f"{name}, {kind}: {key}")
    return built


def _ends(arrays: Arrays) -> Arrays:
    """The first and the last elements of each array, all of a small one, as copies."""
    flats = {name: np.asarray(array).reshape(-1) for name, array in arrays.items()}
    return {
        name: flat.copy() if flat.size <= 2 * COMPARED else np.concatenate([flat[:COMPARED], flat[-COMPARED:]])
        for name, flat in flats.items()
    }
