"""The gradients of a step, checked and located: one column of addresses, whatever they were handed over in."""

from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from fastadam.memory.arrays import as_array, bounds, check_device, check_flat, check_native, namespace
from fastadam.memory.buffers import Buffers, Views, stored_dtype
from fastadam.memory.parameters import Parameter
from fastadam.step.rows import Rows, SparseRows, checked_rows


class Gradients(NamedTuple):
    """The gradients of one step, from any front end.

    Attributes:
        addresses: int64 (parameters,): where each begins; 0 where there is none, and the parameter is skipped.
        rows: Position of a parameter -> its gradient, for those with a gradient of rows only.
        held: The gradient of each parameter as it was handed over, None where there is none; what the addresses point
            into lives as long as this.
        copied: Those that were copied, and so are not zeroed by the kernel.
    """

    addresses: np.ndarray
    rows: dict[int, Rows]
    held: Sequence[Any]
    copied: Sequence[Any] = ()


class Expected(NamedTuple):
    """What the gradient of a parameter must be, and where it is copied to."""

    name: Hashable
    shape: tuple[int, ...]
    dtype: np.dtype
    parameter: Parameter


class Collector:
    """Finds the gradients of a step in a mapping, a list, a flat array, or in the optimizer's own buffers."""

    def __init__(self, parameters: Sequence[Parameter], arrays: Sequence[Any], backend: Any, *, zeroed: bool):
        self._parameters, self._backend, self._zeroed = parameters, backend, zeroed
        self._example = arrays[0]
        self._expected = [
            Expected(each.name, each.shape, stored_dtype(each.formats["g"], each.arithmetic, arrays[0]), each)
            for each in parameters
        ]
        self._usual = np.ndarray if isinstance(arrays[0], np.ndarray) else None
        self._memory = Memory(parameters, arrays)
        self._all_small = all(each.size < backend.DIRECT_FROM for each in parameters)
        self._written: Gradients | None = None
        self._places: list[Any] = []
        # Small gradients of the last step, and what was found: arrays that come again are read where they lie.
        self._seen: list[Any] = [None] * len(parameters)
        self._found: Gradients | None = None

    def written(self) -> Gradients:
        """The gradients that have been written into the buffers."""
        if self._written is None:
            addresses = [self._backend.address(each.flat("g")) or 1 for each in self._parameters]
            self._places = [each.view("g") for each in self._parameters]
            self._written = Gradients(np.array(addresses, np.int64), {}, self._places)
        return self._written

    def views(self) -> Views:
        """Name -> view of the gradient buffer."""
        self.written()
        return Views(dict(zip((each.name for each in self._parameters), self._places, strict=True)))

    def named(self, grads: Mapping[Hashable, Any]) -> Gradients:
        """The gradients in a mapping, with an entry for every parameter."""
        try:
            given = [grads[expected.name] for expected in self._expected]
        except KeyError:
            missing = next(expected.name for expected in self._expected if expected.name not in grads)
            raise ValueError(f"`grads` must have an entry for every parameter, got none for {missing!r}") from None
        if len(grads) != len(given):
            names = {expected.name for expected in self._expected}
            unknown = [name for name in grads if name not in names]
            raise ValueError(f"`grads` must have an entry for every parameter and no other, got {unknown}")
        return self._located(given)

    def listed(self, grads: Sequence[Any]) -> Gradients:
        """The gradients in a list, in the order of the parameters."""
        if len(grads) != len(self._expected):
            raise ValueError(
                f"`grads` must have {len(self._expected)} entries, one for each parameter, got {len(grads)}"
            )
        return self._located(list(grads))

    def flat(self, grads: Any, buffers: Buffers) -> Gradients:
        """The gradients in one array that is cut as the flat buffers are."""
        gradient = as_array(grads, "grads")
        dtype, wanted = buffers.dtype("g"), "the flat buffer of the gradients, `buffers.g`"
        if gradient.dtype != dtype:
            raise TypeError(f"`grads` must be {dtype} like {wanted}, got {gradient.dtype}")
        if gradient.shape != (buffers.size,):
            raise ValueError(f"`grads` must have shape {(buffers.size,)} like {wanted}, got {gradient.shape}")
        check_device(gradient, self._example, "grads", "the parameters")
        check_flat(gradient, "grads", written=self._zeroed)
        owner = self._memory.owner(gradient)
        if owner is not None and owner != "the gradients":
            raise ValueError(f"`grads` must not overlap {owner}, got arrays that share memory")
        first = self._backend.address(gradient) or 1
        starts = [buffers.segments[each.name].start for each in self._parameters]
        addresses = first + gradient.itemsize * np.array(starts, np.int64)
        return Gradients(addresses, {}, [buffers.segments[each.name].of(gradient) for each in self._parameters])

    def _located(self, given):
        if self._found is not None and all(map(is_, given, self._seen)):
            return self._found
        self._memory.refresh()
        # Two rounds, so that all is checked before anything is written, and all gradients are read as they were: some
        # may lie in the optimizer's own memory.
        usual, unusual = self._usual, False
        checked: list[Any] = []
        copied: list[Any] = []
        for expected, gradient in zip(self._expected, given, strict=True):
            # The usual case first: the checks below take longer than a small step.
            if (
                type(gradient) is not usual
                or gradient.dtype is not expected.dtype
                or gradient.shape != expected.shape
                or gradient.base is not None
                or self._memory.may_hold(gradient)
                or self._zeroed
            ):
                gradient, unusual = self._checked(gradient, expected, copied), True
            checked.append(gradient)
        if self._all_small and not unusual and not any(map(is_, given, self._seen)):
            written, self._seen, self._found = self.written(), given, None
            for place, gradient in zip(self._places, checked, strict=True):
                place[...] = gradient
            return written._replace(held=checked)
        shared = sharing_memory(checked) if self._zeroed else set()
        return self._gathered(given, checked, shared, copied)

    def _checked(self, gradient, expected, copied):
        label = f"grads[{expected.name!r}]"
        if gradient is None:
            return None
        if isinstance(gradient, SparseRows):
            rows = checked_rows(gradient, expected.parameter, expected.dtype, self._example, label)
            owner = self._memory.owner(rows.values)
            _check_no_parameter(owner, label)
            return rows._replace(values=rows.values.copy()) if self._zeroed or owner else rows
        array = as_array(gradient, label)
        if array.dtype != expected.dtype:
            raise TypeError(f"`{label}` must be {expected.dtype} like its parameter, got {array.dtype}")
        check_native(array, label)
        if array.shape != expected.shape:
            raise ValueError(f"`{label}` must have shape {expected.shape} like its parameter, got {array.shape}")
        check_device(array, self._example, label, "the parameters")
        if self._zeroed:
            _check_can_be_zeroed(gradient, array, label)
        owner = self._memory.owner(array)
        _check_no_parameter(owner, label)
        if owner is not None and not self._is_place(array, expected.parameter):
            # It is read as it is now: the step, or the gathering of others, writes there.
            copied.append(array)
            array = array.copy()
        return array

    def _is_place(self, array, parameter):
        """Whether `array` is the parameter's own part of the gradient buffer."""
        if array.base is None or "g" not in parameter.buffers.flats or not parameter.layout.fits(array):
            return False
        return bool(self._backend.address(array) == self._backend.address(parameter.flat("g")))

    def _gathered(self, given, checked, shared, copied):
        """Find out where each gradient lies; what cannot be read there is copied into the buffer of gradients.

        So is a small one that is new, where a copy costs less than to find out its address.
        """
        smallest = self._backend.DIRECT_FROM
        addresses = np.zeros(len(checked), np.int64)
        held, seen = list(checked), [None] * len(checked)
        rows = {index: gradient for index, gradient in enumerate(checked) if isinstance(gradient, Rows)}
        repeatable = not rows
        for index, gradient in enumerate(checked):
            if gradient is None:
                continue
            if index in rows:
                addresses[index] = self._address(gradient.values)
                continue
            small = gradient.size < smallest
            if small:
                seen[index] = given[index]
            again = gradient is self._seen[index]
            readable = id(gradient) not in shared and _is_readable(gradient, self._parameters[index])
            if readable and (again or not small):
                addresses[index] = self._address(gradient)
                repeatable = repeatable and small
            else:
                addresses[index], held[index] = self._copied(index, gradient, copied)
                repeatable = False
        self._seen = seen
        found = Gradients(addresses, rows, held, copied)
        self._found = found if repeatable else None
        return found

    def _address(self, array):
        # That of an empty array may be 0, which would be no gradient.
        return self._backend.address(array) or 1

    def _copied(self, index, gradient, copied):
        """Where a copy of `gradient` lies, and what keeps it alive."""
        if self._backend.DIRECT_FROM == 0:
            # On a GPU few gradients are copied: an array of its own takes less memory than the buffer of all.
            place = namespace(gradient).empty(gradient.size, gradient.dtype)
            self._parameters[index].layout.view(place)[...] = gradient
            copied.append(gradient)
            return self._address(place), place
        written = self.written()
        if not self._is_place(gradient, self._parameters[index]):
            self._places[index][...] = gradient
            copied.append(gradient)
        return written.addresses[index], gradient


