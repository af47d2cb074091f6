"""DeepSpeed's CPUAdam, whose kernel the C++ compiler builds at first use: half a minute."""

import os
import sysconfig
from unittest.mock import patch

from fastadam.bench.contender import BETAS, EPS, LR, Built, Contender
from fastadam.bench.contenders.torch_adam import values, with_gradients


def build(params, grads, kind):
    tensors, feed = with_gradients(params, grads)
    optimizer = made(list(tensors.values()), lr=LR, betas=BETAS, eps=EPS, adamw_mode=False)
    return Built(optimizer.step, lambda: values(tensors), feed)


def made(params, **settings):
    """DeepSpeed's optimizer of these tensors."""
    # If the environment is not activated, its ninja is not on the path; another version of ninja would build anew.
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    with patch.dict(os.environ, PATH=path, DS_ACCELERATOR="cpu"):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(params, **settings)


CONTENDERS = (Contender("DeepSpeed CPUAdam", build, needs=("deepspeed", "torch", "ninja"), threads="DeepSpeed"),)
