"""All contenders by name, each built only with a right answer."""

import contenders
import formats
import numpy as np
import sequence
from contenders import Contender
from workloads import Workload

STEPS = 3


def build(name: str, workload: Workload) -> Contender:
    """Contender `name` on `workload`, after steps that were checked against float64."""
    makers, module = next(
        (makers, module)
        for makers, module in (
            (contenders.CONTENDERS, contenders),
            (sequence.SEQUENCE, sequence),
            (formats.STORAGE, formats),
        )
        if name in makers
    )
    params, grads = workload.random(seed=0), workload.random(seed=1)
    expected = module.expected(name, params, grads, STEPS)
    contender = makers[name](params, grads)
    for _ in range(STEPS):
        contender.step()
        if contender.prepare is not None:
            contender.prepare()
    for key, value in contender.params().items() if expected else ():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6, err_msg=f"{name}: {key}")
    return contender
