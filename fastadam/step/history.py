"""What exact sparse rows have missed, and how it is made up for."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastadam.kernels import Launch
from fastadam.kernels.texts import catch_up
from fastadam.step.duplicates import distinct
from fastadam.step.plan import Plan
from fastadam.step.rows import Rows


class Past(NamedTuple):
    """What is kept of a clock since its first step with rows.

    Attributes:
        steps: How many.
        history: What is in `catch_up.HISTORY` of each of them, a row each; more rows than steps.
        totals: The running totals, with a row more.
    """

    steps: int
    history: np.ndarray
    totals: np.ndarray


class Behind(NamedTuple):
    """Rows of a parameter that have missed steps.

    Attributes:
        last: How many steps each row of the parameter has been taken through.
        rows: Those that are behind.
        now: How many steps they are to have been taken through.
        launch: Brings them there.
    """

    last: np.ndarray
    rows: np.ndarray
    now: int
    launch: Launch

    def note(self) -> None:
        """Take note that the launch has run."""
        self.last[self.rows] = self.now


class History:
    """The past steps of clocks whose parameters have gradients of rows, and when each row was last stepped.

    Rows whose gradient is zero are not touched. Before a row is read again, what dense Adam would have done to it
    meanwhile is made up for. A step in which a parameter has no gradient at all is none that its rows miss.
    """

    def __init__(self) -> None:
        """Make one in which nothing has happened yet."""
        self._past: dict[int, Past] = {}  # of clocks
        self._last: dict[int, np.ndarray] = {}  # of parameters

    def begin(self, plan: Plan, rows: Mapping[int, Rows]) -> None:
        """Keep a history of the clocks of parameters that have gradients of rows, and of no others."""
        having = {int(plan.clock_of[member]) for member in self._last}
        if self._past.keys() != having:  # they have left a clock
            self._past = {clock: past for clock, past in self._past.items() if clock in having}
        for member in rows:
            clock = int(plan.clock_of[member])
            if clock not in self._past:
                history, totals = np.zeros((64, len(catch_up.HISTORY))), np.zeros((65, catch_up.TOTALS))
                self._past[clock] = Past(0, history, totals)
            if member not in self._last:
                self._last[member] = np.full(plan.parameters[member].shape[0], self._past[clock].steps)

    def read_by(self, plan: Plan, rows: Mapping[int, Rows], clocks: np.ndarray) -> list[tuple[int, np.ndarray | None]]:
        """(parameter, rows) that the next step of these `clocks` reads; None for all rows."""
        others = [member for member in self._last if member not in rows and plan.clock_of[member] in clocks]
        return [*((member, gradient.indices) for member, gradient in rows.items()), *((each, None) for each in others)]

    def check_decays(self, plan: Plan, rates: Mapping[int, float]) -> None:
        """Raise if a decay of the next step is no factor between 0 and 1, whose logarithm is kept.

        `rates` has the learning rates of groups with a schedule.
        """
        for group, settings in enumerate(plan.groups):
            if settings["decoupled_weight_decay"]:
                lr = rates[group] if group in rates else settings["lr"]
                loss = settings["weight_decay"] * (1.0 if plan.options.decouple_lr else lr)
                if loss >= 1.0:
                    raise ValueError(f"`lr` * `weight_decay` must be < 1 with `sparse` 'exact', got {loss}")

    def counts(self, clocks: np.ndarray) -> dict[int, int]:
        """How many steps are kept of each of these `clocks` that has a history."""
        return {clock: self._past[clock].steps for clock in clocks.tolist() if clock in self._past}

    def note(self, plan: Plan, rows: Mapping[int, Rows], counts: Mapping[int, int]) -> None:
        """Take note of a step of clocks, before which they had these `counts`. It may be called twice for one step."""
        for clock, count in counts.items():
            self._past[clock] = self._with_step(plan, clock, count)
        for member, last in self._last.items():
            clock = int(plan.clock_of[member])
            if clock in counts:
                last[rows[member].indices if member in rows else slice(None)] = counts[clock] + 1

    def forget(self) -> None:
        """Take every row as up to date: a state has been loaded."""
        self._last, self._past = {}, {}

    def behind(self, plan: Plan, member: int, indices: np.ndarray | None) -> Behind | None:
        """Those rows of a parameter that have missed steps, of all of them without `indices`; None if none has."""
        if member not in self._last:
            return None
        last, past = self._last[member], self._past[int(plan.clock_of[member])]
        indices = np.arange(len(last)) if indices is None else indices
        steps = last[indices]
        late = steps < past.steps
        if not late.any():
            return None
        rows, steps = (indices, steps) if late.all() else (indices[late], steps[late])
        # Not before it is needed: `import fastadam` loads no Numba, which takes 0.2 s.
        from fastadam.kernels.cpu.rows import catch_up_table

        lasts, slots = distinct(steps)
        parameter, backend = plan.parameters[member], plan.backend
        dtype = parameter.arithmetic
        table, starts = catch_up_table(lasts, past.steps, past.history, past.totals, dtype)
        blocks = np.column_stack([np.zeros(len(rows), np.int64), slots, plan.spans(member, rows)])
        addresses = np.array([[backend.address(parameter.flat(flat)) for flat in ("p", "m", "v")]], np.int64)
        return Behind(last, rows, past.steps, backend.catch_up(addresses, dtype, blocks, table, starts))

    def split(self, plan: Plan, old: int, new: int, members: Sequence[int]) -> None:
        """Give the clock `new` of these parameters a copy of what is kept of the `old` one, if they have rows."""
        self._past.pop(new, None)
        if old in self._past and not self._last.keys().isdisjoint(members):
            past = self._past[old]
            self._past[new] = Past(past.steps, past.history.copy(), past.totals.copy())

    def _with_step(self, plan, clock, count):
        """What is kept of a clock, with the step after the first `count`."""
        scalars = plan.scalars(clock)
        blends = [1.0 - beta for beta in plan.groups[plan.part_of(clock).group]["betas"]]
        step = [scalars["step_size"], scalars["eps"], scalars.get("decay", 1.0), *blends]
        _, history, totals = self._past[clock]
        if count == len(history):
            history = np.concatenate([history, np.zeros_like(history)])
            totals = np.concatenate([totals, np.zeros((count, catch_up.TOTALS))])
        history[count] = step
        catch_up.add_logs(totals[count], step, totals[count + 1])
        return Past(count + 1, history, totals)
