"""Lists of torch tensors on the CPU, checked against one another, as columns of addresses."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadam.memory.advice import tensor_problem
from fastadam.torch.tensors import layout_of

_PLAIN = {Tensor, torch.nn.Parameter}


def checked_lengths(lists: Mapping[str, Any]) -> dict[str, list]:
    """`lists`, whatever iterables they are, as lists; raise unless they are as long as the first."""
    made: dict[str, list] = {}
    for name, given in lists.items():
        if isinstance(given, (Tensor, str, bytes, dict, set, frozenset)) or not hasattr(given, "__iter__"):
            raise TypeError(f"`{name}` must be a list, got {type(given).__name__}")
        made[name] = list(given)
    first, count = next((name, len(made[name])) for name in made)
    for name, entries in made.items():
        if len(entries) != count:
            raise ValueError(f"`{name}` must have {count} entries like `{first}`, got {len(entries)}")
    return made


def checked_shapes(lists: Mapping[str, Sequence[Any]]) -> list[Any]:
    """The shapes of the tensors; raise unless those of one position are dense, on the CPU, and lie alike in memory."""
    try:
        if all(map(_is_usual, lists.values())):
            # The usual case first: the checks one by one take several times as long.
            shapes, *others = [[tensor.shape for tensor in tensors] for tensors in lists.values()]
            if all(other == shapes for other in others):
                return shapes
    except (TypeError, AttributeError, RuntimeError, NotImplementedError):
        pass  # no tensor, or no strided one: below it is named
    (first, leaders), *_ = lists.items()
    for name, tensors in lists.items():
        for index, (tensor, leader) in enumerate(zip(tensors, leaders, strict=True)):
            _check(tensor, f"{name}[{index}]", leader, f"{first}[{index}]")
    return [leader.shape for leader in leaders]


def _is_usual(tensors):
    return set(map(type, tensors)) <= _PLAIN and all(map(_is_cpu, tensors)) and all(map(Tensor.is_contiguous, tensors))


_is_cpu, _is_meta = Tensor.is_cpu.__get__, Tensor.is_meta.__get__


def _check(tensor, label, leader, leader_label):
    check_plain(tensor, label)
    if not tensor.is_cpu:
        raise ValueError(f"`{label}` must be on the CPU, got a tensor on {tensor.device}")
    if tensor.shape != leader.shape:
        raise ValueError(
            f"`{label}` must have shape {tuple(leader.shape)} like `{leader_label}`, got {tuple(tensor.shape)}"
        )
    layout = layout_of(tensor)
    if layout is None:
        raise ValueError(
            f"`{label}` must be contiguous, or dense in another order, got shape {tuple(tensor.shape)} with strides "
            f"{tensor.stride()}"
        )
    if layout != layout_of(leader):
        raise ValueError(
            f"`{label}` must have strides {leader.stride()} like `{leader_label}`, got {tensor.stride()}: its elements "
            "lie in another order"
        )


def check_plain(tensor: Any, label: str) -> None:
    """Raise unless `tensor` is a strided tensor that owns its memory: no subclass, such as DTensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{label}` must be a torch.Tensor, got {type(tensor).__name__}")
    is_local = type(tensor) in _PLAIN or not hasattr(tensor, "to_local")
    problem = tensor_problem(tensor) if is_local and not _is_meta(tensor) else None
    if problem is not None:
        raise TypeError(f"`{label}` {problem}")
    if type(tensor) not in _PLAIN:
        hint = "`x.as_subclass(torch.Tensor)`" if is_local else "what its `to_local()` returns"
        raise TypeError(f"`{label}` must be a plain torch.Tensor, got {type(tensor).__name__}: pass {hint}")


def resolved(lists: dict[str, list], read: str) -> dict[str, list]:
    """`lists`, where the tensors of `read` have their values in memory; raise if others do not.

    A negated view, as of an imaginary part, has the opposite ones there.
    """
    if not any(map(Tensor.is_neg, chain.from_iterable(lists.values()))):
        return lists
    _check_memory_is_values({name: tensors for name, tensors in lists.items() if name != read})
    return lists | {read: list(map(Tensor.resolve_neg, lists[read]))}


def _check_memory_is_values(lists):
    for name, tensors in lists.items():
        for index, tensor in enumerate(tensors):
            check_plain(tensor, f"{name}[{index}]")


def addresses_of(lists: Mapping[str, Sequence[Tensor]]) -> np.ndarray:
    """Where the tensors begin: int64 (tensors of a list, lists); raise if one has no memory."""
    try:
        columns = [list(map(Tensor.data_ptr, tensors)) for tensors in lists.values()]
    except RuntimeError:  # one has no storage
        _check_memory_is_values(lists)
        raise
    if any(0 in column for column in columns):
        _check_memory_is_values(lists)
    return np.array(columns, np.int64).T


def check_memory(
    names: Sequence[str], addresses: np.ndarray, itemsizes: np.ndarray, ranges: np.ndarray, read: str
) -> None:
    """Raise if a tensor is not aligned, or if parts of two tensors, not both in the list `read`, share memory.

    All arrays are of the shape of `addresses`; `itemsizes` are bytes, and `ranges`, (2, ...), where a part begins and
    ends in its tensor, in bytes.
    """
    if (addresses % itemsizes).any():
        index, column = np.argwhere(addresses % itemsizes)[0]
        label = f"{names[column]}[{index}]"
        raise ValueError(f"`{label}` must be aligned to {itemsizes[index, column]} bytes, got a tensor that is not")
    low, high = (ranges + addresses).reshape(2, -1)
    order = low.argsort(kind="stable")
    order = order[high[order] > low[order]]
    low, high, written = low[order], high[order], order % len(names) != names.index(read)
    if _overlaps(low, high, written).any():
        _raise_overlap(names, order, low, high, written)


def _overlaps(low, high, written):
    """Of ranges in the order of `low`, from the second on, those that share memory with one before."""
    before = np.maximum.accumulate(high)[:-1]
    written_before = np.maximum.accumulate(np.where(written, high, 0))[:-1]
    return np.where(written[1:], before, written_before) > low[1:]


def _raise_overlap(names, order, low, high, written):
    """Name the first two, in the order of the lists, of those that must not share memory."""
    pairs = []
    for second in 1 + np.flatnonzero(_overlaps(low, high, written)):
        shared = (high[:second] > low[second]) & (written[:second] | written[second])
        pairs += [sorted((order[first], order[second])) for first in np.flatnonzero(shared)]
    labels = [f"{names[place % len(names)]}[{place // len(names)}]" for place in min(pairs)]
    raise ValueError(f"`{labels[1]}` must not overlap `{labels[0]}`, got tensors that share memory")
