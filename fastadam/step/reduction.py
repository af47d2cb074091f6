"""The norm of all gradients, which clipping and the policy for non-finite gradients need: one read of the gradients."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from fastadam.kernels import norm
from fastadam.kernels.texts import fold
from fastadam.memory.arrays import namespace, widened, zeros
from fastadam.settings.options import Options
from fastadam.step.gradients import Located
from fastadam.step.plan import Plan
from fastadam.step.rows import Rows

_TAKEN, _NORM, _SKIPPED = (fold.RECORD.index(name) for name in ("taken", "norm", "skipped"))


class Reduction:
    """The one reduction over the gradients of all plans, and its record."""

    def __init__(self, plans: list[Plan], options: Options, before: "Reduction | None"):
        self._plans, like = plans, plans[0].buffers.p
        self._kernels = plans[0].kernels
        counts = [len(norm.blocks_of([segment.stop - segment.start for segment in plan.segments])) for plan in plans]
        # Gradients of rows have no more blocks than dense ones.
        self._lanes = zeros((max(1, sum(counts)), norm.LANES), np.float64, like)
        starts = [sum(counts[:index]) for index in range(len(plans))]
        self._dense = [self._launch(plan, {}, start) for plan, start in zip(plans, starts, strict=True)]
        self._record = zeros((len(fold.RECORD),), np.float64, like)
        if before is not None:
            self._record[...] = before._record
        self._max_grad_norm = options.max_grad_norm or float("inf")
        self._propagate = float(options.nonfinite == "propagate")
        # Squares of gradients that overflow count as non-finite, unless each is clipped.
        unbounded = options.clip_value is None
        self._largest = (
            float(min(np.finfo(plan.buffers.arithmetic).max for plan in plans)) if unbounded else float("inf")
        )

    def _launch(self, plan, sparse, start):
        """The launch for the gradients of a plan, whose lanes begin at `start`: a function and its arguments."""
        sizes = [segment.stop - segment.start for segment in plan.segments]
        sizes = [sparse[index].size if index in sparse else size for index, size in enumerate(sizes)]
        blocks = norm.blocks_of(sizes)
        call = plan.kernels.squares_launcher(plan.buffers.arithmetic, sum(sizes), plan.buffers.storage.g)
        return (
            call,
            plan.kernels.upload(blocks, plan.buffers.p),
            self._lanes[start : start + len(blocks)],
        )

    def clip(self, located: list[Located], grad_scale: float) -> Any:
        """The factor on the gradients, those of each plan `located`, in the form that the launches take."""
        lanes, launches = self._lanes, self._dense
        if any(gradients.sparse for gradients in located):
            launches, stop = [], 0
            for plan, gradients in zip(self._plans, located, strict=True):
                launches.append(self._launch(plan, gradients.sparse, stop))
                stop += len(launches[-1][1])
            # Without any gradient, the norm is that of a block of zeros.
            lanes = lanes[:stop] if stop else zeros((1, norm.LANES), np.float64, lanes)
        for gradients, (call, blocks, own) in zip(located, launches, strict=True):
            if len(blocks):
                call(gradients.addresses, blocks, own)
        return self._kernels.clip(lanes, grad_scale, self._max_grad_norm, self._largest, self._propagate, self._record)

    @property
    def taken(self) -> bool:
        """Whether the last step is taken. On a GPU this waits for the reduction, as do the next two."""
        return bool(self._record[_TAKEN])

    @property
    def norm(self) -> float:
        """The norm of the scaled gradients of the last step, before clipping."""
        return float(self._record[_NORM])

    @property
    def skipped(self) -> int:
        """How many steps have been skipped."""
        return int(self._record[_SKIPPED])

    @skipped.setter
    def skipped(self, count: int) -> None:
        self._record[_SKIPPED] = count


def not_finite_error(gradients: Mapping[Hashable, Any], norm: float) -> FloatingPointError:
    """What to raise for named `gradients` of which one is not finite, or whose squares overflow."""
    gradients = {name: _of_rows(gradient) for name, gradient in gradients.items()}
    for name, (gradient, places) in gradients.items():
        gradient = widened(gradient)
        library = namespace(gradient)
        finite = library.isfinite(gradient)
        if not finite.all():
            index = tuple(int(axis[0]) for axis in library.nonzero(~finite)) if gradient.ndim else ()
            value = gradient[index]
            index = index if places is None else (int(places[index[0]]), *index[1:])
            return FloatingPointError(
                f"the gradient of {name!r} must be finite, got {float(value)} at index {index}; nothing was written"
            )
    sizes = {name: float(abs(widened(gradient)).max()) for name, (gradient, _) in gradients.items() if gradient.size}
    name = max(sizes, key=sizes.__getitem__)
    return FloatingPointError(
        f"the squares of the gradients must not overflow, got {sizes[name]} in that of {name!r} and a norm of {norm}; "
        "nothing was written"
    )


def _of_rows(gradient):
    """A gradient as an array, and the rows that it has values for if it has not all."""
    if isinstance(gradient, Rows):
        ordered = gradient.values.reshape(len(gradient.indices), -1)
        order = np.argsort(gradient.offsets)
        return ordered, gradient.indices[order]
    return gradient, None
