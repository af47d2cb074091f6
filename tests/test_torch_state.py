"""States of `fastadam.torch`: torch's own layout, whoever made them, and whatever is done to them between steps."""

import copy
import io
import pickle
from itertools import pairwise

import pytest
from torch_training import (
    assert_close,
    dtypes,
    every,
    fused,
    give_gradients,
    make,
    names,
    pair,
    tolerance,
    torch,
    twins,
)
from torch_training import train as train_both


def train(opt, params, steps, seed=1):
    idle = torch.optim.SGD([torch.zeros(1)])
    train_both(opt, idle, params, twins(params), steps, seed)


@names
@dtypes
def test_states_are_loaded_in_both_directions_in_the_middle(name, dtype):
    opt, other, params, others = pair(name, dtype, lr=0.01, weight_decay=0.1)
    train_both(opt, other, params, others, 40)
    ours, torchs = opt.state_dict(), other.state_dict()
    opt.load_state_dict(copy.deepcopy(torchs))
    other.load_state_dict(copy.deepcopy(ours))
    train_both(opt, other, params, others, 60, seed=2)
    assert_close(params, others, tolerance(name, dtype))


@names
@dtypes
def test_the_state_is_that_of_torch(name, dtype):
    settings = {"amsgrad": True} if name.startswith("Adam") and name != "Adamax" else {}
    opt, other, params, others = pair(name, dtype, **settings)
    train_both(opt, other, params, others, 3)
    ours, torchs = opt.state_dict(), other.state_dict()
    assert ours["param_groups"][0].keys() == torchs["param_groups"][0].keys()
    assert ours["state"].keys() == torchs["state"].keys()
    for index, entry in torchs["state"].items():
        assert list(ours["state"][index]) == list(entry)
        for key, value in entry.items():
            mine = ours["state"][index][key]
            assert (mine.dtype, mine.shape, mine.device) == (value.dtype, value.shape, value.device)
            if mine.dim():
                assert mine.stride() == value.stride()


@every
def test_a_loaded_run_is_the_saved_run_bit_for_bit(name):
    params = make()
    opt = getattr(fused, name)(params, lr=0.01)
    train(opt, params, 5)
    saved, others = copy.deepcopy(opt.state_dict()), twins(params)
    resumed = getattr(fused, name)(others, lr=0.5)
    resumed.load_state_dict(saved)
    before = copy.deepcopy(saved)
    train(opt, params, 5, seed=2)
    train(resumed, others, 5, seed=2)
    if name != "NAdam":  # whose product is saved as float32, as torch does
        assert all(torch.equal(p, other) for p, other in zip(params, others, strict=True))
    assert_close(params, others, 1e-6)
    for index, entry in saved["state"].items():  # nothing of it is written
        assert all(torch.equal(value, before["state"][index][key]) for key, value in entry.items())


@every
def test_a_state_that_goes_from_one_optimizer_to_another_is_not_shared(name):  # pytorch#196083
    params = make()
    opt, others = getattr(fused, name)(params, lr=0.01), twins(params)
    train(opt, params, 2)
    twin = getattr(fused, name)(others, lr=0.01)
    twin.load_state_dict(opt.state_dict())
    before = copy.deepcopy(opt.state_dict()["state"])
    train(twin, others, 2, seed=2)
    for index, entry in opt.state_dict()["state"].items():
        assert all(torch.equal(value, before[index][key]) for key, value in entry.items())


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_are_counted_whatever_torchs_default_dtype_is(name, dtype):  # ao#4915
    params = [torch.ones(3), torch.ones(3)]
    for p, default in zip(params, (torch.float32, dtype), strict=True):
        torch.set_default_dtype(default)
        try:
            opt = getattr(fused, name)([p], lr=1e-3, weight_decay=0.1)
            for _ in range(300):  # bfloat16 has no 257
                p.grad = torch.full_like(p, 0.1)
                opt.step()
        finally:
            torch.set_default_dtype(torch.float32)
        assert opt.state[p]["step"] == 300
    assert torch.equal(*params)


@every
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_go_on_alone(name, way):
    params = make()
    opt = getattr(fused, name)(params, lr=0.01, max_grad_norm=1.0)
    train(opt, params, 5)
    if way == "deepcopy":
        twin = copy.deepcopy(opt)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(opt))
    else:
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        twin = getattr(fused, name)(twins(params), lr=0.01, max_grad_norm=1.0)
        twin.load_state_dict(torch.load(file, weights_only=True))
    others = twin.param_groups[0]["params"]
    train(opt, params, 5, seed=2)
    assert not any(
        torch.equal(p, other)
        for p, other in zip(params, others, strict=True)
        if p.requires_grad and len(p.shape) == 2 and p.numel()
    )
    train(twin, others, 5, seed=2)
    assert_close(params, others, 1e-6)
    assert twin.grad_norm == pytest.approx(opt.grad_norm)


def test_a_state_of_one_parameter_is_saved_without_the_others():
    params = make()
    opt = fused.Adam(params)
    train(opt, params, 1)
    file = io.BytesIO()
    torch.save(opt.state[params[0]], file)
    assert len(file.getvalue()) < 5_000


def test_moments_in_bfloat16_and_codes_are_loaded_as_they_are():
    for dtype in ("bfloat16", "float8"):
        params = [torch.randn(5_000).requires_grad_()]
        opt = fused.Adam(params, lr=0.01, moment_dtype=dtype)
        train(opt, params, 3)
        others = twins(params)
        resumed = fused.Adam(others, lr=0.01, moment_dtype=dtype)
        resumed.load_state_dict(opt.state_dict())
        for key, value in opt.state[params[0]].items():
            assert resumed.state[others[0]][key].dtype == value.dtype
            assert torch.equal(resumed.state[others[0]][key], value)
            assert resumed.state[others[0]][key].data_ptr() != value.data_ptr()
        train(opt, params, 3, seed=2)
        train(resumed, others, 3, seed=2)
        assert torch.equal(params[0], others[0])


