"""The language model in torch, trained by torch's fused AdamW and by `fastadam.torch.AdamW`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import fastadam.torch
from fastadam.demo.models import Task
from fastadam.demo.training import CPU, Run


class TorchRun(Run):
    """Trains with an optimizer of torch: autograd finds the gradients, from the same parameters and batches."""

    def __init__(self, task: Task, seed: int, name: str, make: Callable[..., torch.optim.Optimizer]):
        super().__init__(task, CPU, seed)
        self.name = name
        # They share the memory of `params`, on which the loss is found as for the other runs.
        self._tensors = {key: torch.from_numpy(p).requires_grad_() for key, p in self.params.items()}
        self._optimizer = make(list(self._tensors.values()), lr=task.lr, weight_decay=0.0)

    def find_gradients(self, rows: Any) -> None:
        """Let autograd find the gradients of the loss on the batch of `rows`: `gradients`, in new tensors."""
        x, y = (torch.from_numpy(array[rows].astype("int64")) for array in (self.task.x, self.task.y))
        self.gradients = {}  # so that torch can free the old ones
        self._optimizer.zero_grad()
        _loss(self._tensors, x, y).backward()
        self.gradients = {name: tensor.grad for name, tensor in self._tensors.items()}

    def step(self) -> None:
        """Take one optimizer step with the gradients of the tensors."""
        self._optimizer.step()


def torch_runs(task: Task, seed: int) -> list[Run]:
    """A run with torch's fastest AdamW, and one with ours in its place."""
    return [
        TorchRun(task, seed, "torch, fused", partial(torch.optim.AdamW, fused=True)),
        TorchRun(task, seed, "fastadam.torch", fastadam.torch.AdamW),
    ]


def _loss(params, x, y):
    inputs = torch.nn.functional.embedding(x, params["embedding"]).flatten(1)
    hidden = torch.relu(torch.addmm(params["bias1"], inputs, params["weights1"]))
    return torch.nn.functional.cross_entropy(torch.addmm(params["bias2"], hidden, params["weights2"]), y)
