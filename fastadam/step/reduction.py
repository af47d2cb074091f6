"""The norm of all gradients, which clipping and the policy for non-finite gradients need: one read of the gradients."""

from collections.abc import Hashable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from fastadam.kernels import NORM, PARAMETER, SKIPPED, TAKEN
from fastadam.kernels.blocks import cut
from fastadam.memory.arrays import as_array, on_host, widened, zeros
from fastadam.settings.options import Options
from fastadam.sharding.exchange import Exchange
from fastadam.step.plan import Plan, Prepared
from fastadam.step.rows import Rows


class Reduction:
    """The one reduction over the gradients of a step, in the order of the parameters."""

    def __init__(self, plan: Plan, options: Options, device_of: Any, exchange: Exchange | None = None):
        self._plan, self._device_of, self._exchange = plan, device_of, exchange
        self._max_grad_norm = options.max_grad_norm or float("inf")
        self._max_of_each = options.max_grad_norm_per_param
        self._propagate = float(options.nonfinite == "propagate")
        self._clips_values = options.clip_value is not None
        # What whole gradients were cut into last, with the bytes of their pieces, and memory for the sums of any step.
        self._whole: tuple[bytes, np.ndarray] = b"", np.zeros((0, 5), np.int64)
        self._sums = self._zeros(1)
        # Of the last step that came to its end. On a GPU the record alone has them, because it is not waited for.
        self._on_host = type(plan.tables.record) is np.ndarray
        self._norm, self._skipped = 0.0, 0.0

    def clip(self, prepared: Prepared, grad_scale: float) -> None:
        """Write what follows from the norm of the gradients of a step into the record of the plan's tables."""
        if not prepared.sums:
            # Those of a rank are put in order with those of all others.
            partials = None if self._exchange is None else self._exchange.order(prepared.present)
            memory = self._sums if partials is None else partials.own
            blocks = self._blocks(prepared)
            each = self._each(prepared, blocks, partials)
            prepared.sums.extend([*self._launches(blocks, memory), self._largest(), partials, each])
        sums, launches, largest, partials, each = prepared.sums
        if partials is not None:
            for launch in launches:
                launch()
            sums, launches = partials.gathered(), []
        tables = self._plan.tables
        if self._on_host:
            tables.record[SKIPPED] = self._skipped  # the step before may have been interrupted
        limits = self._max_grad_norm, largest, self._propagate
        self._plan.backend.clip(sums, grad_scale, *limits, tables, launches, each)

    def _each(self, prepared, blocks, partials):
        """What is known of each parameter that has sums, if each is clipped by its own norm."""
        if self._max_of_each is None:
            return None
        members, counts = np.unique(blocks[:, PARAMETER], return_counts=True)
        if partials is not None:  # of all ranks
            having = partials.counts > 0
            members, counts = np.flatnonzero(prepared.present)[having], partials.counts[having]
        clocks, plan = self._plan.clock_of[members], self._plan
        return plan.backend.each(np.cumsum(counts), clocks, self._max_of_each, plan.tables)

    def _largest(self):
        """What the squared norm must stay below: squares that overflow are not finite, unless each is clipped."""
        largest = float(min(np.finfo(dtype).max for dtype in {each.arithmetic for each in self._plan.parameters}))
        clips_each = self._max_of_each is not None and self._max_of_each * self._max_of_each < largest
        return float("inf") if self._clips_values or clips_each else largest

    def _blocks(self, prepared):
        """The gradients of a step, cut. Whole ones stay cut while those of rows have another size at each step."""
        of_rows = np.isin(prepared.pieces[:, PARAMETER], list(prepared.rows))
        pieces = prepared.pieces[~of_rows]
        if self._whole[0] != pieces.tobytes():
            self._whole = pieces.tobytes(), cut(pieces)
        whole, rows = self._whole[1], cut(prepared.pieces[of_rows])
        return np.insert(whole, np.searchsorted(whole[:, PARAMETER], rows[:, PARAMETER]), rows, axis=0)

    def _zeros(self, blocks):
        return zeros(blocks, np.float64, self._device_of)

    def _launches(self, blocks, memory):
        """The sums of all blocks, and the launches that write them: one for each run of gradients stored alike."""
        parameters, backend = self._plan.parameters, self._plan.backend
        if len(memory) < len(blocks):
            memory = self._sums = self._zeros(len(blocks))
        # Without any gradient, the norm is that of a block of zeros.
        sums = memory[: len(blocks)] if len(blocks) else self._zeros(1)
        kinds: dict[tuple[np.dtype, str], int] = {}
        numbers = [kinds.setdefault((each.arithmetic, each.formats["g"]), len(kinds)) for each in parameters]
        of_blocks, launches = np.array(numbers)[blocks[:, PARAMETER]], []
        starts = np.flatnonzero(np.diff(of_blocks, prepend=-1)).tolist()
        for start, stop in pairwise([*starts, len(blocks)]):
            dtype, format = list(kinds)[of_blocks[start]]
            launches.append(backend.squares(dtype, format, blocks[start:stop], self._plan.tables, sums[start:stop]))
        return sums, launches

    def commit(self) -> None:
        """Take note that the step has come to its end: `norm` and `skipped` are those after it."""
        if self._on_host:
            _, _, self._norm, self._skipped = self._plan.tables.record.tolist()

    def refuse(self) -> None:
        """Take note that the step is not taken, nor counted as skipped."""
        if self._on_host:
            self._norm = float(self._plan.tables.record[NORM])
        else:
            self.skipped -= 1

    @property
    def taken(self) -> bool:
        """Whether the step is taken. On a GPU this waits for the reduction, as do the next two."""
        return bool(self._plan.tables.record[TAKEN])

    @property
    def norm(self) -> float:
        """The norm of the scaled gradients of the last step, before clipping."""
        return self._norm if self._on_host else float(self._plan.tables.record[NORM])

    @property
    def skipped(self) -> int:
        """How many steps have been skipped."""
        return int(self._skipped if self._on_host else self._plan.tables.record[SKIPPED])

    @skipped.setter
    def skipped(self, count: int) -> None:
        self._skipped = float(count)
        self._plan.tables.write("record", SKIPPED, self._skipped)


def not_finite(gradients: Mapping[Hashable, Any]) -> str | None:
    """What to say of the first value in named `gradients` that is not finite; None if all are."""
    for name, gradient in gradients.items():
        values, places = _on_host(gradient)
        finite = np.isfinite(values)
        if not finite.all():
            index = tuple(int(axis[0]) for axis in np.nonzero(~finite)) if values.ndim else ()
            value = values[index]
            index = index if places is None else (int(places[index[0]]), *index[1:])
            return f"the gradient of {name!r} must be finite, got {float(value)} at index {index}; nothing was written"
    return None


def too_large(gradients: Mapping[Hashable, Any], norm: float) -> str:
    """What to say of named `gradients` whose squares overflow."""
    sizes = {name: float(np.abs(_on_host(gradient)[0]).max(initial=0.0)) for name, gradient in gradients.items()}
    name = max(sizes, key=sizes.__getitem__)
    return (
        f"the squares of the gradients must not overflow, got {sizes[name]} in that of {name!r} and a norm of {norm}; "
        "nothing was written"
    )


def _on_host(gradient):
    """A gradient on the host, and the rows that it has values for if it has not all."""
    if isinstance(gradient, Rows):
        ordered = widened(on_host(gradient.values)).reshape(len(gradient.indices), -1)
        order = np.argsort(gradient.offsets)
        return ordered, gradient.indices[order]
    return widened(on_host(as_array(gradient, "grads"))), None
