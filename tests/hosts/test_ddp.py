"""DDP, whose gradients are views of its buckets, and ZeroRedundancyOptimizer on top of it: both are torch's."""

from copy import deepcopy

import pytest
import ranks
import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from training import OPTIONS, STEPS, assert_close, assert_trains_as_torch, loss_of, small_model, train


def replica(seed=0):
    return DistributedDataParallel(small_model(seed), gradient_as_bucket_view=True)


def trained(optimizer_class, set_to_none):
    model = replica()
    optimizer = optimizer_class(model.parameters(), **OPTIONS)
    for number in ranks.own_batches(STEPS):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss_of(model, number).backward()
        optimizer.step()
    parameters = list(model.parameters())
    gradients = {parameter.grad.untyped_storage().data_ptr() for parameter in parameters}
    assert len(gradients) == 1, "all gradients lie in one bucket"
    ranks.assert_same_on_all_ranks(parameters)
    return parameters


def ddp(set_to_none):
    assert_trains_as_torch(lambda optimizer_class: trained(optimizer_class, set_to_none))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_are_views_of_a_bucket(set_to_none):
    ranks.run(ddp, set_to_none)


def trained_by_zero(optimizer_class, parameters_as_bucket_view):
    model = replica()
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class, parameters_as_bucket_view=parameters_as_bucket_view, **OPTIONS
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    for number in ranks.own_batches(STEPS):
        train(model, optimizer, [number])
        schedule.step()
    assert 0 < len(optimizer.optim.state) < len(list(model.parameters())), "each rank has the state of a part"
    ranks.assert_same_on_all_ranks(model.parameters())
    resumed_without_zero(optimizer_class, model, optimizer)
    return list(model.parameters())


def resumed_without_zero(optimizer_class, model, optimizer):
    """The state that rank 0 collects is that of an optimizer for all parameters: both take the same steps."""
    optimizer.consolidate_state_dict(to=0)
    alone = small_model()
    alone.load_state_dict(model.module.state_dict())
    if torch.distributed.get_rank() == 0:
        plain = optimizer_class(alone.parameters(), **OPTIONS)
        plain.load_state_dict(deepcopy(optimizer.state_dict()))  # torch's own would share the tensors
        train(alone, plain, range(1000, 1003))
    train(model, optimizer, range(1000, 1003))
    if torch.distributed.get_rank() == 0:
        assert_close(list(alone.parameters()), list(model.parameters()))


def zero(parameters_as_bucket_view):
    assert_trains_as_torch(lambda optimizer_class: trained_by_zero(optimizer_class, parameters_as_bucket_view))


@pytest.mark.parametrize("parameters_as_bucket_view", [False, True])
def test_zero_redundancy_optimizer(parameters_as_bucket_view):
    ranks.run(zero, parameters_as_bucket_view)
