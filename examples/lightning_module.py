"""A Lightning module that fastadam trains: the optimizer is one line of `configure_optimizers`.

    python examples/lightning_module.py    train a classifier of digits (needs pytorch-lightning and scikit-learn)

Lightning takes the optimizer as it takes torch's own: schedules, its own clipping, checkpoints. Here the step clips and
keeps an average of the weights in the same pass, in place of `gradient_clip_val` and a callback that averages.
"""

import logging
import tempfile
import warnings

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import fastadam.torch

EPOCHS, HELD_OUT = 8, 400


class Digits(LightningModule):
    """A network with one hidden layer."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))

    def forward(self, images):
        return self.layers(images)

    def training_step(self, batch, _):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        optimizer = fastadam.torch.AdamW(self.parameters(), lr=1e-2, max_grad_norm=1.0, ema_decay=0.99, ema_warmup=True)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]

    def averages(self):
        """The average of each parameter, by name, for `torch.func.functional_call`."""
        state = self.optimizers().state
        return {name: state[p]["ema"] for name, p in self.named_parameters()}


def digits():
    """Images in [0, 1] and labels, for training and held out."""
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    data = TensorDataset(images.float() / 16, labels)
    return torch.utils.data.random_split(data, [len(data) - HELD_OUT, HELD_OUT])


def accuracy(module, params, data):
    images, labels = data[:]
    with torch.no_grad():
        return (torch.func.functional_call(module, params, images).argmax(1) == labels).float().mean().item()


def fitted(folder, epochs=EPOCHS):
    """A trained module, and the data that it has not seen."""
    seed_everything(0, verbose=False)
    training, held_out = digits()
    module = Digits()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(training, batch_size=64, shuffle=True))
    return module, held_out


def main():
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # that there is one worker, say
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        module, held_out = fitted(folder)
    print(f"held-out digits: {accuracy(module, {}, held_out):.1%} right by the weights,", end=" ")
    print(f"{accuracy(module, module.averages(), held_out):.1%} by their average")


if __name__ == "__main__":
    main()
