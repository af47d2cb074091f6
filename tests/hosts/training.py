"""A small model and its data, and how two trainings are compared."""

from contextlib import contextmanager

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import fastadam.torch

STEPS = 20
OPTIONS = {"lr": 0.01, "weight_decay": 0.1}
# Both round differently, and a training carries the differences on.
TOLERANCES = {torch.float64: {"rtol": 1e-9, "atol": 1e-11}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}


def small_model(seed=0, dtype=torch.float64):
    """Four parameters; that of one element leaves other ranks with an empty shard."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).to(dtype)


def batch(number, dtype=torch.float64):
    inputs = torch.randn(4, 8, dtype=dtype, generator=torch.Generator().manual_seed(number))
    return inputs, inputs.sum(1, keepdim=True).sin()


def loss_of(model, number, dtype=torch.float64):
    inputs, targets = batch(number, dtype)
    return torch.nn.functional.mse_loss(model(inputs), targets)


def train(model, optimizer, numbers=range(STEPS), dtype=torch.float64):
    """Train on the batches of these numbers; return the losses."""
    losses = []
    for number in numbers:
        optimizer.zero_grad()
        loss = loss_of(model, number, dtype)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


@contextmanager
def steps_counted(optimizer_class):
    """A list that gets an entry for each step of an optimizer that is exactly of this class."""
    steps = []
    hook = register_optimizer_step_post_hook(
        lambda optimizer, args, kwargs: steps.append(1) if type(optimizer) is optimizer_class else None
    )
    try:
        yield steps
    finally:
        hook.remove()


def assert_trains_as_torch(trained, name="AdamW"):
    """`trained(optimizer_class)` returns tensors: with fastadam's class they are those that torch's class gives."""
    ours, theirs = getattr(fastadam.torch, name), getattr(torch.optim, name)
    results = []
    for optimizer_class in (ours, theirs):
        with steps_counted(optimizer_class) as steps:
            results.append(copies(trained(optimizer_class)))
        assert steps, f"the host did not step {optimizer_class}"
    assert_close(*results)


def assert_close(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **TOLERANCES[mine.dtype])


def assert_equal(ours, theirs):
    """Bit for bit."""
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
