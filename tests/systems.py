"""The same steps by other libraries' own optimizers, each with the names and settings that its library has for them.

`run_<system>` takes the parameters to start from, which stay as they are, and the gradients of each step, and gives
the parameters after the last one in the dtype they came in.
"""

import contextlib
import importlib.util
import math
import os
import warnings

import numpy as np


def run_torch(name, params, grads, **settings):
    """`torch.optim.<name>`, its loop over tensors. With float64 parameters the default dtype is float64 as well, for
    NAdam has its product of momenta in that."""
    import torch

    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if _has_float64(params) else torch.float32)
    try:
        tensors = {key: torch.nn.Parameter(torch.tensor(param)) for key, param in params.items()}
        optimizer = getattr(torch.optim, name)(tensors.values(), foreach=False, **settings)
        for step in grads:
            for key, tensor in tensors.items():
                tensor.grad = torch.tensor(step[key])
            optimizer.step()
    finally:
        torch.set_default_dtype(dtype)
    return _arrays(params, {key: tensor.detach().numpy() for key, tensor in tensors.items()})


def run_optax(name, params, grads, lr, betas, weight_decay=0.0, eps_root=0.0, warmups=None, **settings):
    """`optax.<name>`, jitted; `amsgrad` and `radam`, which Optax has no form with weight decay of, get it chained as in
    `optax.adamw`. What else an optimizer has no setting for is refused. `lr` may be a schedule. With `warmups` for
    alpha and beta3, these are the schedules of AdEMAMix's paper."""
    import jax
    import optax

    settings |= {f"b{number}": beta for number, beta in enumerate(betas, 1)}
    if eps_root:
        settings["eps_root"] = eps_root
    if warmups:
        settings |= _warm_ups(*warmups, settings["alpha"], betas)
    if name in ("amsgrad", "radam"):
        scale = getattr(optax, f"scale_by_{name}")(**settings)
        optimizer = optax.chain(scale, optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(lr))
    else:
        if weight_decay or name.endswith("w"):
            settings["weight_decay"] = weight_decay
        optimizer = getattr(optax if hasattr(optax, name) else optax.contrib, name)(lr, **settings)

    @jax.jit
    def step(tree, state, grad):
        updates, state = optimizer.update(grad, state, tree)
        return optax.apply_updates(tree, updates), state

    with _jax_x64(_has_float64(params)):
        tree = {key: jax.numpy.array(param) for key, param in params.items()}
        state = optimizer.init(tree)
        for grad in grads:
            tree, state = step(tree, state, grad)
    return _arrays(params, tree)


def _warm_ups(of_alpha, of_beta3, alpha, betas):
    """Algorithm 2 of arXiv 2409.03137; Optax counts steps from 0."""
    from jax.numpy import exp, minimum, where

    first, last = math.log(betas[0]), math.log(betas[2])

    def beta3(count):
        part = (count + 1).astype(float) / of_beta3
        ramp = exp(first * last / ((1 - part) * last + part * first))
        return where(part < 1, minimum(ramp, betas[2]), betas[2])

    return {"alpha": lambda count: alpha * minimum((count + 1).astype(float) / of_alpha, 1.0), "b3": beta3}


def run_keras(name, params, grads, **settings):
    """`keras.optimizers.<name>` on the backend that `KERAS_BACKEND` names, by itself on torch or else on JAX."""
    os.environ.setdefault("KERAS_BACKEND", "torch" if importlib.util.find_spec("torch") else "jax")
    import keras

    float64 = _has_float64(params)
    x64 = _jax_x64(float64) if keras.backend.backend() == "jax" else contextlib.nullcontext()
    floatx = keras.config.floatx()
    keras.config.set_floatx("float64" if float64 else "float32")  # of the learning rate
    try:
        with x64, keras.device("cpu"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # of Keras' own
            variables = {key: keras.Variable(param, dtype=param.dtype.name) for key, param in params.items()}
            optimizer = getattr(keras.optimizers, name)(**settings)
            for step in grads:
                optimizer.apply([keras.ops.convert_to_tensor(step[key]) for key in variables], list(variables.values()))
            dtypes = {variable.dtype for variable in optimizer.variables[1:]}  # after the count of steps
            assert dtypes == {param.dtype.name for param in params.values()}, dtypes
            return _arrays(params, {key: keras.ops.convert_to_numpy(value) for key, value in variables.items()})
    finally:
        keras.config.set_floatx(floatx)


def run_sklearn(params, grads, lr, betas, eps, l2=0.0):
    """The `AdamOptimizer` inside scikit-learn's `MLPClassifier`, which adds the L2 term to the gradient itself."""
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

    arrays = {key: param.copy() for key, param in params.items()}
    optimizer = AdamOptimizer(list(arrays.values()), lr, *betas, eps)
    for step in grads:
        optimizer.update_params(list(arrays.values()), [step[key] + l2 * array for key, array in arrays.items()])
    return _arrays(params, arrays)


def _has_float64(params):
    return any(param.dtype == np.float64 for param in params.values())


def _jax_x64(enabled):
    """A context in which JAX computes in float64, or does not."""
    import jax
    import jax.experimental

    module = jax if hasattr(jax, "enable_x64") else jax.experimental
    return module.enable_x64(enabled)


def _arrays(params, results):
    """Copies of the results as NumPy arrays, after a check that none has come out in another dtype."""
    arrays = {key: np.array(result) for key, result in results.items()}
    assert all(arrays[key].dtype == param.dtype for key, param in params.items()), arrays
    return arrays
