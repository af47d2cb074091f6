"""Where the gradients of a step lie: one column of addresses, with copies where a launch cannot read what there is."""

from collections.abc import Collection, Sequence
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from fastadam.memory.arrays import namespace
from fastadam.memory.buffers import Buffers
from fastadam.memory.parameters import Parameter
from fastadam.step.rows import Rows


class Gradients(NamedTuple):
    """The gradients of one step, from any front end.

    Attributes:
        addresses: int64 (parameters,): where each begins; 0 where there is none, and the parameter is skipped. A front
            end that hands over the column of the tables itself may write other addresses into it between steps, as long
            as the same parameters have a gradient.
        rows: Position of a parameter -> its gradient, for those with a gradient of rows only.
        held: The gradient of each parameter as it was handed over, None where there is none; what the addresses point
            into lives as long as this.
        copied: Those that were copied, and so are not zeroed by the kernel.
        in_buffers: Whether all lie in the buffers of gradients, which stay where they are.
    """

    addresses: np.ndarray
    rows: dict[int, Rows]
    held: Sequence[Any]
    copied: Sequence[Any] = ()
    in_buffers: bool = False


class Gather:
    """Locates checked gradients.

    Small arrays that are new are copied into the buffer of gradients, which costs less than to find out where they lie;
    those that come again are read where they lie, and so are large ones.

    Attributes:
        seen: The gradients of the last step as they were handed over, None for those that are not small.
        found: Where they were, if all of them were read where they lie.
    """

    def __init__(self, parameters: Sequence[Parameter], backend: Any):
        self._parameters, self._backend = parameters, backend
        self._smallest = backend.DIRECT_FROM
        self._sizes = [each.size for each in parameters]
        self._all_small = all(size < self._smallest for size in self._sizes)
        self._written: Gradients | None = None
        self._places: list[Any] = []
        self.seen: list[Any] = [None] * len(parameters)
        self.found: Gradients | None = None

    @property
    def places(self) -> list[Any]:
        """The view of the buffer of gradients of each parameter; the buffer is allocated when it is first asked for."""
        if self._written is None:
            addresses = [self._backend.address(each.flat("g")) or 1 for each in self._parameters]
            self._places = [each.view("g") for each in self._parameters]
            self._written = Gradients(np.array(addresses, np.int64), {}, self._places, in_buffers=True)
        return self._places

    def located(
        self, given: Sequence[Any], checked: list[Any] | None, copied: list[Any], shared: Collection[int]
    ) -> Gradients:
        """The gradients `checked`, which were `given`; without them, those that have been written into the buffer.

        `copied` are those of which a copy has been made already, and the `id` of those that must be is in `shared`.
        """
        places = self.places if checked is None or self._all_small else []
        if checked is None:
            assert self._written is not None
            return self._written
        if self._all_small and not any(map(is_, given, self.seen)) and not any(map(_is_special, checked)):
            for place, gradient in zip(places, checked, strict=True):
                place[...] = gradient
            self.seen, self.found = list(given), None
            assert self._written is not None
            return self._written._replace(held=checked, copied=[*checked, *copied])
        return self._one_by_one(given, checked, copied, shared)

    def _one_by_one(self, given, checked, copied, shared):
        addresses, rows = np.full(len(checked), 0, np.int64), {}
        held, seen, repeatable = list(checked), [None] * len(checked), True
        for index, gradient in enumerate(checked):
            if gradient is None:
                continue
            small = self._sizes[index] < self._smallest
            if isinstance(gradient, Rows):
                rows[index], place, repeatable = gradient, self._backend.address(gradient.values), False
            elif isinstance(gradient, np.generic):
                place = None
            elif (not small or gradient is self.seen[index]) and id(gradient) not in shared:
                place, repeatable = self._readable(gradient, index), repeatable and small
            else:
                place = None
            if place is None:
                place, held[index] = self._copy(gradient, index)
                repeatable = False
                copied.append(gradient)
            # That of an empty array may be 0, which would be no gradient.
            addresses[index] = place or 1
            seen[index] = given[index] if small and index not in rows else None
        found = Gradients(addresses, rows, held, copied)
        self.seen, self.found = seen, found if repeatable else None
        return found

    def _readable(self, gradient, index):
        """Where `gradient` lies, if a launch can read it there: aligned, and in the order of its parameter."""
        layout = self._parameters[index].layout
        if not (gradient.flags.c_contiguous if layout.plain else layout.fits(gradient)):
            return None
        # Where an axis runs backwards, the first element in memory is not the first of the array.
        place = self._backend.address(gradient if layout.plain else layout.flat(gradient))
        return None if place % gradient.itemsize else place

    def _copy(self, gradient, index):
        """Where a copy of `gradient` lies, and what keeps it alive."""
        if self._smallest == 0:
            # On a GPU few gradients are copied: an array of its own takes less memory than the buffer of all.
            with gradient.device:
                place = namespace(gradient).empty(gradient.size, gradient.dtype)
                self._parameters[index].layout.view(place)[...] = gradient
            return self._backend.address(place), place
        self.places[index][...] = gradient
        assert self._written is not None
        return self._written.addresses[index], gradient

    def flat(self, gradient: Any, buffers: Buffers) -> Gradients:
        """The gradients in one array that is cut as `buffers` are."""
        first = self._backend.address(gradient) or 1
        segments = [buffers.segments[each.name] for each in self._parameters]
        starts = np.array([segment.start for segment in segments], np.int64)
        return Gradients(first + gradient.itemsize * starts, {}, [segment.of(gradient) for segment in segments])


def _is_special(gradient):
    return gradient is None or isinstance(gradient, Rows)
