"""torchao's CPUOffloadOptimizer: one optimizer for each large parameter. Here without a GPU: see no_cuda."""

from copy import deepcopy

import no_cuda
import pytest
import torch
from training import OPTIONS, assert_close, assert_equal, small_model, train

import fastadam.torch

pytest.importorskip("torchao")

from torchao.optim import CPUOffloadOptimizer, cpu_offload

SMALL = 16  # all but the last bias are offloaded


@pytest.fixture(autouse=True)
def _without_cuda(monkeypatch):
    monkeypatch.setattr(cpu_offload, "torch", no_cuda.Torch())
    monkeypatch.setattr(cpu_offload, "get_available_devices", lambda: ["cpu", "cuda"])


def trained(make, dtype=torch.float32):
    model = small_model(dtype=dtype)
    train(model, make(model.parameters()), dtype=dtype)
    return list(model.parameters())


def offloaded(parameters, optimizer_class=fastadam.torch.AdamW, **options):
    optimizer = CPUOffloadOptimizer(parameters, optimizer_class, minimal_size=SMALL, **OPTIONS, **options)
    kinds = {type(inner) for inner in (*optimizer.optim_dict.values(), optimizer.d_opt)}
    assert kinds == {optimizer_class}
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_offloading_changes_no_bit(dtype):
    """With stochastic rounding it would: random words are those of a parameter's place in its optimizer."""
    plain = trained(lambda parameters: fastadam.torch.AdamW(parameters, rounding="nearest", **OPTIONS), dtype)
    assert_equal(trained(lambda parameters: offloaded(parameters, rounding="nearest"), dtype), plain)


def test_the_same_training_as_with_torch():
    assert_close(trained(offloaded), trained(lambda parameters: offloaded(parameters, torch.optim.AdamW)))


def test_saved_state():
    first, second = small_model(dtype=torch.float32), small_model(dtype=torch.float32)
    optimizers = [offloaded(model.parameters()) for model in (first, second)]
    train(first, optimizers[0], range(5), torch.float32)
    second.load_state_dict(first.state_dict())
    for parameter, kept in optimizers[1].param_d2h_map.items():
        kept.copy_(parameter.detach())
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip((first, second), optimizers, strict=True):
        train(model, optimizer, range(5, 10), torch.float32)
    assert_equal(list(first.parameters()), list(second.parameters()))
