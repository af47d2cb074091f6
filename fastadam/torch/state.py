"""What is kept of a parameter: the tensors of its entry in `state`, made, adopted, or brought to where they fit."""

from collections.abc import Mapping
from typing import Any

import torch

from fastadam.kernels.texts.formats import Formats
from fastadam.memory.advice import tensor_problem
from fastadam.memory.conversion import groups_of
from fastadam.memory.formats import SMALL
from fastadam.memory.layout import Layout
from fastadam.settings.options import Options, moment_dtypes
from fastadam.torch.counters import new_counters
from fastadam.torch.tensors import (
    DTYPES,
    NAMES,
    arithmetic_of,
    check_part,
    is_sharded,
    laid_like,
    layout_of,
    local,
    number_of,
    placed,
)


def carried_keys(options: Options) -> dict[str, float]:
    """State key -> first value, for the numbers that a parameter carries from step to step."""
    return {"step": 0.0, **{each.state: each.first for each in options.family_member.carried.values()}}


def kept_tensors(
    entry: dict[str, Any], p: Any, layout: Layout, group: Mapping[str, Any], options: Options, label: str
) -> dict[str, Any]:
    """Flat array -> tensor, for all that a step of `p` reads and writes beside the gradient.

    What is not in `entry` is put there: zeros, in the dtype of `p` unless `moment_dtype` says otherwise. What is there
    already is taken in the dtype in which it is; it follows the parameter to another device or memory order. All are
    DTensors if `p` is one, in the same parts; `layout` is that of the part in this process.
    """
    tensors = {"p": p}
    if options.master_weights:
        kept = _kept(entry, "remainder", p, layout, label, (torch.int16,), lambda: _zeros(p, torch.int16))
        tensors["remainder"] = kept
    first, second = moment_dtypes(group.get("moment_dtype", options.moment_dtype))
    for flat, buffer in options.family_member.buffers.items():
        if flat == "v_max" and not group.get("amsgrad"):
            continue
        dtype = _moment_dtype(p, first if buffer.signed else second, coded=buffer.speed is not None)
        key = buffer.state
        if is_sharded(p) and (dtype is torch.uint8 or f"{key}_exponent" in entry):
            raise ValueError(
                f"`moment_dtype` must not be 'float8' for DTensors, got one for {label}: groups of elements with one "
                "exponent would lie across parts"
            )
        if key not in entry and dtype is torch.uint8:
            entry[f"{key}_exponent"] = torch.zeros(groups_of(p.numel()), dtype=torch.uint8, device=p.device)
        allowed = (*NAMES, torch.uint8) if f"{key}_exponent" in entry else tuple(NAMES)
        tensors[flat] = _kept(entry, key, p, layout, label, allowed, lambda dtype=dtype: _zeros(p, dtype))
        if tensors[flat].dtype is torch.uint8:
            tensors[f"{flat}_exponent"] = _exponents(entry, key, p, label)
    if options.ema_decay is not None:
        wide = arithmetic_of(p)
        tensors["ema"] = _kept(entry, "ema", p, layout, label, (wide,), lambda: p.detach().to(wide, copy=True))
    if options.copy_dtype is not None:
        dtype = DTYPES[options.copy_dtype]
        tensors["copy"] = _kept(entry, "copy", p, layout, label, (dtype,), lambda: p.detach().to(dtype))
    return tensors


def _moment_dtype(p, chosen, coded):
    """The dtype of a new moment."""
    if chosen is None:
        return p.dtype
    if chosen != "float8":
        return DTYPES[chosen]
    return torch.uint8 if coded and p.numel() >= SMALL and p.dtype is not torch.float64 else arithmetic_of(p)


def _zeros(p, dtype):
    return torch.zeros_like(p, dtype=dtype, requires_grad=False, memory_format=torch.preserve_format)


