"""DeepSpeed's CPUAdam, whose kernel the C++ compiler builds at first use: half a minute."""

import os
import sysconfig
from unittest.mock import patch

from fastadam.bench.contender import BETAS, EPS, LR, Built, Contender


def build(params, grads, kind):
    import torch

    tensors = {name: torch.nn.Parameter(torch.from_numpy(p)) for name, p in params.items()}
    for name, tensor in tensors.items():
        tensor.grad = torch.from_numpy(grads[name])
    # Of an environment that is not activated, ninja is not on the path; one of another version would build anew.
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    with patch.dict(os.environ, PATH=path, DS_ACCELERATOR="cpu"):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer = DeepSpeedCPUAdam(list(tensors.values()), lr=LR, betas=BETAS, eps=EPS, adamw_mode=False)

    def feed(gradients):
        for name, tensor in tensors.items():
            tensor.grad.copy_(torch.from_numpy(gradients[name]))

    return Built(optimizer.step, lambda: {name: tensor.detach().numpy() for name, tensor in tensors.items()}, feed)


CONTENDERS = (Contender("DeepSpeed CPUAdam", build, needs=("deepspeed", "torch", "ninja"), threads="DeepSpeed"),)
