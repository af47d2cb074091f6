"""What an array shares its memory with: parameters, the buffer of gradients, or another buffer of an optimizer."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastadam.memory.arrays import namespace
from fastadam.memory.parameters import Parameter, all_buffers

PARAMETER, GRADIENTS = "a parameter", "the gradients"


def bounds(array: Any) -> tuple[int, int]:
    """Addresses of the first byte of `array` and of the first one after it."""
    start = array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.data.ptr
    reach = [stride * (length - 1) for stride, length in zip(array.strides, array.shape, strict=True)]
    return (
        start + sum(extent for extent in reach if extent < 0),
        start + sum(extent for extent in reach if extent > 0) + array.itemsize,
    )


class Owners:
    """Knows the addresses of all parameters and their buffers."""

    def __init__(self, parameters: Sequence[Parameter], arrays: Sequence[Any]):
        self._parameters, self._arrays = parameters, arrays
        # An array without a base shares memory with a parameter only if it is that array, or owns its memory.
        self._bases: set[int] = set()
        for array in arrays:
            while array is not None:
                self._bases.add(id(array))
                array = getattr(array, "base", None)
        self._known = -1
        self._lows = self._highs = np.zeros(0, np.int64)
        self._labels: list[str] = []
        self._holders: list[Any] = []

    def may_hold(self, array: Any) -> bool:
        """Whether `array`, which has no base, may share memory with a parameter."""
        return id(array) in self._bases

    def of(self, arrays: Sequence[Any]) -> list[str | None]:
        """What each of `arrays` shares memory with: a label, or None for nothing and where there is no array."""
        self._take_note()
        if not self._labels:
            return [None] * len(arrays)
        spans = [(0, 0) if array is None or not array.size else bounds(array) for array in arrays]
        lows, highs = np.array(spans, np.int64).reshape(-1, 2).T
        # Spans do not overlap one another: the last one that begins below the end decides whether there is any.
        last = np.searchsorted(self._lows, highs) - 1
        overlaps = (last >= 0) & (self._highs[last] > lows)
        first = np.searchsorted(self._highs, lows, "right")
        return [
            self._label(array, low, high) if overlap else None
            for array, overlap, low, high in zip(arrays, overlaps.tolist(), first.tolist(), last.tolist(), strict=True)
        ]

    def _label(self, array, first, last):
        """What `array` shares memory with among spans `first` to `last`; a parameter is named before all others."""
        labels = self._labels[first : last + 1]
        if not array.flags.c_contiguous:
            # Other arrays may lie between its elements.
            shares_memory = namespace(array).shares_memory
            pairs = zip(labels, self._holders[first : last + 1], strict=True)
            labels = [label for label, holder in pairs if shares_memory(array, holder)]
        return PARAMETER if PARAMETER in labels else labels[0] if labels else None

    def _take_note(self):
        """Sort all addresses again if buffers have been allocated since the last time."""
        buffers = all_buffers(self._parameters)
        known = sum(len(each.flats) for each in buffers)
        if known == self._known:
            return
        held = [(PARAMETER, array) for array in self._arrays]
        held += [
            ({"p": PARAMETER, "g": GRADIENTS}.get(name, f"`buffers.{name}`"), flat)
            for each in buffers
            for name, flat in each.flats.items()
        ]
        spans = [(*bounds(holder), label, holder) for label, holder in held if holder.size]
        spans.sort(key=lambda span: span[:2])
        self._known, self._labels = known, [label for *_, label, _ in spans]
        self._holders = [holder for *_, holder in spans]
        self._lows, self._highs = np.array([span[:2] for span in spans], np.int64).reshape(-1, 2).T


def overlapping(arrays: Sequence[Any]) -> set[int]:
    """The `id` of each of `arrays` that shares memory with another, and would be zeroed before it is read."""
    spans = sorted((*bounds(array), id(array)) for array in arrays if hasattr(array, "strides") and array.size)
    found, above, holder = set(), -1, -1
    for low, high, key in spans:
        if low < above:
            found |= {key, holder}
        if high > above:
            above, holder = high, key
    return found
