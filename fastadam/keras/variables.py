"""Keras' variables as tensors that can be stepped where they lie, and gradients that go with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch

from fastadam.keras.host import keras
from fastadam.torch.tensors import NAMES


def check_variables(variables: Sequence[Any]) -> None:
    """Raise unless all can be stepped; the message names the one that cannot."""
    for index, variable in enumerate(variables):
        if not isinstance(variable, keras.Variable):
            kind = type(variable)
            raise TypeError(
                f"`variables[{index}]` must be a keras.Variable of the torch backend, got "
                f"{kind.__module__}.{kind.__qualname__}"
            )
        if getattr(variable, "overwrite_with_gradient", False):
            continue
        tensor = variable.value
        if tensor.device.type not in ("cpu", "cuda"):
            raise TypeError(f"`{variable.path}` must be in CPU or CUDA memory, got {tensor.device}")
        if tensor.dtype not in NAMES:
            raise TypeError(
                f"`{variable.path}` must be float32, float64, bfloat16 or float16, got "
                f"{str(tensor.dtype).removeprefix('torch.')}"
            )


def gradient_like(gradient: Any, tensor: Any, path: str) -> Any:
    """`gradient` as a tensor of the dtype of `tensor`, to which it is cast as by Keras; raise if it does not fit."""
    if not isinstance(gradient, torch.Tensor):
        gradient = keras.ops.convert_to_tensor(gradient)
    if gradient.shape != tensor.shape:
        raise ValueError(f"the gradient of `{path}` must have shape {tuple(tensor.shape)}, got {tuple(gradient.shape)}")
    if gradient.device != tensor.device:
        raise ValueError(f"the gradient of `{path}` must be on {tensor.device}, got {gradient.device}")
    return gradient if gradient.dtype is tensor.dtype else gradient.to(tensor.dtype)


@contextmanager
def as_gradients(tensors: Sequence[Any], gradients: Sequence[Any]) -> Iterator[None]:
    """Let `gradients` be the `grad` of `tensors` within, and afterwards what was before."""
    before = [tensor.grad for tensor in tensors]
    if all(map(is_, before, gradients)):  # in `fit`
        yield
        return
    try:
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient
        yield
    finally:
        for tensor, gradient in zip(tensors, before, strict=True):
            tensor.grad = gradient
