"""One step, in order: every front end makes one call of `Engine.take_step`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastadam.kernels import Backend
from fastadam.kernels.subnormals import leave
from fastadam.memory.parameters import Parameter
from fastadam.settings.options import Options
from fastadam.step.gather import Gradients
from fastadam.step.history import History
from fastadam.step.journal import Journal
from fastadam.step.plan import Plan
from fastadam.step.reduction import Reduction, not_finite_error
from fastadam.step.rows import Rows


class Engine:
    """What steps the parameters of an optimizer; it knows where everything lies, and no containers.

    Attributes:
        plan: Clocks, scalars and launches.
        reduction: The norm of the gradients, where an option needs it.
        journal: What is under way.
    """

    def __init__(self, options: Options, backend: Backend, device_of: Any, *, host_counts: bool = False):
        """Make one without parameters; `host_counts` says that the front end must know which steps were taken."""
        self._options, self._device_of = options, device_of
        on_device = not isinstance(device_of, np.ndarray)
        # On a GPU the kernels themselves skip, without waiting for the host, unless that must keep a history.
        host_counts = host_counts or options.sparse == "exact"
        self._skipped_by_kernels = options.nonfinite == "skip" and on_device and not host_counts
        host_decides = options.nonfinite != "propagate" and not self._skipped_by_kernels
        self._waits = host_decides or options.sparse == "exact"
        self.journal = Journal()
        self.plan = Plan(options, backend, device_of, guarded=self._skipped_by_kernels)
        self.reduction = Reduction(self.plan, options, device_of) if options.reduces else None
        self._history = History() if options.sparse == "exact" else None
        if self._history is not None:
            self.plan.on_split = self._history.split

    def add(self, groups: Sequence[tuple[Sequence[Parameter], Mapping[str, Any], set]]) -> None:
        """Add groups: their parameters, settings, and the names to which weight decay does not apply."""
        plan, before = self.plan, self.snapshot()
        try:
            vars(plan).update({name: list(value) for name, value in before.items() if isinstance(value, list)})
            plan.add(groups)
            for member in range(len(before["parameters"]), len(plan.parameters)):
                if "ema" in plan.update_of(member).flats:
                    plan.parameters[member].start_average()
                self._copy_out(plan.parameters[member])
        except BaseException:  # there is no more memory, or Ctrl-C comes
            leave()
            self.restore(before)
            raise

    def snapshot(self) -> dict[str, Any]:
        """All that `add` changes."""
        return dict(vars(self.plan))

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Let all be as it was."""
        vars(self.plan).update(snapshot)

    def rates(self) -> list[tuple[int, float]]:
        """The learning rates of the next step, (group, rate), of groups that have a schedule.

        Raises:
            ValueError, TypeError: a schedule gives no learning rate, or one that rows cannot be brought up to date by.
            RuntimeError: the step is to become part of a CUDA graph, and needs the host.
        """
        plan = self.plan
        if (self._waits or plan.scheduled) and plan.is_captured:
            raise RuntimeError(self._why_not_captured())
        rates = [(group, plan.lr(group)) for group in plan.scheduled]
        if self._history is not None:
            self._history.check_decays(plan, dict(rates))
        return rates

    def _why_not_captured(self):
        """Which option keeps a step from being captured."""
        if self.plan.scheduled:
            return (
                "`lr` must be a number while a CUDA graph is captured, got a schedule: no replay would call it. Assign "
                "numbers to `param_groups[...]['lr']` before replays"
            )
        option = "sparse" if self._options.sparse == "exact" else "nonfinite"
        chosen = getattr(self._options, option)
        return f"`{option}` must not be {chosen!r} while a CUDA graph is captured: each step waits for the device"

    def take_step(self, gradients: Gradients, rates: Sequence[tuple[int, float]] = (), grad_scale: float = 1.0) -> bool:
        """Step every parameter that has a gradient; return whether the step was taken, as far as the host knows.

        `rates` are those of `rates()`, which is asked before anything is written, gathered gradients included.

        Raises:
            FloatingPointError: a gradient is not finite, with `nonfinite="raise"`. Nothing has been written then.
        """
        try:
            return self._take_step(gradients, rates, grad_scale)
        except BaseException:
            leave()
            raise

    def _take_step(self, gradients, rates, grad_scale):
        plan, history, reduction = self.plan, self._history, self.reduction
        # What can fail comes first: what is compiled, and what the launches need of memory.
        prepared = plan.prepare(gradients)
        if reduction is None:
            plan.use(grad_scale)
        else:
            reduction.clip(prepared, grad_scale)
            if self._is_refused(reduction, gradients):
                return False
        for group, lr in rates:
            plan.set_lr(group, lr)
        counts: dict[int, int] = {}
        if history is not None:
            history.begin(plan, prepared.rows)
            for member, rows in history.read_by(plan, prepared.rows, prepared.clocks):
                self._catch_up(history, member, rows)
            counts = history.counts(prepared.clocks)
        self.journal.run(prepared.launch, self._finish, plan.asked + 1, gradients.copied, prepared, counts)
        return True

    def _finish(self, asked, unread, prepared=None, counts=None):
        """What follows a launch: `asked` steps have been asked, and `unread` gradients are to be zeroed."""
        if counts and self._history is not None:
            self._history.note(self.plan, prepared.rows, counts)
        if self._options.zero_grad:
            for array in unread:
                if array is not None and not isinstance(array, Rows):
                    self.plan.zero(array)
        if self.reduction is not None:
            self.reduction.commit()
        self.plan.asked = asked

    def _is_refused(self, reduction, gradients):
        """Whether this step is not taken, for a gradient that is not finite; raise if that is the policy."""
        policy = self._options.nonfinite
        if policy == "propagate" or self._skipped_by_kernels or reduction.taken:
            return False
        if policy == "raise":
            reduction.refuse()
            pairs = zip(self.plan.parameters, gradients.held, strict=True)
            named = {parameter.name: array for parameter, array in pairs if array is not None}
            raise not_finite_error(named, reduction.norm)
        self.journal.run(None, self._finish, self.plan.asked + 1, (*gradients.held, *gradients.copied))
        return True

    def catch_up(self, members: Sequence[int], rows: np.ndarray | None = None) -> None:
        """Bring rows of parameters, by their positions, up to date: with `sparse="exact"`; all rows without `rows`."""
        if self._history is None:
            return
        for member in members:
            self._catch_up(self._history, member, rows)
        if rows is None and len(members) == len(self.plan.parameters):
            self._history.forget()

    def _catch_up(self, history, member, rows):
        behind = history.behind(self.plan, member, rows)
        if behind is not None:
            self.journal.run(behind.launch, behind.note)

    def loaded(self) -> None:
        """Take note that parameters and state have been written from outside: a state has been loaded."""
        for parameter in self.plan.parameters:
            self._copy_out(parameter)
        if self._history is not None:
            self._history.forget()

    def _copy_out(self, parameter):
        """Write the 16-bit copy of a parameter, if there is one, as the parameter is now."""
        kind = self._options.copy_dtype
        if kind is not None:
            self.plan.backend.copy_out(parameter.flat("p"), parameter.flat("copy"), kind)
