"""What exact sparse rows have missed, and how it is made up for."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from fastadam.kernels.texts import catch_up
from fastadam.step.duplicates import distinct
from fastadam.step.plan import Plan
from fastadam.step.rows import Rows


class History:
    """The past steps of clocks whose parameters have gradients of rows, and when each row was last stepped.

    Rows whose gradient is zero are not touched. Before a row is read again, `catch_up` makes up for what dense Adam
    would have done to it meanwhile. A step in which a parameter has no gradient at all is none that its rows miss.
    """

    def __init__(self, plan: Plan):
        self._plan = plan
        plan.on_split = self._split
        # Clock -> what is in `catch_up.HISTORY` of each step since the first with rows, and the running totals.
        self._steps: dict[int, int] = {}
        self._history: dict[int, np.ndarray] = {}
        self._totals: dict[int, np.ndarray] = {}
        # Parameter -> how many of these steps each of its rows has been taken through.
        self._last: dict[int, np.ndarray] = {}

    def before_step(self, rows: dict[int, Rows], clocks: np.ndarray) -> None:
        """Bring up to date what the next step reads: single rows, and all of other parameters of these `clocks`."""
        for member, gradient in rows.items():
            self._begin(member)
            self.catch_up(member, gradient.indices)
        for member in self._last.keys() - rows.keys():
            if self._plan.clock_of[member] in clocks:
                self.catch_up(member)

    def check_decays(self, rates: Mapping[int, float]) -> None:
        """Raise if a decay of the next step is no factor between 0 and 1, whose logarithm is kept.

        `rates` has the learning rates of groups with a schedule.
        """
        plan = self._plan
        for group, settings in enumerate(plan.groups):
            if settings["decoupled_weight_decay"]:
                lr = rates[group] if group in rates else settings["lr"]
                loss = settings["weight_decay"] * (1.0 if plan.options.decouple_lr else lr)
                if loss >= 1.0:
                    raise ValueError(f"`lr` * `weight_decay` must be < 1 with `sparse` 'exact', got {loss}")

    def after_step(self, rows: dict[int, Rows], clocks: np.ndarray) -> None:
        """Note the step that `clocks` have taken."""
        for clock in self._steps.keys() & set(clocks.tolist()):
            self._note(clock)
        for member, last in self._last.items():
            clock = self._plan.clock_of[member]
            if clock in clocks:
                last[rows[member].indices if member in rows else slice(None)] = self._steps[clock]

    def forget(self) -> None:
        """Take every row as up to date: a state has been loaded."""
        for kept in (self._history, self._totals, self._steps, self._last):
            kept.clear()

    def catch_up(self, member: int, indices: np.ndarray | None = None) -> None:
        """Bring rows of a parameter up to date, all of them without `indices`."""
        if member not in self._last:
            return
        plan, last, clock = self._plan, self._last[member], int(self._plan.clock_of[member])
        now = self._steps[clock]
        indices = np.arange(len(last)) if indices is None else indices
        steps = last[indices]
        late = steps < now
        if not late.any():
            return
        behind, steps = (indices, steps) if late.all() else (indices[late], steps[late])
        # Not before it is needed: `import fastadam` loads no Numba, which takes 0.2 s.
        from fastadam.kernels.cpu.rows import catch_up_table

        lasts, slots = distinct(steps)
        parameter, backend = plan.parameters[member], plan.backend
        dtype = parameter.arithmetic
        table, starts = catch_up_table(lasts, now, self._history[clock], self._totals[clock], dtype)
        blocks = np.column_stack([np.zeros(len(behind), np.int64), slots, plan.spans(member, behind)])
        addresses = np.array([[backend.address(parameter.flat(flat)) for flat in ("p", "m", "v")]], np.int64)
        backend.catch_up(addresses, dtype, blocks, table, starts)
        last[behind] = now

    def _begin(self, member):
        clock = int(self._plan.clock_of[member])
        if clock not in self._steps:
            self._steps[clock] = 0
            self._history[clock] = np.zeros((64, len(catch_up.HISTORY)))
            self._totals[clock] = np.zeros((65, catch_up.TOTALS))
        if member not in self._last:
            self._last[member] = np.full(self._plan.parameters[member].shape[0], self._steps[clock])

    def _split(self, old, new):
        """Give the new clock a copy of what is kept of the old one; clocks whose parameters have no rows need none."""
        clocks = {int(self._plan.clock_of[member]) for member in self._last}
        everything: tuple[dict[int, Any], ...] = self._steps, self._history, self._totals
        for kept in everything:
            kept.pop(new, None)
            if old in kept and new in clocks:
                kept[new] = deepcopy(kept[old])
            if old not in clocks:
                kept.pop(old, None)

    def _note(self, clock):
        plan = self._plan
        scalars = plan.scalars(clock)
        blends = [1.0 - beta for beta in plan.groups[plan.part_of(clock).group]["betas"]]
        step = [scalars["step_size"], scalars["eps"], scalars.get("decay", 1.0), *blends]
        count = self._steps[clock]
        if count == len(self._history[clock]):
            self._history[clock] = np.concatenate([self._history[clock], np.zeros_like(self._history[clock])])
            self._totals[clock] = np.concatenate([self._totals[clock], np.zeros((count, catch_up.TOTALS))])
        self._history[clock][count] = step
        catch_up.add_logs(self._totals[clock][count], step, self._totals[clock][count + 1])
        self._steps[clock] = count + 1
