"""The `params` argument: a dict or list of arrays, one flat array or a list of groups, as checked parts."""

from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping, MutableSequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from fastadam.kernels.texts.formats import Storage
from fastadam.memory.arrays import as_array, check_dtype, check_flat, device, like, namespace
from fastadam.memory.buffers import Buffers, adopt, pack


class Parameter(NamedTuple):
    """One parameter as found in `container[key]`; `container` is None for a flat array, which is adopted."""

    name: Hashable
    label: str
    original: Any
    array: Any
    container: Any
    key: Hashable


Group = tuple[list[Parameter], dict[str, Any]]


def parse_groups(params: Any) -> list[Group]:
    """The groups of `params`, each as its parameters and its own settings.

    Parameters without a name get their position among all of those, as in torch.
    """
    if not isinstance(params, MutableSequence) or not any(isinstance(entry, Mapping) for entry in params):
        return [parse_group({"params": params}, "params", 0)]
    groups: list[Group] = []
    for index, specification in enumerate(params):
        unnamed = sum(isinstance(parameter.name, int) for parameters, _ in groups for parameter in parameters)
        label = f"params[{index}]"
        if not isinstance(specification, Mapping) or "params" not in specification:
            raise TypeError(f"`{label}` must be a dict with the key 'params', like every group of the list")
        groups.append(parse_group(specification, f"{label}['params']", unnamed))
    return groups


def parse_group(specification: Mapping[str, Any], label: str, first_unnamed: int) -> Group:
    """One group: `label` is the name of its parameters in error messages, `first_unnamed` the first free position."""
    settings = dict(specification)
    parameters = _parse(settings.pop("params"), label, first_unnamed)
    if not parameters:
        raise ValueError(f"`{label}` must hold at least one parameter, got none")
    return parameters, settings


def _parse(params, label, first_unnamed):
    if isinstance(params, MutableMapping):
        return [_parameter(key, f"{label}[{key!r}]", params, key) for key in params]
    if isinstance(params, MutableSequence):
        return [_parameter(first_unnamed + key, f"{label}[{key}]", params, key) for key in range(len(params))]
    if isinstance(params, (Mapping, Iterable)) and not hasattr(params, "shape"):
        raise TypeError(
            f"`{label}` must be a dict, a list or one flat array, got {type(params).__name__}: its entries are "
            "re-bound to views of the flat buffer, so it must be mutable and kept"
        )
    array = as_array(params, label)
    check_dtype(array, label)
    check_flat(array, label)
    return [Parameter(first_unnamed, label, params, array, None, None)]


def _parameter(name, label, container, key):
    array = as_array(container[key], label)
    check_dtype(array, label)
    if isinstance(array, np.ndarray) and not isinstance(container[key], np.generic) and not array.flags.writeable:
        raise ValueError(f"`{label}` must be writable, got a read-only array: it is to be trained")
    return Parameter(name, label, container[key], array, container, key)


def exclude(groups: list[Group], predicate: Callable[[Hashable], Any] | None, *, required: bool) -> list[Group]:
    """`groups`, with the parameters for whose name `predicate` is true in groups of their own, without weight decay.

    If `required`, there must be one at least. Without a predicate, the groups stay as they are.
    """
    if predicate is None:
        return groups
    split: list[Group] = []
    names = [parameter.name for parameters, _ in groups for parameter in parameters]
    try:
        excluded = {name for name in names if predicate(name)}
    except Exception as error:
        raise TypeError(f"`exclude_from_weight_decay` must take the names {names}, got {error!r} from it") from error
    if required and not excluded:
        raise ValueError(f"`exclude_from_weight_decay` must be true for a parameter at least, got none of {names}")
    for parameters, settings in groups:
        decayed = [parameter for parameter in parameters if parameter.name not in excluded]
        others = [parameter for parameter in parameters if parameter.name in excluded]
        split += [(decayed, settings)] if decayed else []
        split += [(others, {**settings, "weight_decay": 0.0})] if others else []
    return split


