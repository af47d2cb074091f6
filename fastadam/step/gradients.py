"""The gradients of a step, in whatever they were handed over, checked."""

from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from fastadam.memory.advice import writable_clause
from fastadam.memory.arrays import as_gradient, as_indices, check_flat, contiguous
from fastadam.memory.buffers import Buffers, Views, stored_dtype
from fastadam.memory.owners import GRADIENTS, PARAMETER, Owners, bounds, overlapping
from fastadam.memory.parameters import Parameter, all_buffers
from fastadam.settings.checks import nearest
from fastadam.step.gather import Gather, Gradients
from fastadam.step.rows import Rows, SparseRows, ordered_rows


class Expected(NamedTuple):
    """What the gradient of a parameter must be, and what error messages call it.

    `scalar` is the type of NumPy scalars that will do as well, None for none.
    """

    label: str
    shape: tuple[int, ...]
    dtype: np.dtype
    wanted: str = "its parameter"
    parameter: Parameter | None = None
    scalar: type | None = None


class Collector:
    """Finds the gradients of a step in a mapping, a list, a flat array, or in the optimizer's own buffers."""

    def __init__(
        self,
        parameters: Sequence[Parameter],
        arrays: Sequence[Any],
        backend: Any,
        *,
        zeroed: bool,
        of_torch: Set[Hashable],
    ):
        self._parameters, self._zeroed, self._example = parameters, zeroed, arrays[0]
        self._of_torch = of_torch
        self._usual = type(arrays[0])
        self._foreign = None if isinstance(arrays[0], np.ndarray) else _foreign_memory()
        self._device = None if isinstance(arrays[0], np.ndarray) else arrays[0].device.id
        self._expected = [self._expected_of(each) for each in parameters]
        self._owners, self._gather = Owners(parameters, arrays), Gather(parameters, backend)
        self._views: Views | None = None
        # Whether gradients may have been written into the buffers: of empty parameters there is nothing to write.
        self._written = not any(each.size for each in parameters)

    def _expected_of(self, parameter):
        dtype = stored_dtype(parameter.formats["g"], parameter.arithmetic, self._example)
        takes_scalars = not parameter.shape and self._usual is np.ndarray and not self._zeroed
        label, scalar = f"grads[{parameter.name!r}]", dtype.type if takes_scalars else None
        return Expected(label, parameter.shape, dtype, parameter=parameter, scalar=scalar)

    @property
    def views(self) -> Views:
        """Name -> view of the gradient buffer."""
        if self._views is None:
            names = [each.name for each in self._parameters]
            self._views = Views(dict(zip(names, self._gather.places, strict=True)), self._of_torch)
            for buffers in all_buffers(self._parameters):
                assert buffers.g is not None  # from now on somebody has it
        return self._views

    def collect(self, grads: Any, buffers: Callable[[], Buffers]) -> Gradients:
        """The gradients in `grads`, as `Optimizer.step` takes them; a flat array is cut as the `buffers` are."""
        flat, gather = None, self._gather
        if grads is None or grads is self._views:
            if not self._written:
                self._written = any(buffers.g_was_asked_for for buffers in all_buffers(self._parameters))
            if not self._written:
                raise ValueError(
                    "`grads` must be given, or gradients must be written into `opt.grads` before, got neither: pass "
                    "`step({name: gradient, ...})`, or assign `opt.grads[name] = gradient`"
                )
            given: Any = None
        elif isinstance(grads, Mapping):
            given = self._by_name(grads)
        elif isinstance(grads, (list, tuple)):
            given = self._by_position(grads)
        else:
            flat, given = buffers(), [grads]
        if given is not None and gather.found is not None and flat is None and all(map(is_, given, gather.seen)):
            return gather.found
        checked, copied = self._checked(given, flat)
        if flat is not None:
            return gather.flat(checked[0], flat)
        return gather.located(given, checked, copied, overlapping(checked) if self._zeroed and checked else ())

    def _by_name(self, grads):
        try:
            given = [grads[each.name] for each in self._parameters]
        except KeyError:
            raise self._misnamed(grads) from None
        if len(grads) != len(given):
            raise self._misnamed(grads)
        return given

    def _misnamed(self, grads):
        """The error for a mapping whose names are not those of the parameters."""
        names = [each.name for each in self._parameters]
        known = set(names)
        missing = [name for name in names if name not in grads]
        unknown = [name for name in grads if name not in known]
        every = "`grads` must have an entry for every parameter"
        if not missing:
            return ValueError(f"{every} and no other, got {unknown}")
        if not unknown:
            return ValueError(f"{every}, got none for {missing[0]!r}: None is that of a parameter without a gradient")
        by_text = {str(name): name for name in missing}
        name = by_text[nearest(str(unknown[0]), by_text) or str(missing[0])]
        return ValueError(f"{every}, got none for {name!r}, but one for {unknown[0]!r}, which is no parameter")

    def _by_position(self, grads):
        if isinstance(grads, SparseRows):
            raise TypeError("`grads` must be a mapping or a list of gradients, got SparseRows: pass {name: SparseRows}")
        if len(grads) != len(self._parameters):
            count = len(self._parameters)
            raise ValueError(f"`grads` must have {count} entries, one for each parameter, got {len(grads)}")
        return list(grads)

    def _checked(self, given, flat):
        """The gradients as arrays, and those of which a copy was made; all is checked before anything is written."""
        if given is None:
            return None, []
        expected = self._expected if flat is None else [_expected_flat(flat)]
        usual, foreign, checked, unusual = self._usual, self._foreign, [], []
        for index, (gradient, each) in enumerate(zip(given, expected, strict=True)):
            # The usual cases first: the checks below take longer than a small step.
            if type(gradient) is each.scalar:
                pass
            elif (
                type(gradient) is not usual
                or gradient.dtype is not each.dtype
                or gradient.shape != each.shape
                or not gradient.flags.owndata
                or self._owners.may_hold(gradient)
                or (
                    foreign is not None
                    and (type(gradient.data.mem) is foreign or gradient.data.device_id != self._device)
                )
                or self._zeroed
                or flat is not None
            ):
                gradient = self._one(gradient, each)
                unusual.append(index)
            checked.append(gradient)
        return checked, self._set_apart(checked, unusual, expected) if unusual else []

    def _one(self, gradient, expected):
        label, shape, dtype, wanted, parameter, _ = expected
        if gradient is None and parameter is not None:
            return None
        of_rows = isinstance(gradient, SparseRows) and parameter is not None
        if of_rows:
            if not shape:
                raise ValueError(f"`{label}` must be an array for a parameter without rows, got SparseRows")
            indices, gradient = as_indices(gradient.indices, f"{label}.indices"), gradient.values
            wanted = f"the gradient of {len(indices)} rows"
            label, shape = f"{label}.values", (len(indices), *shape[1:])
        array = as_gradient(gradient, shape, dtype, self._example, label, wanted)
        if parameter is None:
            check_flat(array, label, written=self._zeroed)
        if of_rows:
            return ordered_rows(indices, contiguous(array), parameter, expected.label)
        if self._zeroed and (isinstance(gradient, np.generic) or not _is_writable(array)):
            clause = writable_clause(array)
            raise ValueError(f"`{label}` must be a writable array with `zero_grad`, got a read-only one{clause}")
        return array

    def _set_apart(self, checked, indices, expected):
        """Copy what lies where the step, or the gathering of others, writes; return the originals.

        So all gradients are read as they are now. One inside of a parameter is an error.
        """
        copied = []
        arrays = [checked[index].values if isinstance(checked[index], Rows) else checked[index] for index in indices]
        for index, array, owner in zip(indices, arrays, self._owners.of(arrays), strict=True):
            label, parameter = expected[index].label, expected[index].parameter
            if owner == PARAMETER:
                raise ValueError(
                    f"`{label}` must not share memory with a parameter, got an array inside of one: it would change "
                    "while it is read. Pass a copy"
                )
            if parameter is None and owner not in (None, GRADIENTS):
                raise ValueError(f"`{label}` must not overlap {owner}, got arrays that share memory")
            if isinstance(checked[index], Rows) and (owner or self._zeroed):
                checked[index] = checked[index]._replace(values=array.copy())
            elif owner and parameter is not None and not _is_place(array, parameter):
                copied.append(array)
                checked[index] = array.copy()
        return copied


def _expected_flat(buffers):
    wanted = "the flat buffer of the gradients, `buffers.g`"
    return Expected("grads", (buffers.size,), buffers.dtype("g"), wanted)


def _is_place(array, parameter):
    """Whether `array` is the parameter's own part of the gradient buffer."""
    if "g" not in parameter.buffers.flats:
        return False
    place = parameter.view("g")
    return array.strides == place.strides and bounds(array) == bounds(place)


def _is_writable(array):
    return not isinstance(array, np.ndarray) or array.flags.writeable


def _foreign_memory():
    """The type of CuPy's memory that belongs to another library, and may be that of any array."""
    from cupy.cuda import UnownedMemory

    return UnownedMemory
