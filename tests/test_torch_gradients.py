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


@pytest.mark.parametrize(
    "mode",
    [
        torch.inference_mode,
        lambda: torch.autocast("cpu"),
        lambda: torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Conjugate)),
    ],
    ids=["inference", "autocast", "excluded key"],
)
@pytest.mark.parametrize("made_inside", [False, True])
def test_guards_follow_the_mode(mode, made_inside, guarded):
    (params, opt), _ = optimizers()

    def step(number):
        params[0].grad, params[1].grad = values_of(number)
        opt.step()

    def know():
        guards = opt._stepper.shares[0]._facts._guards
        return bool(guards and guards.check(params[0].grad, params[1].grad))

    for number in range(6):
        if number in (0, 1, 4):
            if not made_inside:
                params[0].grad, params[1].grad = values_of(number)
            with mode():
                step(number) if made_inside else opt.step()
                assert know() == guarded
        else:
            step(number)
            assert know() == guarded


def test_gradients_that_two_parameters_share_make_guards_once(monkeypatch):
    make, made = torch._C._dynamo.guards.TensorGuards, []
    monkeypatch.setattr(torch._C._dynamo.guards, "TensorGuards", lambda *a, **k: made.append(a) or make(*a, **k))
    params = [torch.ones(3), torch.ones(3)]
    opt = fused.Adam(params)
    for _ in range(4):
        params[0].grad = params[1].grad = torch.ones(3)
        opt.step()
    assert len(made) == 1


class Logical(torch.Tensor):
    """A tensor that may say another dtype than that of its memory."""

    @property
    def dtype(self):
        return getattr(self, "logical", torch.float32)


def test_a_subclass_that_says_another_dtype_is_refused_however_often_it_was_right(guarded):
    (params, opt), _ = optimizers()
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p).as_subclass(Logical)
        opt.step()
    assert not opt._stepper.shares[0]._facts._guards
    before = params[0].clone()
    params[0].grad.logical = torch.float64
    with pytest.raises(TypeError, match=r"must be torch.float32 like its parameter, got torch.float64"):
        opt.step()
    assert torch.equal(params[0], before)


def test_guards_are_made_once_gradients_are_plain(guarded):
    (params, opt), _ = optimizers()
    for step in range(3):
        params[0].grad, params[1].grad = values_of(step)
        if step == 0:
            params[0].grad.requires_grad_()
        opt.step()
    guards = opt._stepper.shares[0]._facts._guards
    assert guarded == bool(guards and guards.check(*(p.grad for p in params)))


@pytest.mark.parametrize("copied", [dict, lambda entry: entry], ids=["copied", "itself"])
def test_states_that_change_their_owners_in_an_order_that_hides_it(copied):
    params = [torch.ones(4), torch.ones(4)]
    opt = fused.Adam(params, lr=0.1)
    twins = [p.clone() for p in params]
    other = torch.optim.Adam(twins, lr=0.1, foreach=False)
    for step in range(5):
        for index, (p, twin) in enumerate(zip(params, twins, strict=True)):
            p.grad = torch.arange(4.0) * (1 + index) - step
            twin.grad = p.grad.clone()
        if step == 3:
            for optimizer, (first, second) in ((opt, params), (other, twins)):
                entries = optimizer.state.pop(first), optimizer.state.pop(second)
                optimizer.state[second], optimizer.state[first] = map(copied, entries)
        opt.step()
        other.step()
    torch.testing.assert_close(params, twins, rtol=1e-5, atol=1e-5)
