"""Gradients of `fastadam.torch` that are not as those of the step before, by torch's guards and without them."""

import pytest
from torch_training import fused, torch

# Kind -> a gradient of shape (3, 4) with given values, as a parameter may have it.
KINDS = {
    "negated": lambda values: torch._neg_view(-values),
    "transposed": lambda values: values.T.contiguous().T,
    "expanded": lambda values: values[:1].expand(3, 4),
    "of every second element": lambda values: torch.stack([values, values], 2)[:, :, 0],
    "sparse": lambda values: values.to_sparse(1),
    "another tensor": torch.clone,
    "made for a graph": lambda values: values.clone().requires_grad_(),
    "absent": lambda values: None,
}


def optimizers():
    params = [[torch.ones(3, 4), torch.ones(5)] for _ in range(2)]
    return [(each, fused.Adam(each, lr=0.1)) for each in params]


def values_of(step):
    return torch.arange(12.0).reshape(3, 4) - 5.5 + step, torch.arange(5.0) - step


@pytest.fixture(params=[True, False], ids=["by guards", "without guards"])
def guarded(request, monkeypatch):
    if not request.param:
        monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_another_kind_is_stepped_by_its_values(kind, guarded):
    (params, opt), (twins, other) = optimizers()
    for step in range(6):
        first, second = values_of(step)
        # Two steps as usual, two of the kind, and two as usual again.
        gradient = KINDS[kind](first) if step in (2, 3) else first
        params[0].grad, params[1].grad = gradient, second
        # The twin gets the values alone, dense, in a new tensor.
        dense = None if gradient is None else gradient.detach().to_dense().contiguous().resolve_neg().clone()
        twins[0].grad, twins[1].grad = dense, second.clone()
        opt.step()
        other.step()
    assert all(torch.equal(p, twin) for p, twin in zip(params, twins, strict=True))
    assert bool(opt._stepper.shares[0]._facts._guards) == guarded


def _cast(gradient):
    gradient.data = gradient.data.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_cast, TypeError, "must be torch.float32 like its parameter, got torch.bfloat16"),
        (lambda gradient: gradient.resize_(2), ValueError, r"\(5,\).*\(2,\)"),
    ],
    ids=["dtype", "size"],
)
def test_a_gradient_that_is_changed_where_it_is_is_refused(change, error, message, guarded):
    (params, opt), _ = optimizers()
    for step in range(2):
        params[0].grad, params[1].grad = values_of(step)
        opt.step()
    before = params[1].clone()
    change(params[1].grad)
    with pytest.raises(error, match=r"param_groups\[0\]\['params'\]\[1\].*" + message):
        opt.step()
    assert torch.equal(params[1], before)


@pytest.mark.parametrize(
    "mode",
    [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")],
    ids=["inference", "no_grad", "autocast"],
)
def test_a_step_in_another_mode_has_the_same_bits(mode, guarded):
    (params, opt), (twins, other) = optimizers()
    for step in range(4):
        for mine in (params, twins):
            mine[0].grad, mine[1].grad = values_of(step)
        other.step()
        if step % 2:
            with mode():
                opt.step()
        else:
            opt.step()
    assert all(torch.equal(p, twin) for p, twin in zip(params, twins, strict=True))
