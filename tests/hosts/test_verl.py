"""verl: its function that builds an optimizer from a configuration, for parameters sharded by FSDP2."""

import pytest
import ranks
from ranks import sharded_model, whole
from training import assert_trains_as_torch, train

import fastadam.torch

pytest.importorskip("verl", reason="verl is not installed")


def built(parameters, optimizer_class):
    from verl.workers.config.optimizer import FSDPOptimizerConfig, build_optimizer

    module = "fastadam.torch" if optimizer_class is fastadam.torch.AdamW else "torch.optim"
    config = FSDPOptimizerConfig(
        optimizer_impl=module, optimizer="AdamW", lr=0.01, weight_decay=0.1, override_optimizer_config={"eps": 1e-6}
    )
    optimizer = build_optimizer(parameters, config)
    assert type(optimizer) is optimizer_class
    return optimizer


def trained(optimizer_class):
    """Between steps verl may move the moments to the CPU and back."""
    from verl.utils.fsdp_utils import load_fsdp_optimizer, offload_fsdp_optimizer

    model = sharded_model()
    optimizer = built(model.parameters(), optimizer_class)
    for numbers in ([1, 2], [3, 4]):
        train(model, optimizer, numbers)
        offload_fsdp_optimizer(optimizer)
        load_fsdp_optimizer(optimizer, "cpu")
    return whole(model)


def verl():
    assert_trains_as_torch(trained)


def test_an_optimizer_built_from_a_configuration():
    ranks.run(verl)
