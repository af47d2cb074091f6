"""The gradients of a step: checked, and gathered where the kernel can read them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastadam.memory.arrays import as_array, check_disjoint, check_flat, check_like, namespace, zeros
from fastadam.memory.buffers import Buffers
from fastadam.memory.parameters import bounds
from fastadam.step.plan import Plan
from fastadam.step.rows import Rows, SparseRows, checked_rows


class Located(NamedTuple):
    """Where the gradients of a step lie.

    Attributes:
        addresses: Of the gradient of each parameter, in the form that the launches take.
        merged: Whether all lie in one flat array.
        arrays: The gradients as they were handed over.
        copied: Those of them that were copied into the gradient buffer.
        sparse: Position of a parameter -> its gradient, for those with a gradient of rows.
    """

    addresses: Any
    merged: bool
    arrays: list[Any]
    copied: list[Any]
    sparse: dict[int, Rows]


class Gradients:
    """The gradients of the parameters of one plan.

    Attributes:
        views: name -> view of the gradient buffer, empty until the buffer is used.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.views: dict[Hashable, Any] = {}
        self._usual = np.ndarray if isinstance(plan.buffers.p, np.ndarray) else None
        self._hosted: Any = None
        self._written: Located | None = None
        # Gradients that lie in a gradient buffer, of which copies are read.
        self._originals: list[Any] = []
        self._like = "its parameter" if plan.options.grad_dtype is None else "the gradients, by `grad_dtype`"
        # Of the dtype, shape and device of the gradient buffer, but without its memory.
        p = plan.buffers.p
        self._example = namespace(p).broadcast_to(zeros((1,), plan.buffers.dtype("g"), p), p.shape)
        self._sent: Any = None
        self._direct: Any = None

    def use_buffer(self) -> None:
        """Allocate the gradient buffer, unless it is there."""
        if self._hosted is None:
            plan = self.plan
            self.views = {name: plan.buffers.part(name, "g") for name in plan.names}
            self._hosted = plan.addresses(plan.buffers.g)
            self._written = Located(
                plan.kernels.upload(self._hosted, plan.buffers.p), True, list(self.views.values()), [], {}
            )

    def written(self) -> Located:
        """The gradients that have been written into the buffer."""
        self.use_buffer()
        assert self._written is not None
        return self._written

    def named(self, grads: Mapping[Hashable, Any], all_buffers: Sequence[Buffers], *, zeroed: bool) -> list[Any]:
        """The gradient of each parameter in `grads`, as arrays of its dtype, shape and device.

        One that lies in a gradient buffer, but for the parameter's own place, is copied: `gather` will write there.
        """
        self.use_buffer()
        self._originals = []
        gradients: list[Any] = []
        dtype = self.plan.buffers.g.dtype
        written, may_share_memory = [flat.g for flat in all_buffers], namespace(self.plan.buffers.p).may_share_memory
        for name, view in self.views.items():
            if name not in grads:
                raise ValueError(f"`grads` must have an entry for every parameter, got none for {name!r}")
            gradient = grads[name]
            if isinstance(gradient, SparseRows):
                rows = checked_rows(gradient, view, f"grads[{name!r}]", self.plan.buffers.storage)
                if zeroed or _lies_in(rows.values, all_buffers):
                    rows = rows._replace(values=rows.values.copy())
                gradients.append(rows)
                continue
            # The usual case first: the checks below take longer than a small step.
            if type(gradient) is not self._usual or gradient.dtype is not dtype or gradient.shape != view.shape:
                label = f"grads[{name!r}]"
                gradient = as_array(gradient, label)
                check_like(gradient, view, label, self._like)
            if zeroed:
                _check_can_be_zeroed(grads[name], gradient, name)
            if gradient.base is not None and gradient is not view:
                for flat in written:
                    if may_share_memory(gradient, flat):
                        self._originals.append(gradient)
                        gradient = gradient.copy()
            gradients.append(gradient)
        return gradients

    def gather(self, gradients: list[Any], all_buffers: Sequence[Buffers], shared: set[int]) -> Located:
        """Copy small gradients into the buffer, where they share a launch; large ones are read where they lie.

        Those whose `id` is in `shared` are copied too.
        """
        addresses, copied, kernels = None, self._originals, self.plan.kernels
        sparse = {index: gradient for index, gradient in enumerate(gradients) if isinstance(gradient, Rows)}
        for index, (view, gradient) in enumerate(zip(self.views.values(), gradients, strict=True)):
            if id(gradient) in shared:
                view[...] = gradient
                copied.append(gradient)
            elif index in sparse or (gradient.size >= kernels.DIRECT_FROM and _is_readable(gradient, all_buffers)):
                addresses = self._hosted.copy() if addresses is None else addresses
                addresses[index] = kernels.address(gradient.values if index in sparse else gradient)
            elif gradient is not view:
                view[...] = gradient
                copied.append(gradient)
        if addresses is None:
            return Located(self.written().addresses, True, gradients, copied, {})
        return Located(self._uploaded(addresses), False, gradients, copied, sparse)

    def _uploaded(self, addresses):
        # Gradients mostly lie where they lay at the last step.
        if not np.array_equal(addresses, self._sent):
            self._sent, self._direct = addresses, self.plan.kernels.upload(addresses, self.plan.buffers.p)
        return self._direct

    def flat(self, grads: Any) -> Located:
        """The gradients in `grads`, a flat array like the buffer."""
        buffers = self.plan.buffers
        gradient = as_array(grads, "grads")
        check_like(gradient, self._example, "grads", "the flat buffer of the gradients, `buffers.g`")
        check_flat(gradient, "grads", written=self.plan.options.zero_grad)
        for label, flat in vars(buffers).items():
            if label not in ("g", "segments", "storage"):
                check_disjoint({f"buffers.{label}": flat, "grads": gradient})
        arrays = [segment.of(gradient) for segment in self.plan.segments]
        return Located(self._uploaded(self.plan.addresses(gradient)), True, arrays, [], {})


def _check_can_be_zeroed(original, gradient, name):
    if isinstance(original, np.generic) or (isinstance(gradient, np.ndarray) and not gradient.flags.writeable):
        raise ValueError(f"`grads[{name!r}]` must be a writable array with `zero_grad`, got a read-only one")


def _is_readable(gradient, all_buffers) -> bool:
    """Whether the kernel can read `gradient` where it lies, which must not be where it writes."""
    if not gradient.flags.c_contiguous or (isinstance(gradient, np.ndarray) and not gradient.flags.aligned):
        return False
    return not _lies_in(gradient, all_buffers)


def _lies_in(array, all_buffers) -> bool:
    """Whether `array` may share memory with one of the flat buffers."""
    flats = (flat for buffers in all_buffers for flat in buffers.arrays())
    return any(namespace(array).may_share_memory(array, flat) for flat in flats)


def sharing_memory(gradients: Iterable[Any]) -> set[int]:
    """The `id` of dense gradients that share memory with another one, which would be zeroed before it is read."""
    dense = [array for array in gradients if not isinstance(array, Rows) and array.size]
    spans = sorted((*bounds(array), id(array)) for array in dense)
    shared, above, holder = set(), -1, -1
    for low, high, key in spans:
        if low < above:
            shared |= {key, holder}
        if high > above:
            above, holder = high, key
    return shared
