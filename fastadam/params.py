"""The `params` argument, which is checked and becomes entries: a container, one flat array, or a list of groups."""

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from fastadam.memory.arrays import (
    as_array,
    check_aligned,
    check_dtype,
    check_flat,
    check_writable,
    device,
    is_of_torch,
    namespace,
)
from fastadam.memory.layout import Layout, layout_of, plain
from fastadam.memory.owners import bounds


class Entry(NamedTuple):
    """One parameter as it was handed over.

    Attributes:
        name: The key in a mapping, the name of a (name, array) pair, or the position.
        label: What error messages call it.
        original: The object that was passed.
        array: `original` as a NumPy or CuPy array.
        container: The mapping or list that has it; None if it cannot be looked up again.
        key: Its key or index in `container`.
        alone: Whether it is the one flat array of a group.
        references: How many references to `original` `array` needs.
        watched: (container, key, object) that must stay as it is, where that is not the array: a (name, array) pair.
    """

    name: Hashable
    label: str
    original: Any
    array: Any
    container: Any = None
    key: Hashable = None
    alone: bool = False
    references: int = 0
    watched: tuple[Any, Hashable, Any] | None = None


Group = tuple[list[Entry], dict[str, Any]]


def parse_groups(params: Any) -> list[Group]:
    """Split `params` into groups, each with its entries and its own settings.

    Parameters without a name are named by their position among all parameters without a name, as in torch.
    """
    params = _listed(params, "params")
    if not isinstance(params, Sequence) or not any(isinstance(entry, Mapping) for entry in params):
        return [parse_group({"params": params}, "params", 0)]
    groups: list[Group] = []
    for index, specification in enumerate(params):
        label = f"params[{index}]"
        if not isinstance(specification, Mapping) or "params" not in specification:
            raise TypeError(f"`{label}` must be a dict with the key 'params', like every group of the list")
        unnamed = sum(isinstance(entry.name, int) for entries, _ in groups for entry in entries)
        groups.append(parse_group(specification, f"{label}['params']", unnamed))
    return groups


def parse_group(specification: Mapping[str, Any], label: str, first_unnamed: int) -> Group:
    """Parse one group. Error messages call its parameters `label`; `first_unnamed` is the first free position."""
    settings = dict(specification)
    entries = _entries(_listed(settings.pop("params"), label), label, first_unnamed)
    if not entries:
        raise ValueError(f"`{label}` must hold at least one parameter, got none")
    return entries, settings


def _listed(params, label):
    """`params`, or a tuple of its items if it can only be iterated."""
    check_ordered(params, label)
    if isinstance(params, (Mapping, Sequence)) or not isinstance(params, Iterable) or _is_array(params):
        return params
    return tuple(params)


def check_ordered(params: Any, label: str) -> None:
    """Raise if `params` is a set, of which positions are other ones in the next run."""
    if isinstance(params, (set, frozenset)):
        raise TypeError(
            f"`{label}` must have an order, got a {type(params).__name__}: a saved state would go to other parameters "
            "in the next run. Pass a list"
        )


def _is_array(value):
    return any(hasattr(value, name) for name in ("shape", "__dlpack__", "__array__", "__array_interface__"))


def _entries(params, label, first_unnamed):
    if isinstance(params, Mapping):
        return [_entry(key, f"{label}[{key!r}]", params[key], params, key) for key in params]
    if isinstance(params, Sequence) and not isinstance(params, (str, bytes)):
        container = params if isinstance(params, MutableSequence) else None
        return [
            _entry(original[0], f"{label}[{index}][1]", original[1])._replace(watched=(container, index, original))
            if isinstance(original, tuple) and len(original) == 2 and isinstance(original[0], str)
            else _entry(first_unnamed + index, f"{label}[{index}]", original, container, index)
            for index, original in enumerate(params)
        ]
    array = as_array(params, label)
    check_dtype(array, label)
    if array.ndim != 1:
        raise ValueError(
            f"`{label}` must be 1-D where it is one array, got shape {array.shape}: an array of another shape is "
            "trained in a list or a dict"
        )
    check_flat(array, label)
    return [Entry(first_unnamed, label, params, array, alone=True)]