class Memory:
    """Where the parameters and what is kept of them lie, to find out whether a gradient lies there too."""

    def __init__(self, parameters: Sequence[Parameter], arrays: Sequence[Any]):
        self._parameters, self._arrays = parameters, arrays
        # An array without a base shares memory with a parameter only if it is that array, or owns its memory.
        self._owners: set[int] = set()
        for array in arrays:
            while array is not None:
                self._owners.add(id(array))
                array = getattr(array, "base", None)
        self._known = -1
        self._lows: list[int] = []
        self._spans: list[tuple[int, int, str]] = []

    def may_hold(self, array: Any) -> bool:
        """Whether `array`, which has no base, may share memory with a parameter."""
        return id(array) in self._owners

    def refresh(self) -> None:
        """Take note of buffers that have been allocated since."""
        buffers = dict.fromkeys(parameter.buffers for parameter in self._parameters)
        known = sum(len(each.flats) for each in buffers)
        if known == self._known:
            return
        spans = [(*bounds(array), "a parameter") for array in self._arrays if array.size]
        spans += [
            (*bounds(flat), {"p": "a parameter", "g": "the gradients"}.get(name, f"`buffers.{name}`"))
            for each in buffers
            for name, flat in each.flats.items()
            if flat.size
        ]
        self._spans = sorted(spans)
        self._lows, self._known = [low for low, _, _ in self._spans], known

    def owner(self, array: Any) -> str | None:
        """What `array` shares memory with: "a parameter", "the gradients" or one of the buffers; None if nothing."""
        if not array.size:
            return None
        self.refresh()
        low, high = bounds(array)
        found = None
        for _, other_high, owner in reversed(self._spans[: bisect_right(self._lows, high - 1)]):
            if other_high <= low:
                break
            if owner == "a parameter":
                return owner
            found = owner
        return found


