"""Each class of `fastadam.torch` against torch's for-loop, or against the equation where torch has no such class."""

from itertools import product

import pytest
from torch_training import assert_close, dtypes, every, fused, make, names, pair, tolerance, torch, train, twins

# What torch documents, beside those that change nothing: lists of values, of which every combination is tried.
ARGUMENTS = {
    "Adam": {
        "weight_decay": [0, 0.1],
        "amsgrad": [False, True],
        "maximize": [False, True],
        "decoupled_weight_decay": [False, True],
    },
    "AdamW": {"weight_decay": [0, 0.1], "amsgrad": [False, True], "maximize": [False, True]},
    "NAdam": {
        "weight_decay": [0, 0.1],
        "maximize": [False, True],
        "decoupled_weight_decay": [False, True],
        "momentum_decay": [0.0, 0.01],
    },
    "Adamax": {"weight_decay": [0, 0.1], "maximize": [False, True]},
    "RAdam": {"weight_decay": [0, 0.1], "maximize": [False, True], "decoupled_weight_decay": [False, True]},
}
CASES = [
    (name, dict(zip(arguments, values, strict=True)))
    for name, arguments in ARGUMENTS.items()
    for values in product(*arguments.values())
]
STEPS = 100


def _id(value):
    return value if isinstance(value, str) else ",".join(f"{key}={each}" for key, each in value.items())


@pytest.mark.parametrize(("name", "settings"), CASES, ids=_id)
@dtypes
def test_a_hundred_steps_are_those_of_torch(name, settings, dtype):
    opt, other, params, others = pair(name, dtype, lr=0.01, betas=(0.8, 0.99), eps=1e-6, **settings)
    train(opt, other, params, others, STEPS)
    assert_close(params, others, tolerance(name, dtype))


@names
@dtypes
def test_parameters_without_a_gradient_stand_still_with_their_steps(name, dtype):
    opt, other, params, others = pair(name, dtype, lr=0.01)
    train(opt, other, params, others, STEPS, skipped=lambda step: {0} if step % 3 else {1, 3} if step % 2 else ())
    assert_close(params, others, tolerance(name, dtype))
    for p, twin in zip(params, others, strict=True):
        assert opt.state[p].keys() == other.state[twin].keys()
        if p.requires_grad:
            assert opt.state[p]["step"] == other.state[twin]["step"]


@names
@dtypes
def test_groups_are_added_later_and_changed(name, dtype):
    opt, other, params, others = pair(name, dtype, lr=0.01)
    late, twin = make(dtype, seed=9), []
    twin = twins(late)
    train(opt, other, params, others, 20)
    for each, added in ((opt, late), (other, twin)):
        each.add_param_group({"params": added, "lr": 0.003, "weight_decay": 0.2, "betas": (0.5, 0.9)})
    train(opt, other, params + late, others + twin, 40, seed=2)
    for each in (opt, other):
        each.param_groups[0].update(lr=0.02, eps=1e-4, betas=(0.3, 0.95), maximize=True)
        each.param_groups[1]["weight_decay"] = 0.0
    train(opt, other, params + late, others + twin, 40, seed=3)
    assert_close(params + late, others + twin, tolerance(name, dtype))


@names
@dtypes
@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-d"])
def test_learning_rates_are_tensors(name, dtype, shape):
    # Torch computes with a tensor in its own dtype, and we in that of the parameters.
    rates = [torch.full(shape, 0.01, dtype=dtype) for _ in range(2)]
    params = make(dtype)
    others = twins(params)
    opt = getattr(fused, name)(params, lr=rates[0])
    other = getattr(torch.optim, name)(others, lr=rates[1], foreach=False)
    train(opt, other, params, others, 50)
    for rate in rates:
        rate.mul_(0.5)
    train(opt, other, params, others, 50, seed=2)
    for each in (opt, other):  # a number in the place of a tensor, and a tensor again
        each.param_groups[0]["lr"] = 0.02
    train(opt, other, params, others, 10, seed=3)
    assert_close(params, others, tolerance(name, dtype))


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@dtypes
def test_betas_are_tensors(name, dtype):
    betas = torch.tensor(0.8, dtype=torch.float64), torch.tensor([0.99], dtype=torch.float64)
    params = make(dtype)
    others = twins(params)
    opt = getattr(fused, name)(params, lr=0.01, betas=betas)
    other = getattr(torch.optim, name)(others, lr=0.01, betas=(0.8, 0.99), foreach=False)
    train(opt, other, params, others, STEPS)
    betas[0].fill_(0.5)
    other.param_groups[0]["betas"] = (0.5, 0.99)
    train(opt, other, params, others, 20)
    assert_close(params, others, tolerance(name, dtype))


