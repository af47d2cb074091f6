"""accelerate: `Accelerator.prepare`, clipping, accumulation, a schedule, its saved state, and its way to FSDP2."""

import pytest
import ranks
import torch
from torch.utils.data import DataLoader, TensorDataset
from training import OPTIONS, assert_equal, assert_trains_as_torch, batch, copies, loss_of, small_model

import fastadam.torch

pytest.importorskip("accelerate")

from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin


def prepared(optimizer_class, seed=0):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = small_model(seed)
    optimizer = optimizer_class(model.parameters(), **OPTIONS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=100)
    data = DataLoader(TensorDataset(*map(torch.cat, zip(*map(batch, range(10)), strict=True))), batch_size=4)
    return accelerator, *accelerator.prepare(model, optimizer, data, schedule)


def train(accelerator, model, optimizer, data, schedule):
    for inputs, targets in data:
        with accelerator.accumulate(model):
            accelerator.backward(torch.nn.functional.mse_loss(model(inputs), targets))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return list(model.parameters())


def test_accelerate():
    assert_trains_as_torch(lambda optimizer_class: train(*prepared(optimizer_class)))


def test_saved_state(tmp_path):
    first = prepared(fastadam.torch.AdamW)
    train(*first)
    first[0].save_state(tmp_path)
    expected = copies(train(*first))
    second = prepared(fastadam.torch.AdamW, seed=1)
    second[0].load_state(tmp_path)
    assert_equal(train(*second), expected)


def test_a_schedule_waits_for_steps_that_were_skipped():  # accelerate#4242
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # accelerate makes one on a GPU only
    model = small_model()
    optimizer = fastadam.torch.AdamW(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    before = copies(model.parameters())
    for factor, skipped, lr in ((float("inf"), True, 0.5), (1.0, False, 0.25)):
        optimizer.zero_grad()
        accelerator.backward(loss_of(model, 0) * factor)
        optimizer.step()
        schedule.step()
        assert optimizer.step_was_skipped == skipped
        assert optimizer.param_groups[0]["lr"] == lr
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)) == skipped


def trained_by_fsdp2(optimizer_class):
    """accelerate replaces the optimizer's parameters by shards. It does so on a GPU only, hence the two assignments."""
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    model = small_model()
    model, optimizer = accelerator.prepare(model, optimizer_class(model.parameters(), **OPTIONS))
    for number in ranks.own_batches(10):
        accelerator.backward(loss_of(model, number))
        optimizer.step()
        optimizer.zero_grad()
    return ranks.whole(model)


def fsdp2():
    assert_trains_as_torch(trained_by_fsdp2)


def test_parameters_replaced_for_fsdp2():
    ranks.run(fsdp2)
