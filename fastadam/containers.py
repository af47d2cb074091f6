"""The containers that parameters came in: `flat=True` puts views into them, and each step checks their arrays."""

import sys
import warnings
from collections.abc import Hashable, Iterable
from operator import is_
from typing import Any

import numpy as np

from fastadam.kernels.callers import levels_to_caller
from fastadam.params import Entry


def rebind(bindings: list[tuple[Any, Hashable, Any]], replaced: list[tuple[Any, Hashable, Any]]) -> None:
    """Assign the view of each (container, key, view); (container, key, earlier) is appended to `replaced` before."""
    for container, key, view in bindings:
        replaced.append((container, key, container[key]))
        container[key] = view


def put_back(replaced: list[tuple[Any, Hashable, Any]]) -> None:
    """Assign the earlier entries, to those containers that have another."""
    for container, key, earlier in replaced:
        if container[key] is not earlier:
            container[key] = earlier


def warn_of_copies(entries: list[Entry], replaced: list[tuple[Any, Hashable, Any]]) -> None:
    """Warn if somebody else than `replaced` still holds an array that was packed, because it will not train.

    To be called when the containers hold the views.
    """
    held = [entry for entry in entries if not isinstance(entry.original, np.generic) and _is_held(entry)]
    if held:
        listed = ", ".join(f"`{entry.label}`" for entry in held[:3]) + ", ..." * (len(held) > 3)
        warnings.warn(
            f"{listed}: the array is still held elsewhere, and will not train: with `flat=True` a copy trains, which "
            "is in the container and in `opt.params`. Leave out `flat=True` to train arrays where they lie",
            UserWarning,
            stacklevel=levels_to_caller(),
        )


def _is_held(entry):
    # Our own references are that of the entry, those of its array (DLPack takes one more of a tensor), that of what was
    # replaced, and the argument of the call.
    return sys.getrefcount(entry.original) > 3 + entry.references


class Watch:
    """Finds out whether an array in a container was replaced: the new array would not train."""

    def __init__(self, entries: list[tuple[Hashable, Any]], container: Any):
        self._container = container
        self._keys = [key for key, _ in entries]
        self._arrays = [array for _, array in entries]
        self._plain = type(container) is list or (type(container) is dict and self._keys == list(container))
        # Equality of lists looks at identity first; an array of one element could be equal to another one.
        self._comparable = all(type(array) is np.ndarray and array.size != 1 for array in self._arrays)

    def check(self) -> None:
        """Raise if an array has been replaced, or is gone."""
        container = self._container
        if self._plain and len(container) == len(self._arrays):
            values = container if type(container) is list else list(container.values())
            if self._are_same(values):
                return
        for key, array in zip(self._keys, self._arrays, strict=True):
            try:
                found = container[key]
            except (KeyError, IndexError):
                found = None
            if found is not array:
                raise ValueError(
                    f"`params[{key!r}]` must stay the array that this optimizer trains, got another object or none: "
                    f"write into it in place, `params[{key!r}][...] = x`"
                )

    def _are_same(self, values):
        if not self._comparable:
            return all(map(is_, values, self._arrays))
        try:
            # A quarter of the time of `is`, one by one, for 10,000 arrays.
            return values == self._arrays
        except Exception:  # the truth of an array of comparisons
            return False


def watches(entries: Iterable[tuple[Any, Hashable, Any]]) -> list[Watch]:
    """One `Watch` for each container in `entries`, which are (container, key, array)."""
    containers: dict[int, tuple[Any, list[tuple[Hashable, Any]]]] = {}
    for container, key, array in entries:
        if container is not None:
            containers.setdefault(id(container), (container, []))[1].append((key, array))
    return [Watch(held, container) for container, held in containers.values()]
