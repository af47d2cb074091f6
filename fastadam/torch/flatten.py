"""`flatten_`: the parameters of a module in one flat tensor, of which they are views."""

from itertools import pairwise

import torch
from torch import Tensor

from fastadam.memory.arrays import ALIGNMENT
from fastadam.torch.lists import check_plain
from fastadam.torch.tensors import layout_of


def flatten_(module: torch.nn.Module, grads: bool = False) -> list[Tensor]:
    """Move the parameters of a module into one flat tensor for each dtype and device, and make them views of it.

    A step of an optimizer then meets one range of memory in place of thousands of tensors, and so do a norm, an average
    or an all-reduce that are given the flat tensors. It is for many small parameters: large ones gain nothing. The
    parameters stay the same objects, with their values, shapes and order of axes; optimizers and hooks that have them
    keep them. Parameters that share their memory stay tied, and with `grads=True` share one gradient, the sum. Those
    that do not require a gradient stay where they are.

    Each parameter begins at a multiple of 64 bytes; the gaps between are zeros, which every member of the Adam family
    leaves at zero. So the flat tensors can be stepped in place of the parameters:

        optimizer = torch.optim.AdamW(fastadam.torch.flatten_(module, grads=True))

    What it breaks. Whatever gives a parameter other memory takes it out of the flat tensor in silence, and trains on
    without it:

    - `module.to()`, `.half()`, `.cuda()`, `load_state_dict(assign=True)`, `share_memory()`, weight normalisation and
      pruning, `flatten_parameters()` of recurrent layers on CUDA. Call them before; afterwards call `flatten_` again.
    - FSDP, DeepSpeed and ZeRO, which flatten and shard parameters themselves: do not combine them with this.
    - DDP copies no parameters and works, but with `gradient_as_bucket_view=True` it puts its own gradients in the place
      of those of `grads=True`.
    - `zero_grad()`, of module and optimizer, drops the gradients of `grads=True`: call
      `zero_grad(set_to_none=False)`, or `flat.grad.zero_()`.
    - `copy.deepcopy(module)` copies each parameter by itself: the copy is right, and not flat.
    - `torch.save` of one parameter writes the whole flat tensor. A whole `state_dict()` is written as before. Formats
      that refuse tensors with shared storage want clones.

    Args:
        module: Its parameters must be dense tensors. Nothing is changed in place but where they, and with `grads` their
            gradients, lie.
        grads: Whether gradients too are views, of one flat tensor beside each: `flat.grad`. A gradient that is there is
            copied, a missing one is zeros from then on.

    Returns:
        The flat tensors, 1-D, in the order of the first parameter of each. They do not require a gradient themselves.

    Raises:
        TypeError, ValueError: `module` is no module, or has a parameter that is lazy, sparse, on the meta device, of a
            subclass such as DTensor, or not dense, or that overlaps another one in part. Nothing has been changed then.

    Example:
        >>> import torch, fastadam.torch
        >>> module = torch.nn.Linear(3, 2)
        >>> (flat,) = fastadam.torch.flatten_(module, grads=True)
        >>> module(torch.ones(1, 3)).sum().backward()
        >>> flat.grad[:6].tolist(), module.bias.grad.tolist()
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0])
        >>> flat.data_ptr() == module.weight.data_ptr()
        True
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")
    if not isinstance(grads, bool):
        raise TypeError(f"`grads` must be True or False, got {grads!r}")
    homes = _homes(module, grads)
    groups: dict[tuple, list[list[Tensor]]] = {}
    for tied in homes:
        groups.setdefault((tied[0].dtype, tied[0].device), []).append(tied)
    # All is allocated and copied before the first parameter is re-bound.
    moves = [_moved(group, grads) for group in groups.values()]
    for flat, starts, group in moves:
        for start, tied in zip(starts, group, strict=True):
            for parameter in tied:
                parameter.data = _view(flat, start, parameter)
                if grads:
                    parameter.grad = _view(flat.grad, start, parameter)
    return [flat for flat, _, _ in moves]


def _homes(module, grads):
    """The parameters that require a gradient, those that share their memory together; raise if one cannot be moved."""
    homes: dict[tuple, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        label = f"module.{name}"
        if not parameter.requires_grad:
            continue
        _check(parameter, label)
        if grads and parameter.grad is not None:
            check_plain(parameter.grad, f"{label}.grad")
        alike = parameter.data_ptr(), parameter.device, parameter.dtype, parameter.shape, parameter.stride()
        key = alike if parameter.numel() else (id(parameter),)
        homes.setdefault(key, []).append(parameter)
    _check_apart(list(homes.values()), {id(each): name for name, each in module.named_parameters()})
    return list(homes.values())


def _check(parameter, label):
    if torch.nn.parameter.is_lazy(parameter):
        raise ValueError(f"`{label}` must have a shape, got a lazy parameter: call the module once before")
    check_plain(parameter, label)
    if parameter.is_meta:
        raise ValueError(f"`{label}` must have memory, got a parameter on the meta device")
    if layout_of(parameter) is None:
        raise ValueError(
            f"`{label}` must be dense, got shape {tuple(parameter.shape)} with strides {parameter.stride()}"
        )


def _check_apart(homes, names):
    """Raise if parameters share a part of their memory."""
    firsts = sorted(
        (tied[0] for tied in homes if tied[0].numel()), key=lambda each: (str(each.device), each.data_ptr())
    )
    for before, after in pairwise(firsts):
        end = before.data_ptr() + before.numel() * before.element_size()
        if before.device == after.device and end > after.data_ptr():
            raise ValueError(
                f"`module.{names[id(after)]}` must not overlap `module.{names[id(before)]}`, unless it is the same "
                "tensor, got parameters that share memory"
            )


def _moved(group, grads):
    """A flat tensor with the values of the parameters, where each of them starts, and the parameters."""
    like, starts, stop = group[0][0], [], 0
    gap = ALIGNMENT // like.element_size()
    for parameter, *_ in group:
        starts.append(-(-stop // gap) * gap)
        stop = starts[-1] + parameter.numel()
    with torch.no_grad():
        flat = torch.zeros(stop, dtype=like.dtype, device=like.device)
        if grads:
            flat.grad = torch.zeros_like(flat)
        for start, (parameter, *_) in zip(starts, group, strict=True):
            _view(flat, start, parameter).copy_(parameter)
        for start, tied in zip(starts, group, strict=True):
            for parameter in tied:
                if grads and parameter.grad is not None:
                    _view(flat.grad, start, parameter).add_(parameter.grad)
    return flat, starts, group


def _view(flat, start, parameter):
    """The view of `flat` from element `start` on that lies as the parameter does."""
    return flat.as_strided(parameter.shape, parameter.stride(), start)
