"""The oracle that contenders are held to, against PyTorch in float64."""

from itertools import pairwise

import numpy as np
import pytest
from systems import run_torch

from fastadam.bench.contender import (
    BETAS,
    CLIP_VALUE,
    EMA_DECAY,
    EPS,
    LR,
    MAX_NORM,
    SCALE,
    WEIGHT_DECAY,
    Formula,
    in_rotation,
    rate,
)
from fastadam.bench.oracle import expected, gradient_factor
from fastadam.bench.workloads import MLP, flat


def values(count, seed=0):
    rng = np.random.default_rng(seed)
    return [{"w": rng.normal(size=(4, 3)), "b": rng.normal(size=5)} for _ in range(count)]


@pytest.mark.parametrize(
    ("member", "name", "settings"),
    [
        ("Adam", "Adam", {}),
        ("AdamW", "AdamW", {"weight_decay": WEIGHT_DECAY}),
        ("AMSGrad", "Adam", {"amsgrad": True}),
        ("NAdam", "NAdam", {}),
        ("Adamax", "Adamax", {}),
        ("RAdam", "RAdam", {}),
    ],
)
def test_the_oracle_is_what_torch_computes_in_float64(member, name, settings):
    pytest.importorskip("torch")
    (params,), gradients = values(1), values(3, seed=1)
    # Larger gradients first: the largest second moment is not the last.
    factors = [3.0, 0.5, 0.1]
    turns = [step % 3 for step in range(10)]
    found = expected(Formula(member), params, [gradients[i] for i in turns], [factors[i] for i in turns])
    in_turns = [{key: factors[i] * g for key, g in gradients[i].items()} for i in turns]
    wanted = run_torch(name, params, in_turns, lr=LR, betas=BETAS, eps=EPS, **settings)
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-12, atol=1e-14, err_msg=key)


def test_each_parameter_may_have_a_rate_of_its_own():
    (params,), gradients = values(1), values(3, seed=1)
    found = expected(Formula("AdamW", rates=True), params, gradients, [1.0] * 3)
    assert rate(0) != rate(1)
    for index, (key, value) in enumerate(found.items()):
        each = [{key: gradient[key]} for gradient in gradients]
        options = {"lr": rate(index), "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
        wanted = run_torch("AdamW", {key: params[key]}, each, **options)
        np.testing.assert_allclose(value, wanted[key], rtol=1e-12, atol=1e-14, err_msg=key)


def test_the_oracle_clips_by_value_and_averages():
    torch = pytest.importorskip("torch")
    (params,), (grads,) = values(1), values(1, seed=1)
    found = expected(Formula(clip_value=True, average=True), params, [grads] * 4, [1.0] * 4)
    averages = {key: p.copy() for key, p in params.items()}
    for key, g in grads.items():
        tensor = torch.nn.Parameter(torch.tensor(params[key]))
        tensor.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_value_([tensor], CLIP_VALUE)
        optimizer = torch.optim.Adam([tensor], LR, BETAS, EPS)
        for _ in range(4):
            optimizer.step()
            averages[key] = EMA_DECAY * averages[key] + (1 - EMA_DECAY) * tensor.detach().numpy()
        np.testing.assert_allclose(found[key], tensor.detach().numpy(), rtol=1e-12, err_msg=key)
        np.testing.assert_allclose(found[f"average of {key}"], averages[key], rtol=1e-12, err_msg=key)


@pytest.mark.parametrize("factor", [1e-3, 100.0], ids=["below the limit", "clipped"])
@pytest.mark.parametrize("scale", [1.0, SCALE])
def test_the_factor_on_gradients_is_that_of_torch(factor, scale):
    torch = pytest.importorskip("torch")
    grads = {key: factor * g for key, g in values(1)[0].items()}
    tensors = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads.values()]
    for tensor, g in zip(tensors, grads.values(), strict=True):
        tensor.grad = torch.tensor(scale * g)
    torch.nn.utils.clip_grad_norm_(tensors, MAX_NORM)
    found = gradient_factor(Formula(scale=scale, clip_norm=True), grads)
    for tensor, g in zip(tensors, grads.values(), strict=True):
        np.testing.assert_allclose(found * g, tensor.grad.numpy(), rtol=1e-12)
    assert gradient_factor(Formula(scale=scale), grads) == scale


def test_gradients_in_rotation_are_others_in_every_place():
    grads = MLP.random(seed=1)
    turns = in_rotation(grads)
    assert len(turns) == 3
    for name, grad in grads.items():
        assert all(each[name].shape == grad.shape for each in turns)
        assert np.array_equal(turns[0][name], grad)
    large = in_rotation(flat(10_000).random(seed=1))
    assert not any(np.any(one["flat"] == other["flat"]) for one, other in pairwise(large))
