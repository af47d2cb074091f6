"""DeepSpeed's ZeRO-1, ZeRO-2 and its CPU offload, on its CPU accelerator in two processes."""

import pytest
import ranks
import torch
from training import OPTIONS, assert_equal, assert_trains_as_torch, batch, copies, small_model

import fastadam.torch

pytest.importorskip("deepspeed")


def engine_of(optimizer_class, stage, offload, seed=0):
    import deepspeed

    # An extension for sums over processes that share memory: it would be compiled for half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    zero = {"stage": stage, **({"offload_optimizer": {"device": "cpu"}} if offload else {})}
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.5,
    }
    model = small_model(seed, torch.float32)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer_class(model.parameters(), **OPTIONS), config=config
    )
    return engine


def train(engine, numbers):
    for number in numbers:
        inputs, targets = batch(number, torch.float32)
        engine.backward(torch.nn.functional.mse_loss(engine(inputs), targets))
        engine.step()
    return list(engine.module.parameters())


def zero(stage, offload):
    assert_trains_as_torch(lambda kind: train(engine_of(kind, stage, offload), ranks.own_batches(10)))


@pytest.mark.parametrize(("stage", "offload"), [(1, False), (2, False), (2, True)], ids=["1", "2", "2-offload"])
def test_zero(stage, offload):
    ranks.run(zero, stage, offload)


def resume(folder):
    engine, other = engine_of(fastadam.torch.AdamW, 2, False), engine_of(fastadam.torch.AdamW, 2, False, seed=1)
    train(engine, ranks.own_batches(5))
    engine.save_checkpoint(folder, tag="half")
    expected = copies(train(engine, ranks.own_batches(5)))
    other.load_checkpoint(folder, tag="half")
    assert_equal(train(other, ranks.own_batches(5)), expected)


def test_a_checkpoint_is_taken_up(tmp_path):
    ranks.run(resume, tmp_path)
