"""Lightning: automatic optimization with clipping and a schedule, and a checkpoint that is taken up."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from training import OPTIONS, assert_equal, assert_trains_as_torch, batch, small_model

import fastadam.torch

pytest.importorskip("pytorch_lightning")

from pytorch_lightning import LightningModule, Trainer


class Regression(LightningModule):
    def __init__(self, optimizer_class, seed=0):
        super().__init__()
        self.layers, self.optimizer_class = small_model(seed), optimizer_class

    def training_step(self, batch, _):
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.layers(inputs), targets)

    def configure_optimizers(self):
        optimizer = self.optimizer_class(self.parameters(), **OPTIONS)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def fitted(module, folder, epochs, **options):
    trainer = Trainer(
        accelerator="cpu",
        precision="64-true",
        max_epochs=epochs,
        gradient_clip_val=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    data = TensorDataset(*map(torch.cat, zip(*map(batch, range(10)), strict=True)))
    trainer.fit(module, DataLoader(data, batch_size=4), **options)
    return trainer


def test_lightning(tmp_path):
    def trained(optimizer_class):
        module = Regression(optimizer_class)
        fitted(module, tmp_path, epochs=2)
        return list(module.parameters())

    assert_trains_as_torch(trained)


def test_a_checkpoint_is_taken_up(tmp_path):
    whole, resumed = Regression(fastadam.torch.AdamW), Regression(fastadam.torch.AdamW, seed=1)
    fitted(whole, tmp_path, epochs=3)
    fitted(Regression(fastadam.torch.AdamW), tmp_path, epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    fitted(resumed, tmp_path, epochs=3, ckpt_path=tmp_path / "half.ckpt")
    assert_equal(list(whole.parameters()), list(resumed.parameters()))