def apart(groups: list[Group], is_small: Callable[[Parameter], bool]) -> list[Group]:
    """`groups`, with the parameters for which `is_small` is true in groups of their own."""
    split: list[Group] = []
    for parameters, settings in groups:
        small = [parameter for parameter in parameters if is_small(parameter)]
        large = [parameter for parameter in parameters if not is_small(parameter)]
        split += [(members, dict(settings)) for members in (large, small) if members]
    return split


def check_together(parameters: list[Parameter], existing: list[Buffers]) -> None:
    """Raise unless `parameters` can train together and beside the `existing` buffers: names, device and memory."""
    names = {name for buffers in existing for name in buffers.segments}
    for parameter in parameters:
        if parameter.name in names:
            raise ValueError(f"`{parameter.label}` must have a name of its own, got {parameter.name!r} twice")
        names.add(parameter.name)
    packed = [parameter for parameter in parameters if parameter.container is not None]
    for parameter in packed[1:]:
        first = packed[0]
        if parameter.array.dtype != first.array.dtype:
            raise TypeError(
                f"`{parameter.label}` must be {first.array.dtype} like `{first.label}`, got {parameter.array.dtype}"
            )
    devices = [(buffers.p, "the other parameters") for buffers in existing]
    devices += [(parameter.array, f"`{parameter.label}`") for parameter in parameters]
    for array, label in devices[1:]:
        if device(array) != device(devices[0][0]):
            raise ValueError(
                f"{label} must be on {device(devices[0][0])} like {devices[0][1]}, got {device(array)}: "
                "one optimizer works on one device"
            )
    occupied = [("the parameters of this optimizer", buffers.p) for buffers in existing]
    _check_no_shared_memory(occupied + [(f"`{parameter.label}`", parameter.array) for parameter in parameters])


def _check_no_shared_memory(labelled):
    occupied = [(*bounds(array), position, array) for position, (_, array) in enumerate(labelled) if array.size]
    open_ended: list[tuple] = []
    for low, high, position, array in sorted(occupied, key=itemgetter(0)):
        open_ended = [entry for entry in open_ended if entry[0] > low]
        for _, other_position, other in open_ended:
            if namespace(array).shares_memory(array, other):
                earlier, later = sorted((position, other_position))
                raise ValueError(
                    f"{labelled[later][0]} must not share memory with {labelled[earlier][0]}: "
                    "a parameter listed twice would be updated twice"
                )
        open_ended.append((high, position, array))


def bounds(array: Any) -> tuple[int, int]:
    """Addresses of the first byte of `array` and of the first one after it."""
    start = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    reach = [stride * (length - 1) for stride, length in zip(array.strides, array.shape, strict=True)]
    return (
        start + sum(extent for extent in reach if extent < 0),
        start + sum(extent for extent in reach if extent > 0) + array.itemsize,
    )


def place(
    groups: list[list[Parameter]], storages: list[Storage]
) -> tuple[list[Buffers], list[tuple[Any, Hashable, Any]]]:
    """The buffers of `groups`, and what was re-bound.

    There is one for all that is packed and stored alike, as `storages` says of each group, and one for each adopted
    array.

    The caller reaches a packed parameter by `container[key]`, which must stay the view; each such triple is returned.
    """
    placed, bindings = [], []
    packed: dict[Storage, dict[Hashable, Parameter]] = {}
    for parameters, storage in zip(groups, storages, strict=True):
        for parameter in parameters:
            if parameter.container is None:
                placed.append(adopt(parameter.name, parameter.array, storage))
            else:
                packed.setdefault(storage, {})[parameter.name] = parameter
    for storage, together in packed.items():
        buffers = pack({name: parameter.array for name, parameter in together.items()}, storage)
        for name, view in buffers.views(buffers.p).items():
            parameter = together[name]
            bindings.append((parameter.container, parameter.key, like(view, parameter.original, parameter.label)))
        placed.append(buffers)
    for container, key, view in bindings:
        container[key] = view
    return placed, bindings


def replaced_error(key: Hashable) -> ValueError:
    """What to raise for an entry of the caller's container that is no longer the view which trains."""
    return ValueError(
        f"`params[{key!r}]` must stay the view that this optimizer trains, got another object or none: write into it "
        f"in place, `params[{key!r}][...] = x`"
    )
