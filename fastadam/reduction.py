"""The norm of all gradients, which clipping and the policy for non-finite gradients need: one read of the gradients."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from fastadam.arrays import namespace, zeros
from fastadam.kernels import fold, norm
from fastadam.options import Options
from fastadam.plan import Plan

_TAKEN, _NORM, _SKIPPED = (fold.RECORD.index(name) for name in ("taken", "norm", "skipped"))


class Reduction:
    """The one reduction over the gradients of all plans, and its record."""

    def __init__(self, plans: list[Plan], options: Options, skipped: int = 0):
        self._plans, like = plans, plans[0].buffers.p
        self._kernels = plans[0].kernels
        counts = [len(norm.blocks_of(self._sizes(plan))) for plan in plans]
        self._blocks = [plan.kernels.upload(norm.blocks_of(self._sizes(plan))) for plan in plans]
        # An empty model has one block of zeros.
        self._lanes = zeros((max(1, sum(counts)), norm.LANES), np.float64, like)
        ends = np.cumsum(counts)
        self._cuts = [slice(end - count, end) for count, end in zip(counts, ends.tolist(), strict=True)]
        self._record = zeros((len(fold.RECORD),), np.float64, like)
        self._record[_SKIPPED] = skipped
        self._max_grad_norm = options.max_grad_norm or float("inf")
        self._propagate = float(options.nonfinite == "propagate")
        # Squares of gradients that overflow count as non-finite, unless each is clipped.
        unbounded = options.clip_value is None
        self._largest = float(min(np.finfo(plan.buffers.p.dtype).max for plan in plans)) if unbounded else float("inf")

    @staticmethod
    def _sizes(plan):
        return [segment.stop - segment.start for segment in plan.segments]

    def clip(self, addresses: list[Any], grad_scale: float) -> Any:
        """The factor on the gradients at `addresses`, one entry a plan, in the form that the launches take."""
        for plan, blocks, cut, where in zip(self._plans, self._blocks, self._cuts, addresses, strict=True):
            if cut.start < cut.stop:
                plan.kernels.sum_squares(where, blocks, self._lanes[cut], plan.buffers.p)
        return self._kernels.clip(
            self._lanes, grad_scale, self._max_grad_norm, self._largest, self._propagate, self._record
        )

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
    for name, gradient in gradients.items():
        library = namespace(gradient)
        finite = library.isfinite(gradient)
        if not finite.all():
            index = tuple(int(axis[0]) for axis in library.nonzero(~finite)) if gradient.ndim else ()
            value = gradient[index]
            return FloatingPointError(
                f"the gradient of {name!r} must be finite, got {float(value)} at index {index}; nothing was written"
            )
    sizes = {name: float(abs(gradient).max()) for name, gradient in gradients.items() if gradient.size}
    name = max(sizes, key=sizes.__getitem__)
    return FloatingPointError(
        f"the squares of the gradients must not overflow, got {sizes[name]} in that of {name!r} and a norm of {norm}; "
        "nothing was written"
    )
