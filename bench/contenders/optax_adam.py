"""optax under jit, with parameters and state donated, so that XLA may update them in place."""

import numpy as np

from fastadam.bench.contender import (
    EMA_DECAY,
    MAX_NORM,
    SCALE,
    WEIGHT_DECAY,
    Built,
    Contender,
    with_averages,
)  # fmt: skip


def build(params, grads, kind):
    import jax
    import optax

    adam = optax.adamw(1e-3, weight_decay=WEIGHT_DECAY) if kind == "full" else optax.adam(1e-3)
    optimizer = adam if kind == "plain" else optax.chain(optax.clip_by_global_norm(MAX_NORM), adam)
    values, gradients = ({name: jax.numpy.asarray(a) for name, a in arrays.items()} for arrays in (params, grads))
    averages = {name: value + 0 for name, value in values.items()} if kind == "full" else {}
    state = optimizer.init(values)

    def update(values, state, averages, gradients):
        if kind == "full":
            gradients = {name: SCALE * gradient for name, gradient in gradients.items()}
        updates, state = optimizer.update(gradients, state, values)
        values = optax.apply_updates(values, updates)
        averages = {name: average + (1 - EMA_DECAY) * (values[name] - average) for name, average in averages.items()}
        return values, state, averages

    compiled = jax.jit(update, donate_argnums=(0, 1, 2))

    def step():
        nonlocal values, state, averages
        values, state, averages = compiled(values, state, averages, gradients)
        jax.block_until_ready(values)

    def feed(others):
        gradients.update({name: jax.numpy.asarray(other) for name, other in others.items()})

    def found():
        arrays = [{name: np.asarray(value) for name, value in of.items()} for of in (values, averages)]
        return with_averages(*arrays) if kind == "full" else arrays[0]

    return Built(step, found, feed)


# There is no finite check and no zeroing, for which a functional program has no use.
CONTENDERS = (Contender("optax, jit", build, needs=("optax", "jax"), kinds=("plain", "clip", "full"), threads="JAX"),)
