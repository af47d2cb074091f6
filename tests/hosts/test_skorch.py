"""skorch: `optimizer=` and `optimizer__...`, clipping, saved parameters, and pickle."""

import pickle

import pytest
import torch
from training import assert_close, assert_equal, assert_trains_as_torch, batch, small_model

import fastadam.torch

pytest.importorskip("skorch")

from skorch import NeuralNetRegressor
from skorch.callbacks import GradientNormClipping

DATA = [torch.cat(tensors).numpy() for tensors in zip(*map(batch, range(10)), strict=True)]


def network(optimizer_class, seed=0, **options):
    return NeuralNetRegressor(
        small_model(seed),
        optimizer=optimizer_class,
        lr=0.01,
        optimizer__weight_decay=0.1,
        max_epochs=2,
        batch_size=4,
        train_split=None,
        verbose=0,
        **(options or {"callbacks": [GradientNormClipping(0.5)]}),
    )


def test_skorch():
    def trained(optimizer_class):
        net = network(optimizer_class).fit(*DATA)
        return [torch.tensor(net.history[:, "train_loss"]), *net.module_.parameters()]

    assert_trains_as_torch(trained)


def test_clipping_by_the_optimizer():
    """`max_grad_norm` in the place of skorch's callback."""
    ours = network(fastadam.torch.AdamW, optimizer__max_grad_norm=0.5).fit(*DATA)
    theirs = network(torch.optim.AdamW).fit(*DATA)
    assert_close(list(ours.module_.parameters()), list(theirs.module_.parameters()))


def test_saved_parameters_and_optimizer(tmp_path):
    files = {"f_params": tmp_path / "params.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    first, second = network(fastadam.torch.AdamW).fit(*DATA), network(fastadam.torch.AdamW, seed=1).initialize()
    first.save_params(**files)
    second.load_params(**files)
    assert_same_fit(first, second)


def test_a_pickled_network_goes_on():
    first = network(fastadam.torch.AdamW).fit(*DATA)
    assert_same_fit(first, pickle.loads(pickle.dumps(first)))


def assert_same_fit(first, second):
    for net in (first, second):
        net.partial_fit(*DATA)
    assert_equal(list(first.module_.parameters()), list(second.module_.parameters()))