def _entry(name, label, original, container=None, key=None):
    if isinstance(original, Mapping):
        raise TypeError(
            f"`{label}` must be an array, got a {type(original).__name__}: dicts are not nested here. Pass a flat one, "
            "such as {'layer.weight': array, ...}"
        )
    before = sys.getrefcount(original)
    array = as_array(original, label)
    references = sys.getrefcount(original) - before
    check_dtype(array, label)
    if not isinstance(original, np.generic):
        check_writable(array, label)
        _check_own_memory(array, original, label)
    if not isinstance(array, np.ndarray):
        check_aligned(array, label)
    return Entry(name, label, original, array, container, key, references=references)


def _check_own_memory(array, original, label):
    """Raise if `array` is a copy of `original`, which would not train."""
    if isinstance(original, type(array)) or is_of_torch(original) or not array.size:
        return
    if bounds(as_array(original, label)) != bounds(array):
        raise TypeError(
            f"`{label}` must give its own memory through DLPack, got a copy of {type(original).__name__}: pass a NumPy "
            "array"
        )


def excluded_names(groups: list[Group], predicate: Callable[[Hashable], Any] | None, *, required: bool) -> set:
    """The names for which `predicate` is true; with `required`, there must be at least one."""
    if predicate is None:
        return set()
    names = [entry.name for entries, _ in groups for entry in entries]
    try:
        excluded = {name for name in names if predicate(name)}
    except Exception as error:
        raise TypeError(f"`exclude_from_weight_decay` must take the names {names}, got {error!r} from it") from error
    if required and not excluded:
        raise ValueError(f"`exclude_from_weight_decay` must be true for a parameter at least, got none of {names}")
    return excluded


def check_together(entries: list[Entry], names: Iterable[Hashable], occupied: list[Any]) -> None:
    """Raise unless `entries` can train together, and beside the earlier parameters, which have these `names`.

    `occupied` are the arrays of all earlier parameters, and all buffers.
    """
    seen = set(names)
    for entry in entries:
        if entry.name in seen:
            raise ValueError(f"`{entry.label}` must have a name of its own, got {entry.name!r} twice")
        seen.add(entry.name)
    devices = [(array, "the other parameters") for array in occupied[:1]]
    devices += [(entry.array, f"`{entry.label}`") for entry in entries]
    for array, label in devices[1:]:
        if device(array) != device(devices[0][0]):
            raise ValueError(
                f"{label} must be on {device(devices[0][0])} like {devices[0][1]}, got {device(array)}: "
                "one optimizer works on one device"
            )
    labelled = [("the parameters and buffers of this optimizer", array) for array in occupied]
    _check_no_shared_memory(labelled + [(f"`{entry.label}`", entry.array) for entry in entries])


def _check_no_shared_memory(labelled):
    spans = [(*bounds(array), position, array) for position, (_, array) in enumerate(labelled) if array.size]
    open_ended: list[tuple] = []
    for low, high, position, array in sorted(spans, key=itemgetter(0)):
        open_ended = [entry for entry in open_ended if entry[0] > low]
        for _, other_position, other in open_ended:
            if namespace(array).shares_memory(array, other):
                earlier, later = sorted((position, other_position))
                raise ValueError(
                    f"{labelled[later][0]} must not share memory with {labelled[earlier][0]}: "
                    "a parameter listed twice would be updated twice"
                )
        open_ended.append((high, position, array))


def layout_in_place(entry: Entry) -> Layout:
    """The layout of a parameter that is stepped where it lies; raise if it cannot be."""
    remedy = "; `flat=True` packs a copy of it"
    if isinstance(entry.original, np.generic):
        raise TypeError(
            f"`{entry.label}` must be an array, got the NumPy scalar {entry.original!r}, which cannot be written in "
            f"place: use `np.array(x)`{remedy}"
        )
    layout = layout_of(entry.array)
    if layout is None:
        raise ValueError(
            f"`{entry.label}` must be dense to be stepped where it lies, got strides {entry.array.strides} for shape "
            f"{entry.array.shape} of {entry.array.dtype}{remedy}"
        )
    check_aligned(entry.array, entry.label, " to be stepped where it lies", remedy)
    return layout


def layout_when_packed(entry: Entry) -> Layout:
    """The layout of a parameter that is packed; raise if its container cannot take the view of it."""
    if not isinstance(entry.container, (MutableMapping, MutableSequence)):
        raise TypeError(
            f"`{entry.label}` must be in a dict or a list with `flat=True`: its entries are re-bound to views of the "
            "flat buffer, so it must be mutable and kept"
        )
    return plain(entry.array.shape)
