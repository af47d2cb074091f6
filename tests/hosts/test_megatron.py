"""Megatron's HybridDeviceOptimizer takes its class from `megatron.core.optimizer.CPUAdam`. No GPU here: see no_cuda."""

from copy import deepcopy
from types import SimpleNamespace

import no_cuda
import pytest
import torch
from training import assert_equal, assert_trains_as_torch, copies

import fastadam.torch

pytest.importorskip("megatron.core")

from megatron.core import optimizer as megatron
from megatron.core.optimizer.cpu_offloading import hybrid_optimizer

SHAPES = [(16, 8), (16,), (), (1, 16)]


@pytest.fixture(autouse=True)
def _without_cuda(monkeypatch):
    monkeypatch.setattr(hybrid_optimizer, "torch", no_cuda.Torch())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    # What Megatron wraps around it puts a tensor on the GPU.
    monkeypatch.setattr(megatron, "FP32Optimizer", lambda optimizer, *_: SimpleNamespace(optimizer=optimizer))


def parameters(dtype):
    torch.manual_seed(0)
    return [no_cuda.DeviceParameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def built(params, optimizer_class, monkeypatch, overlap):
    """As `get_megatron_optimizer` builds it, which makes the groups from a model that Megatron wraps."""
    monkeypatch.setattr(megatron, "CPUAdam", optimizer_class)
    config = megatron.OptimizerConfig(
        lr=0.01,
        weight_decay=0.1,
        optimizer_cpu_offload=True,
        optimizer_offload_fraction=1.0,
        overlap_cpu_optimizer_d2h_h2d=overlap,
        pin_cpu_grads=False,
    )
    groups = [{"params": params[:2], "lr": 0.01}, {"params": params[2:], "lr": 0.02, "weight_decay": 0.0}]
    made = megatron._get_megatron_optimizer_based_on_param_groups(
        config, [], groups, pg_collection=SimpleNamespace(tp=None)
    )
    assert {type(inner) for inner in made.optimizer.sub_optimizers} == {optimizer_class}
    return made.optimizer


def steps(optimizer, params, numbers):
    for number in numbers:
        torch.manual_seed(number)
        for parameter in params:
            parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.step()


@pytest.mark.parametrize("overlap", [False, True], ids=["one", "one-a-parameter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hybrid_device_optimizer(monkeypatch, dtype, overlap):
    def trained(optimizer_class):
        params = parameters(dtype)
        optimizer = built(params, optimizer_class, monkeypatch, overlap)
        steps(optimizer, params, range(10))
        masters = [optimizer.state[parameter]["master_param"] for parameter in params]
        assert_equal([master.to(dtype) for master in masters], copies(params))
        return masters

    assert_trains_as_torch(trained)


@pytest.mark.parametrize("overlap", [False, True], ids=["one", "one-a-parameter"])
def test_saved_state(monkeypatch, overlap):
    first, second = parameters(torch.bfloat16), parameters(torch.bfloat16)
    optimizers = [built(params, fastadam.torch.AdamW, monkeypatch, overlap) for params in (first, second)]
    steps(optimizers[0], first, range(5))
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))  # else both would have the same tensors
    for optimizer, params in zip(optimizers, (first, second), strict=True):
        steps(optimizer, params, range(5, 10))
    assert_equal(copies(first), copies(second))
