"""States and torch: `torch.save` and `torch.load` take ours by their defaults, and torch's own states are loaded."""

import io
from functools import partial

import numpy as np
import pytest
from checkpointing import HALVING, everything, kept

import fastadam

torch = pytest.importorskip("torch")

SHAPES = [(3, 5), (7,), (2, 2, 3)]


def tensors(seed=0, dtype=None):
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=made).to(dtype or torch.float32) for shape in SHAPES]


def through_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


FORMATS = {
    "float32": (None, {"amsgrad": True, "ema_decay": 0.5}),
    "bfloat16": ("bfloat16", {"moment_dtype": "bfloat16"}),
    "masters": ("bfloat16", {"master_weights": True}),
    "schedule": (None, {"lr": lambda step: 0.1 / (1 + step)}),
    "skipped": (None, {"nonfinite": "skip"}),
}


@pytest.mark.parametrize(("dtype", "options"), FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("flat", [False, True], ids=["where they lie", "flat"])
def test_torch_saves_and_loads_a_state_of_torch_parameters_by_its_defaults(dtype, options, flat):
    built = partial(fastadam.NAdam if dtype is None and not options.get("amsgrad") else fastadam.AdamW, **options)
    run, other = (built(tensors(seed, dtype and getattr(torch, dtype)), flat=flat) for seed in (1, 2))
    gradients = tensors(3, dtype and getattr(torch, dtype))
    run.step(gradients)
    state = run.state_dict()
    assert all(torch.is_tensor(state["state"][0][key]) for key in ("exp_avg", "exp_avg_sq"))
    other.load_state_dict(through_torch(state))
    for name, tensor in run.params.items():
        other.params[name] = tensor.clone()
    other.load_state_dict(through_torch(state))
    for opt in (run, other):
        opt.step(gradients)
    assert kept(other) == kept(run)


def test_a_state_is_a_copy_for_torch_too():
    opt = fastadam.Adam(tensors())
    opt.step(tensors(1))
    opt.state_dict()["state"][0]["exp_avg"].zero_()
    assert opt.buffers.m.any()


def test_codes_of_large_tensors_are_saved_by_torch():
    params = [torch.randn(5_000)]
    run, other = (fastadam.Adam([tensor.clone() for tensor in params], moment_dtype="float8") for _ in range(2))
    for opt in (run, other):
        opt.step([torch.ones(5_000)])
    other.load_state_dict(through_torch(run.state_dict()))
    assert kept(other) == kept(run)


def test_a_schedule_is_no_part_of_a_state_but_its_position_is():
    run = fastadam.Adam({"w": np.ones(3)}, lr=HALVING)
    for _ in range(4):
        run.step({"w": np.ones(3)})
    state = run.state_dict()
    assert state["param_groups"][0]["lr"] == HALVING(4)
    longer = fastadam.schedules.Exponential(0.1, decay_steps=30, decay_rate=0.5)
    other = fastadam.Adam({"w": np.ones(3)}, lr=longer)
    other.load_state_dict(state)
    assert (other.param_groups[0]["lr"], other.get_last_lr()) == (longer, [longer(4)])


# --- torch's own states

KINDS = {
    "Adam": ("Adam", {"lr": 0.03, "weight_decay": 0.1}, {}),
    "AMSGrad": ("Adam", {"lr": 0.03, "amsgrad": True}, {}),
    "AdamW": ("AdamW", {"lr": 0.03, "betas": (0.8, 0.9)}, {"fused": True}),
    "NAdam": ("NAdam", {"lr": 0.03, "momentum_decay": 0.01}, {}),
    "RAdam": ("RAdam", {"lr": 0.03}, {"foreach": True}),
    "Adamax": ("Adamax", {"lr": 0.03}, {}),
}


def trained(name, params, steps, options, skip=()):
    """An optimizer of torch after some steps; parameters at the positions `skip` have no gradient."""
    opt = getattr(torch.optim, name)(params, **options)
    parameters = [parameter for group in opt.param_groups for parameter in group["params"]]
    for seed in steps:
        for position, (parameter, gradient) in enumerate(zip(parameters, tensors(seed), strict=True)):
            parameter.grad = None if position in skip else gradient
        opt.step()
    return opt


@pytest.mark.parametrize(("name", "options", "more"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("named", [False, True], ids=["by position", "by name"])
def test_a_run_of_torch_goes_on_here(name, options, more, named):
    theirs = tensors(0)
    given = [("abc"[i], tensor) for i, tensor in enumerate(theirs)] if named else theirs
    opt = trained(name, given, range(1, 4), {**options, **more}, skip=(1,))
    state = through_torch(opt.state_dict())
    assert 1 not in state["state"]
    # By name they may come in another order.
    order = "cab" if named else "abc"
    ours = {key: theirs["abc".index(key)].detach().numpy().copy() for key in order}
    here = getattr(fastadam, name)(ours, lr=9.0)
    report = here.load_state_dict(state)
    assert [label for label in report.afresh if not label.startswith("b.")] == []
    assert report.afresh
    group = here.param_groups[0]
    assert (group["lr"], group["betas"]) == (0.03, options.get("betas", (0.9, 0.999)))
    assert not {"foreach", "fused", "capturable", "param_names"} & set(group)
    entries = here.state_dict()["state"]
    assert [entries[key]["step"] for key in "abc"] == [3, 0, 3]
    parameters = opt.param_groups[0]["params"]
    for seed in range(4, 9):
        drawn = dict(zip("abc", tensors(seed), strict=True))
        for key, parameter in zip("abc", parameters, strict=True):
            parameter.grad = drawn[key].clone()
        opt.step()
        here.step({key: gradient.numpy() for key, gradient in drawn.items()})
    for key, parameter in zip("abc", parameters, strict=True):
        np.testing.assert_allclose(here.params[key], parameter.detach().numpy(), rtol=2e-5, atol=2e-6)


def test_parameters_of_torch_may_have_taken_different_steps():
    first = trained("Adam", tensors(0), [1, 2], {"lr": 0.03}, skip=(1,))
    for parameter in first.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    first.step()
    opt = fastadam.Adam(tensors(0), lr=HALVING)
    opt.load_state_dict(first.state_dict())
    state = opt.state_dict()["state"]
    assert [(state[name]["step"], state[name].get("skipped", 0)) for name in range(3)] == [(3, 0), (1, 2), (3, 0)]
    assert opt.get_last_lr() == [HALVING(3)]


def test_a_state_of_torch_with_other_parameters_is_refused():
    state = trained("Adam", tensors(0), [1], {}).state_dict()
    opt = fastadam.Adam([np.ones((3, 5), np.float32), np.ones(7, np.float32)])
    before = everything(opt)
    with pytest.raises(ValueError, match=r"of torch must have the 2 parameters of this optimizer .*, got 3"):
        opt.load_state_dict(state)
    opt = fastadam.Adam([np.ones((5, 3), np.float32), np.ones(7, np.float32), np.ones((2, 2, 3), np.float32)])
    with pytest.raises(ValueError, match=r"\[0\]\['exp_avg'\]` must have shape \(5, 3\) .*, got \(3, 5\)"):
        opt.load_state_dict(state)
    assert opt.load_state_dict(state, strict=False).afresh == ("0.exp_avg", "0.exp_avg_sq")
    assert everything(fastadam.Adam([np.ones((3, 5), np.float32), np.ones(7, np.float32)])) == before


@pytest.mark.parametrize("step", [2.5, -1.0, float("nan")])
def test_a_step_of_torch_that_is_no_count_is_refused(step):
    state = trained("Adam", tensors(0), [1], {}).state_dict()
    state["state"][2]["step"] = torch.tensor(step)
    opt = fastadam.Adam(tensors(1))
    before = everything(opt)
    with pytest.raises((ValueError, TypeError), match=r"\['state'\]\[2\]\['step'\]` must be"):
        opt.load_state_dict(state)
    assert everything(opt) == before


def test_groups_of_torch_keep_their_settings():
    first, second, third = tensors(0)
    groups = [{"params": [first], "lr": 0.5}, {"params": [second, third], "weight_decay": 0.25}]
    state = trained("AdamW", groups, [1], {"lr": 0.1}).state_dict()
    ours = [{"params": [first.clone()]}, {"params": [second.clone(), third.clone()]}]
    opt = fastadam.AdamW(ours)
    opt.load_state_dict(state)
    assert [(group["lr"], group["weight_decay"]) for group in opt.param_groups] == [(0.5, 0.01), (0.1, 0.25)]