def _kept(entry, key, p, layout, label, allowed, make):
    """The tensor `entry[key]`, which `make()` makes if there is none, where and as it fits the parameter."""
    value = entry[key] if key in entry else make()
    label = f"state of {label}['{key}']"
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{label}` must be a tensor, got {type(value).__name__}")
    problem = tensor_problem(local(value))
    if problem is not None:
        raise TypeError(f"`{label}` {problem}")
    if value.shape != p.shape:
        raise ValueError(f"`{label}` must have shape {tuple(p.shape)} like its parameter, got {tuple(value.shape)}")
    if placed(value) != placed(p):
        raise ValueError(
            f"`{label}` must be split like its parameter, over processes (mesh and placements) {placed(p)}, got "
            f"{placed(value)}"
        )
    check_part(value, local(p), label)
    if value.device != p.device:
        value = value.to(p.device)
    wide = arithmetic_of(p)
    # Float64 goes with float64 alone. Narrower moments of a float32 parameter, and wider ones of bfloat16, stay.
    if value.dtype in NAMES and (value.dtype not in allowed or torch.float64 in (wide, value.dtype)):
        value = value.to(wide)
    if value.dtype not in allowed:
        raise TypeError(f"`{label}` must be one of {', '.join(map(str, allowed))}, got {value.dtype}")
    if layout_of(local(value)) != layout:
        if value.dtype not in NAMES:
            raise ValueError(
                f"`{label}` must lie in the memory order of its parameter, of strides {p.stride()}, got strides "
                f"{value.stride()}: its elements are counted in that order"
            )
        value = laid_like(value, p)
    if entry.get(key) is not value:
        entry[key] = value
    return value


def _exponents(entry, key, p, label):
    key, shape = f"{key}_exponent", (groups_of(p.numel()),)
    value = entry.get(key)
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.uint8 or tuple(value.shape) != shape:
        found = f"{value.dtype}, {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise ValueError(f"`state of {label}['{key}']` must be uint8 of shape {shape} beside its codes, got {found}")
    problem = tensor_problem(value)
    if problem is not None:
        raise TypeError(f"`state of {label}['{key}']` {problem}")
    if value.device != p.device or not value.is_contiguous():
        entry[key] = value = value.to(p.device).contiguous()
    return value


def formats_of(tensors: Mapping[str, Any], options: Options) -> Formats:
    """How the tensors of a parameter, by flat array, are stored; its gradient is as the parameter."""
    member, native = options.family_member, arithmetic_of(tensors["p"])
    stochastic = options.rounding == "stochastic"
    named = {"g": "native" if tensors["p"].dtype is native else NAMES[tensors["p"].dtype]}
    for flat, tensor in tensors.items():
        if flat == "copy":
            named[flat] = NAMES[tensor.dtype]
        elif tensor.dtype is torch.uint8 and not flat.endswith("_exponent"):
            named[flat] = member.format(flat, "float8")
        elif tensor.dtype in NAMES:
            dtype = "native" if tensor.dtype is native else NAMES[tensor.dtype]
            named[flat] = member.format(flat, dtype, stochastic=stochastic)
    if "remainder" in tensors:
        named["p"] = "split"
    return Formats(**named)


def count(entries: dict[str, dict[str, Any]], options: Options) -> None:
    """Give `entries`, by the labels of their parameters, the numbers that they lack, in one array for each.

    Those on a device, or that are no plain tensors, follow.
    """
    for key, first in carried_keys(options).items():
        others = {label: entry for label, entry in entries.items() if not _is_counter(entry.get(key))}
        numbers = [number_of(entry.get(key, first), f"state of {label}['{key}']") for label, entry in others.items()]
        for entry, tensor in zip(others.values(), new_counters(numbers), strict=True):
            entry[key] = tensor


def _is_counter(value):
    """Whether a value is a tensor that is counted where it lies."""
    return (
        type(value) is torch.Tensor
        and value.numel() == 1
        and value.device.type == "cpu"
        and value.dtype in (torch.float32, torch.float64)
        and tensor_problem(value) is None
    )
