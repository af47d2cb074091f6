"""torch.distributed.checkpoint: two processes, parameters sharded by FSDP2."""

import pytest
import ranks
import torch
import torch.distributed.checkpoint as dcp
from ranks import sharded_model, whole
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict, set_state_dict
from training import OPTIONS, assert_close, assert_equal, copies, train

import fastadam.torch


def state_of_an_unstepped_optimizer():
    model = sharded_model()
    optimizer = fastadam.torch.AdamW(model.parameters(), **OPTIONS)
    before = copies(whole(model))
    state = get_optimizer_state_dict(model, optimizer)["state"]
    assert_equal(whole(model), before)
    assert set(state) == {name for name, _ in model.named_parameters()}
    for values in state.values():
        assert {"exp_avg", "exp_avg_sq", "step"} <= set(values)


def test_state_of_an_unstepped_optimizer():
    ranks.run(state_of_an_unstepped_optimizer)


def saved(folder, optimizer_class):
    model = sharded_model()
    optimizer = optimizer_class(model.parameters(), **OPTIONS)
    train(model, optimizer, ranks.own_batches(5))
    dcp.save(states(model, optimizer), checkpoint_id=folder)
    return model, optimizer


def loaded(folder, optimizer_class):
    model = sharded_model(seed=1)
    optimizer = optimizer_class(model.parameters(), **OPTIONS)
    state = states(model, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return model, optimizer


def states(model, optimizer):
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


def trained_on(model, optimizer):
    train(model, optimizer, ranks.own_batches(5))
    return whole(model)


def resume(folder, first, then):
    results = [trained_on(*make(folder, kind)) for make, kind in ((saved, first), (loaded, then))]
    (assert_equal if first is then else assert_close)(*results)


CLASSES = {"fastadam": fastadam.torch.AdamW, "torch": torch.optim.AdamW}


@pytest.mark.parametrize(("first", "then"), [("fastadam", "fastadam"), ("fastadam", "torch"), ("torch", "fastadam")])
def test_a_fresh_optimizer_goes_on_where_the_saved_one_was(tmp_path, first, then):
    ranks.run(resume, tmp_path, CLASSES[first], CLASSES[then])
