"""The gradients of a step, found where they lie; copies of those in another order; rows for sparse ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastadam.memory.advice import has_memory, tensor_problem
from fastadam.step.gather import Gradients
from fastadam.step.rows import Rows, ordered_rows
from fastadam.torch.parameter import TensorParameter
from fastadam.torch.tensors import (
    array_over,
    check_new_tensors,
    check_part,
    is_sharded,
    laid_like,
    layout_of,
    local,
    placed,
)


def found(
    params: Sequence[Any],
    parameters: Sequence[TensorParameter],
    labels: Sequence[str],
    backend: Any,
    *,
    as_arrays: bool,
    copies: bool = False,
) -> Gradients:
    """The gradients of `params` as they are now, checked one by one; `labels` are their names in messages.

    `as_arrays`: hand them over as arrays, of which an error can tell what is not finite. `copies`: copy all.
    """
    check_new_tensors()
    addresses = np.zeros(len(parameters), np.int64)
    held: list[Any] = [None] * len(parameters)
    rows: dict[int, Rows] = {}
    copied = []
    for member, (p, parameter, label) in enumerate(zip(params, parameters, labels, strict=True)):
        gradient = p.grad
        if gradient is None:
            continue
        _check(gradient, p, f"{label}.grad")
        if gradient.layout is not torch.strided:
            # A sparse gradient that is zeroed names no rows.
            copied.append(gradient)
            if copies:
                gradient = gradient.clone()
            held[member] = rows[member] = _rows(gradient, parameter, f"{label}.grad")
            addresses[member] = backend.address(rows[member].values) or 1
            continue
        if placed(gradient) != placed(p):
            check_part(gradient, local(gradient), f"{label}.grad")
            copied.append(local(gradient))
            gradient = gradient.redistribute(p.device_mesh, p.placements)
        check_part(gradient, parameter.tensors["p"], f"{label}.grad")
        gradient = local(gradient)
        if not has_memory(gradient):
            raise TypeError(f"`{label}.grad` {tensor_problem(gradient)}")
        if gradient.is_neg():
            copied.append(gradient)
            gradient = gradient.resolve_neg()
        if copies or layout_of(gradient) != parameter.layout:
            copied.append(gradient)
            gradient = laid_like(gradient, parameter.tensors["p"])
        addresses[member] = gradient.data_ptr() or 1
        held[member] = parameter.layout.view(array_over(gradient)) if as_arrays else gradient
    return Gradients(addresses, rows, held, copied)


def _check(gradient, p, label):
    """Raise unless `gradient` goes with parameter `p`."""
    if gradient.dtype is not p.dtype:
        raise TypeError(f"`{label}` must be {p.dtype} like its parameter, got {gradient.dtype}")
    if gradient.shape != p.shape:
        raise ValueError(f"`{label}` must have shape {tuple(p.shape)} like its parameter, got {tuple(gradient.shape)}")
    if gradient.device != p.device:
        raise ValueError(f"`{label}` must be on {p.device} like its parameter, got {gradient.device}")
    if is_sharded(gradient) != is_sharded(p):
        raise TypeError(f"`{label}` must be a {type(p).__name__} like its parameter, got a {type(gradient).__name__}")
    if gradient.layout is not torch.strided and (gradient.layout is not torch.sparse_coo or gradient.sparse_dim() != 1):
        kind = f"{gradient.sparse_dim()} sparse axes" if gradient.layout is torch.sparse_coo else f"{gradient.layout}"
        raise ValueError(
            f"`{label}` must be dense, or sparse COO in its first axis alone, got {kind}: pass `x.to_dense()`"
        )


def _rows(gradient, parameter, label):
    """A sparse gradient as rows; torch adds up those that occur twice."""
    gradient = gradient.coalesce()
    indices = gradient.indices()[0].cpu().numpy()
    return ordered_rows(indices, array_over(gradient.values().contiguous()), parameter, label)