def _check_no_parameter(owner, label):
    if owner == "a parameter":
        raise ValueError(
            f"`{label}` must not share memory with a parameter, got an array inside of one: it would change while it "
            "is read. Pass a copy"
        )


def _check_can_be_zeroed(original, gradient, label):
    if isinstance(original, np.generic) or (isinstance(gradient, np.ndarray) and not gradient.flags.writeable):
        raise ValueError(f"`{label}` must be a writable array with `zero_grad`, got a read-only one")


def _is_readable(gradient, parameter) -> bool:
    """Whether the kernel can read `gradient` where it lies: aligned, and in the order of its parameter."""
    flags, layout = gradient.flags, parameter.layout
    aligned = flags.aligned if isinstance(gradient, np.ndarray) else True
    return aligned and (flags.c_contiguous if layout.plain else layout.fits(gradient))


def sharing_memory(gradients: Sequence[Any]) -> set[int]:
    """The `id` of dense gradients that share memory with another one, which would be zeroed before it is read."""
    dense = [array for array in gradients if array is not None and not isinstance(array, Rows) and array.size]
    spans = sorted((*bounds(array), id(array)) for array in dense)
    shared, above, holder = set(), -1, -1
    for low, high, key in spans:
        if low < above:
            shared |= {key, holder}
        if high > above:
            above, holder = high, key
    return shared