@names
def test_the_bits_are_the_same_whatever_changes_nothing(name):
    variants = [{}, {"foreach": True}, {"foreach": False}, {"capturable": True}]
    variants += [{"fused": True}] if name in ("Adam", "AdamW") else []
    results = []
    for variant in variants:
        params = make()
        opt = getattr(fused, name)(params, lr=0.01, **variant)
        train(opt, torch.optim.SGD(twins(params)), params, twins(params), 5)
        results.append(params)
    for params in results[1:]:
        assert all(torch.equal(p, first) for p, first in zip(params, results[0], strict=True))


@names
def test_defaults_signature_and_groups_are_those_of_torch(name):
    ours, torchs = (getattr(module, name)([torch.zeros(2)]) for module in (fused, torch.optim))
    assert isinstance(ours, type(torchs))
    assert ours.defaults == torchs.defaults
    assert ours.param_groups[0].keys() == torchs.param_groups[0].keys()
    named = [("a", torch.zeros(2)), ("b", torch.zeros(3))]
    assert getattr(fused, name)(named).param_groups[0]["param_names"] == ["a", "b"]


def lion(p, g, state, step, hyper):
    m = state.setdefault("exp_avg", torch.zeros_like(p))
    beta1, beta2 = hyper["betas"]
    p.mul_(1 - hyper["lr"] * hyper["weight_decay"])
    p.sub_(hyper["lr"] * torch.sign(beta1 * m + (1 - beta1) * g))
    m.lerp_(g, 1 - beta2)


def ademamix(p, g, state, step, hyper):
    beta1, beta2, beta3 = hyper["betas"]
    m, v, slow = (state.setdefault(key, torch.zeros_like(p)) for key in ("exp_avg", "exp_avg_sq", "exp_avg_slow"))
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    slow.lerp_(g, 1 - beta3)
    p.mul_(1 - hyper["lr"] * hyper["weight_decay"])
    root = (v / (1 - beta2**step)).sqrt() + hyper["eps"]
    p.sub_(hyper["lr"] * (m / (1 - beta1**step) + hyper["alpha"] * slow) / root)


@pytest.mark.parametrize(
    ("name", "reference", "settings"),
    [
        ("Lion", lion, {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}),
        (
            "AdEMAMix",
            ademamix,
            {"lr": 0.01, "betas": (0.9, 0.99, 0.999), "alpha": 2.0, "eps": 1e-8, "weight_decay": 0.1},
        ),
    ],
)
@dtypes
def test_classes_that_torch_lacks_follow_their_equation(name, reference, settings, dtype):
    params = make(dtype)
    exact = [p.detach().double() for p in params]
    opt, states = getattr(fused, name)(params, **settings), [{} for _ in params]
    generator = torch.Generator().manual_seed(1)
    for step in range(1, STEPS + 1):
        for p, reference_p, state in zip(params, exact, states, strict=True):
            if p.requires_grad:
                p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
                reference(reference_p, p.grad.double(), state, step, settings)
        opt.step()
    for p, reference_p in zip(params, exact, strict=True):
        # A sign may be lost in rounding.
        off = (p.detach().double() - reference_p).abs()
        assert (off > tolerance(name, dtype)).float().mean().nan_to_num() <= (1e-4 if name == "Lion" else 0.0)


@every
def test_a_step_with_nothing_to_do_leaves_every_bit(name):
    # What torch.distributed.checkpoint makes states by.
    params = make()
    before = twins(params)
    opt = getattr(fused, name)(params, lr=0.0)
    for p in params:
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    opt.step()
    assert all(torch.equal(p, twin) for p, twin in zip(params, before, strict=True))
    assert all(opt.state[p]["step"] == 1.0 for p in params if p.requires_grad)
