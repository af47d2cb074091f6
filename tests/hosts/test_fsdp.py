"""torch's FSDP2 (`fully_shard`) and FSDP1 (`use_orig_params`): parameters that are shards, some of them empty."""

import ranks
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from training import OPTIONS, STEPS, assert_trains_as_torch, copies, loss_of, small_model, train

import fastadam.torch


def trained_by_fsdp2(optimizer_class):
    model = ranks.sharded_model()
    optimizer = optimizer_class(model.parameters(), **OPTIONS)
    for number in ranks.own_batches(STEPS):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    for parameter in model.parameters():
        moments = optimizer.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg_sq"]
        assert all(isinstance(moment, DTensor) and moment.placements == parameter.placements for moment in moments)
    return ranks.whole(model)


def fsdp2():
    assert_trains_as_torch(trained_by_fsdp2)


def test_fsdp2():
    ranks.run(fsdp2)


def wrapped(seed=0):
    """Its states are sharded: full ones have exp_avg_sq in the place of exp_avg on the CPU, with torch's AdamW too."""
    model = FullyShardedDataParallel(small_model(seed), use_orig_params=True, device_id=torch.device("cpu"))
    FullyShardedDataParallel.set_state_dict_type(model, StateDictType.SHARDED_STATE_DICT)
    return model


def trained_by_fsdp1(optimizer_class):
    model = wrapped()
    optimizer = optimizer_class(model.parameters(), **OPTIONS)
    train(model, optimizer, ranks.own_batches(STEPS))
    resumed_by_fsdp1(optimizer_class, model, optimizer)
    with FullyShardedDataParallel.summon_full_params(model):
        return copies(model.parameters())


def resumed_by_fsdp1(optimizer_class, model, optimizer):
    """A new model and a new optimizer with its state take the same steps."""
    state = FullyShardedDataParallel.optim_state_dict(model, optimizer)
    other = wrapped(seed=1)
    other.load_state_dict(model.state_dict())
    resumed = optimizer_class(other.parameters(), **OPTIONS)
    resumed.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(other, resumed, state))
    numbers = ranks.own_batches(3)
    assert train(model, optimizer, numbers) == train(other, resumed, numbers)


def fsdp1():
    assert_trains_as_torch(trained_by_fsdp1)


def test_fsdp1_with_original_parameters():
    ranks.run(fsdp1)


def rounded_stochastically():
    """Each process has 128 elements: they round as those of the whole."""
    whole = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    mesh = init_device_mesh("cpu", (2,))
    parameters = [torch.nn.Parameter(whole.clone()), torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))]
    for parameter in parameters:
        optimizer = fastadam.torch.AdamW([parameter], lr=0.01)
        for step in range(5):
            gradient = torch.randn(16, 16, generator=torch.Generator().manual_seed(step)).bfloat16()
            split = isinstance(parameter, DTensor)
            parameter.grad = distribute_tensor(gradient, mesh, [Shard(0)]) if split else gradient
            optimizer.step()
    assert torch.equal(parameters[0].detach(), parameters[1].full_tensor())


def test_parts_round_as_the_whole():
    ranks.run(rounded_stochastically)
