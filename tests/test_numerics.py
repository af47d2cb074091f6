"""Closeness to exact Adam, and agreement with torch's own."""

import numpy as np
import pytest
from oracle import exact_adam, random_state

import fastadam

# Largest error of one float32 step from a state under way, in units in the last place of the result's magnitude, taken
# without cancellation: of |m| + |g| for m, and of |p| plus the step that |m| and |g| would make for p.
ULPS = {"p": 3.0, "m": 1.0, "v": 3.0}


@pytest.mark.parametrize("step", [1, 2, 10, 1_000, 1_000_000, 2**24 + 1])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_one_float32_step_is_within_ulps_of_exact_adam(step, weight_decay):
    p, g, m, v = random_state(10_000, seed=step)
    settings = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    expected = exact_adam(p, g, m, v, step=step, decoupled=weight_decay, **settings)
    uncancelled = exact_adam(0 * p, np.abs(g), np.abs(m), v, step=step, **settings)[0]
    scale = {"p": np.abs(p) + np.abs(uncancelled), "m": np.abs(m) + np.abs(g), "v": expected[2]}
    fastadam.adam_step(p, g, m, v, step=step, weight_decay=weight_decay, decoupled_weight_decay=True, **settings)
    for name, actual, exact in zip("pmv", (p, m, v), expected, strict=True):
        ulp = np.spacing(scale[name].astype(np.float32)).astype(np.float64)
        assert np.max(np.abs(actual - exact) / ulp) <= ULPS[name], name


@pytest.mark.parametrize("seed", [0, 1])
def test_moments_after_5000_float32_steps(seed):
    rng = np.random.default_rng(seed)
    size, steps = 500, 5_000
    scale = 10.0 ** rng.uniform(-4, 2, size)
    p = rng.standard_normal(size).astype(np.float32)
    m, v = np.zeros_like(p), np.zeros_like(p)
    exact = (p.astype(np.float64), m.astype(np.float64), v.astype(np.float64))
    for step in range(1, steps + 1):
        g = (rng.standard_normal(size) * scale).astype(np.float32)
        fastadam.adam_step(p, g, m, v, step=step)
        exact = exact_adam(exact[0], g, *exact[1:], step=step, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    relative = np.abs(v - exact[2]) / exact[2]
    assert np.median(relative) < 5e-7
    assert np.sqrt(np.mean(relative**2)) < 1e-6
    assert np.max(relative) < 3e-6


@pytest.mark.parametrize("amount", [0.0, 0.1])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_agrees_with_torch(name, dtype, maximize, amount):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((13, 7)).astype(dtype), "b": np.zeros((), dtype)}
    tensors = {key: torch.tensor(value.copy(), requires_grad=True) for key, value in params.items()}
    ours = getattr(fastadam, name)(params, lr=1e-2, weight_decay=amount, maximize=maximize)
    theirs = getattr(torch.optim, name)(
        tensors.values(), lr=1e-2, weight_decay=amount, maximize=maximize, foreach=False, fused=False
    )
    for _ in range(200):
        grads = {key: rng.standard_normal(value.shape).astype(dtype) for key, value in params.items()}
        grads = {key: np.asarray(value, dtype) for key, value in grads.items()}
        for key, tensor in tensors.items():
            tensor.grad = torch.from_numpy(grads[key])
        ours.step(grads)
        theirs.step()
    tolerance = {"float32": 3e-5, "float64": 1e-12}[dtype]
    for key, tensor in tensors.items():
        np.testing.assert_allclose(params[key], tensor.detach().numpy(), rtol=tolerance, atol=tolerance)
