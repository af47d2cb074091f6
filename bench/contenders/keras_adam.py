"""keras.optimizers.Adam: on JAX, unless KERAS_BACKEND is set, and compiled as Keras trains there; eager elsewhere."""

import importlib.util
import os
import warnings

from fastadam.bench.contender import BETAS, EPS, LR, Built, Contender

# Keras adds its epsilon before it corrects the bias of v: this one is EPS at the second step, near it at the others.
_EPSILON = EPS * (1 - BETAS[1] ** 2) ** 0.5


def build(params, grads, kind):
    if importlib.util.find_spec("jax") is not None:
        os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    variables = [keras.Variable(p) for p in params.values()]
    gradients = [keras.ops.convert_to_tensor(grads[name]) for name in params]
    optimizer = keras.optimizers.Adam(LR, *BETAS, epsilon=_EPSILON)
    optimizer.build(variables)
    take = _compiled if keras.config.backend() == "jax" else _eager
    step, values = take(optimizer, variables, gradients)

    def found():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # of torch tensors
            return dict(zip(params, map(keras.ops.convert_to_numpy, values()), strict=True))

    def feed(others):
        gradients[:] = [keras.ops.convert_to_tensor(others[name]) for name in params]

    return Built(step, found, feed)


def _compiled(optimizer, variables, gradients):
    import jax

    values, state = ([variable.value for variable in of] for of in (variables, optimizer.variables))
    compiled = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))

    def step():
        nonlocal values, state
        values, state = compiled(state, gradients, values)
        jax.block_until_ready((values, state))

    return step, lambda: values


def _eager(optimizer, variables, gradients):
    return lambda: optimizer.apply(gradients), lambda: [variable.value for variable in variables]


CONTENDERS = (Contender("Keras", build, needs=("keras",), tolerance=(1e-5, 1e-5), threads="Keras"),)