def test_hooks_before_loading_see_what_was_saved():
    params = make()
    opt = fused.Adam(params)
    train(opt, params, 1)
    saved, seen = opt.state_dict(), []
    opt.register_load_state_dict_pre_hook(lambda opt, state_dict: seen.append(state_dict["state"][0]["exp_avg"]))
    opt.load_state_dict(saved)
    assert isinstance(seen[0], torch.Tensor)
    assert len(opt._optimizer_load_state_dict_pre_hooks) == 1


def test_a_state_that_is_there_already_is_taken_as_it_is():
    # As torchtitan's hook that has moments in bfloat16.
    params = [torch.randn(4, 5).requires_grad_()]
    opt = fused.AdamW(params, lr=0.01)
    entry = {"step": torch.tensor(0.0)}
    entry |= {key: torch.zeros(4, 5, dtype=torch.bfloat16) for key in ("exp_avg", "exp_avg_sq")}
    opt.state[params[0]] = entry
    moment = entry["exp_avg"]
    train(opt, params, 3)
    assert opt.state[params[0]] is entry
    assert entry["exp_avg"] is moment
    assert moment.dtype == torch.bfloat16
    assert moment.abs().sum() > 0
    assert entry["step"] == 3


@names
def test_states_may_be_replaced_and_written_between_steps(name):
    opt, other, params, others = pair(name, torch.float32, lr=0.01)
    train_both(opt, other, params, others, 5)
    for each, tensors in ((opt, params), (other, others)):
        for p in tensors[:2]:
            entry = each.state[p]
            entry["exp_avg"] = entry["exp_avg"] * 0.5  # another tensor
            entry["step"].fill_(17.0)  # the same one
            entry["step"] = torch.tensor(20.0) if p is tensors[0] else entry["step"]
        each.state[tensors[3]]["exp_avg"].data = each.state[tensors[3]]["exp_avg"].data * 2.0
        each.state[tensors[4]]["exp_avg"].zero_()
        del each.state[tensors[6]]
    train_both(opt, other, params, others, 5, seed=2)
    assert_close(params, others, 1e-5)
    assert opt.state[params[0]]["step"] == 25
    assert opt.state[params[1]]["step"] == 22
    assert opt.state[params[6]]["step"] == 5


def test_parameters_may_be_moved_and_replaced_between_steps():
    opt, other, params, others = pair("Adam", torch.float32, lr=0.01)
    train_both(opt, other, params, others, 5)
    for each, tensors in ((opt, params), (other, others)):
        tensors[0].data = tensors[0].data.clone()
        tensors[6].share_memory_()
        each.state[tensors[6]]["exp_avg"].share_memory_()
        # Another parameter in the place of one, with its state, as densification does.
        new = torch.cat([tensors[5].detach(), tensors[5].detach()]).requires_grad_()
        entry = each.state.pop(tensors[5])
        for key in ("exp_avg", "exp_avg_sq"):
            entry[key] = torch.cat([entry[key], torch.zeros_like(entry[key])])
        each.state[new] = entry
        tensors[5] = each.param_groups[0]["params"][5] = new
    train_both(opt, other, params, others, 5, seed=2)
    assert_close(params, others, 1e-5)


def test_another_memory_order_takes_the_state_with_it():
    opt, other, params, others = pair("Adam", torch.float32, lr=0.01)
    train_both(opt, other, params, others, 5)
    for tensors in (params, others):
        tensors[4].data = tensors[4].data.contiguous()
        tensors[3].data = tensors[3].data.contiguous()
    train_both(opt, other, params, others, 5, seed=2)
    assert_close(params, others, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_another_dtype_takes_the_state_with_it(dtype):
    params = make()
    opt = fused.Adam(params, lr=0.01, rounding="nearest")
    train(opt, params, 3)
    expected = [p.detach().double() for p in params]
    for p in params:
        p.grad = None
        p.data = p.data.to(dtype)
    train(opt, params, 3, seed=2)
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in params)
    assert all(opt.state[p]["step"] == 6 for p in params if p.requires_grad)
    assert (params[0].detach().double() - expected[0]).abs().max() < 0.05


def test_step_tensors_share_their_memory_and_are_float32():
    params = make()
    opt = fused.Adam(params)
    train(opt, params, 2)
    steps = [opt.state[p]["step"] for p in params if p.requires_grad]
    assert all(step.dtype == torch.float32 and step.dim() == 0 and step.device.type == "cpu" for step in steps)
    assert {after.data_ptr() - before.data_ptr() for before, after in pairwise(steps)} == {4}


def test_all_that_is_written_counts_as_written():
    params = make()
    opt = fused.NAdam(params)
    train(opt, params, 1)
    moments = [entry[key] for entry in opt.state.values() for key in ("exp_avg", "exp_avg_sq")]
    tensors = [p for p in params if p.requires_grad] + moments
    before = [tensor._version for tensor in tensors]
    give_gradients(params, twins(params), torch.Generator(), skipped={0})
    opt.step()
    for tensor, version in zip(tensors, before, strict=True):
        still = tensor is params[0] or any(tensor is each for each in opt.state[params[0]].values())
        assert tensor._version == version + (not still)


def test_nothing_is_made_before_the_first_step():
    opt = fused.Adam(make())
    assert not opt.state
    assert "_stepper" not in vars(opt)
    assert opt.grad_norm is None
    assert opt.skipped_steps == 0
