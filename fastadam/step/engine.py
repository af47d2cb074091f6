"""One step, in order: every front end makes one call of `Engine.take_step`."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from fastadam.kernels import Backend
from fastadam.kernels.callers import levels_to_caller
from fastadam.kernels.subnormals import leave
from fastadam.memory.parameters import Parameter
from fastadam.settings.options import Options
from fastadam.sharding.exchange import Exchange
from fastadam.step.gather import Gradients
from fastadam.step.history import History
from fastadam.step.journal import Journal
from fastadam.step.plan import Plan
from fastadam.step.reduction import Reduction, not_finite, too_large
from fastadam.step.rows import Rows

# So many steps skipped in a row are worth a warning.
MANY_SKIPPED = 100


class Engine:
    """What steps the parameters of an optimizer; it knows where everything lies, and no containers.

    Attributes:
        plan: Clocks, scalars and launches.
        reduction: The norm of the gradients, where an option needs it.
        exchange: What ranks send one another; None in one process.
        journal: What is under way.
        scale: A factor on the gradients that a GPU reads in each step, and in each replay; None if there is none.
    """

    exchange: Exchange | None = None
    scale: Any = None

    def __init__(self, options: Options, backend: Backend, device_of: Any, *, host_counts: bool = False):
        """Make one without parameters; `host_counts` says that the front end must know which steps were taken."""
        self._options, self._device_of = options, device_of
        on_device = not isinstance(device_of, np.ndarray)
        # On a GPU the kernels themselves skip, without waiting for the host, unless that must keep a history.
        host_counts = host_counts or options.sparse == "exact" or options.max_skipped_steps is not None
        self._skipped_by_kernels = options.nonfinite == "skip" and on_device and not host_counts
        host_decides = options.nonfinite != "propagate" and not self._skipped_by_kernels
        self._waits = host_decides or options.sparse == "exact"
        self._skipped_in_row = 0  # as far as the host knows
        self.journal = Journal()
        self.plan = self._new_plan(options, backend, device_of, guarded=self._skipped_by_kernels)
        self.reduction = Reduction(self.plan, options, device_of, self.exchange) if options.reduces else None
        self._history = History() if options.sparse == "exact" else None
        if self._history is not None:
            self.plan.on_split = self._history.split

    @property
    def skips_by_itself(self) -> bool:
        """Whether kernels skip steps, and the host does not know which."""
        return self._skipped_by_kernels

    def _new_plan(self, options, backend, device_of, *, guarded):
        return Plan(options, backend, device_of, guarded=guarded)

    def add(self, groups: Sequence[tuple[Sequence[Parameter], Mapping[str, Any], set]]) -> None:
        """Add groups: their parameters, settings, and the names to which weight decay does not apply."""
        before = self.snapshot()
        try:
            self._add(groups)
        except BaseException:  # there is no more memory, or Ctrl-C comes
            leave()
            self.restore(before)
            raise

    def _add(self, groups):
        plan, known = self.plan, len(self.plan.parameters)
        vars(plan).update({name: list(value) for name, value in vars(plan).items() if isinstance(value, list)})
        plan.add(groups)
        for member in range(known, len(plan.parameters)):
            if "ema" in plan.update_of(member).flats:
                plan.parameters[member].start_average()
            self._copy_out(plan.parameters[member])

    def snapshot(self) -> Any:
        """All that `add` changes."""
        return dict(vars(self.plan))

    def restore(self, snapshot: Any) -> None:
        """Let all be as it was."""
        vars(self.plan).update(snapshot)

    def read_scale(self, scale: Any) -> None:
        """Let a GPU read a factor on the gradients from `scale` in the steps that follow, float32 of one element."""
        held = () if scale is None else (scale,)
        self.plan.ask(*map(self.plan.backend.address, held), held=held)
        self.scale = scale

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
            FloatingPointError: a gradient is not finite, with `nonfinite="raise"` or after `max_skipped_steps`. Nothing
                has been written then.
        """
        plan, history, reduction = self.plan, self._history, self.reduction
        try:
            # What can fail comes first: what is compiled, and what the launches need of memory.
            gradients, prepared = self._prepared(gradients, rates, grad_scale)
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
            self.journal.run(prepared.launch, self._finish, plan.asked + 1, gradients.copied, 0, prepared, counts)
        except BaseException:
            leave()
            raise
        return True

    def _prepared(self, gradients, rates, grad_scale):
        """The gradients where the launches find them, and the launches."""
        return gradients, self.plan.prepare(gradients)

    def told(self) -> AbstractContextManager[Any]:
        """Around an error before a step, which other ranks that share it are to be told of."""
        return nullcontext()

    def _finish(self, asked, unread, skipped_in_row, prepared=None, counts=None):
        """What follows a launch: `asked` steps have been asked, and `unread` gradients are to be zeroed."""
        if counts and self._history is not None:
            self._history.note(self.plan, prepared.rows, counts)
        if self._options.zero_grad:
            for array in unread:
                if array is not None and not isinstance(array, Rows):
                    self._zero(array)
        if self.reduction is not None:
            self.reduction.commit()
        self._skipped_in_row = skipped_in_row
        self.plan.asked = asked

    def _zero(self, array):
        """Zero a gradient, which may be of any kind that the front end hands over."""
        self.plan.zero(array)

    def _is_refused(self, reduction, gradients):
        """Whether this step is not taken, for a gradient that is not finite; raise if that is the policy."""
        policy, most = self._options.nonfinite, self._options.max_skipped_steps
        if policy == "propagate" or self._skipped_by_kernels or reduction.taken:
            return False
        in_row = self._skipped_in_row + 1
        if policy == "raise" or (most is not None and in_row > most):
            reduction.refuse()
            pairs = zip(self.plan.parameters, gradients.held, strict=True)
            named = {parameter.name: array for parameter, array in pairs if array is not None}
            before = "" if policy == "raise" else f"; {most} steps in a row have been skipped (`max_skipped_steps`)"
            raise FloatingPointError(self._not_finite(named, reduction.norm) + before)
        self.journal.run(None, self._finish, self.plan.asked + 1, (*gradients.held, *gradients.copied), in_row)
        if in_row % MANY_SKIPPED == 0:
            warnings.warn(
                f"{in_row} steps in a row were skipped because of gradients that are not finite: nothing is being "
                "trained. Look for NaN in the parameters or the loss; `max_skipped_steps` makes this an error",
                RuntimeWarning,
                stacklevel=levels_to_caller(),
            )
        return True

    def _not_finite(self, named, norm):
        """What a refused step says of the named gradients."""
        return not_finite(named) or too_large(named, norm)

    def catch_up(self, members: Sequence[int], rows: np.ndarray | None = None) -> None:
        """Bring rows of parameters, by their positions, up to date: with `sparse="exact"`; all rows without `rows`."""
        if self._history is None:
            return
        for member in members:
            self._catch_up(self._history, member, rows)
        if rows is None and len(members) == len(self.plan.parameters):
            self._history.forget()

    def whole(self, wanted: Sequence[tuple[Parameter, str]]) -> Iterable[tuple[Parameter, str, Any]]:
        """(parameter, flat, its view with the elements of all ranks) of each (parameter, flat), in any order."""
        return ((parameter, flat, parameter.view(flat)) for parameter, flat in wanted)

    def _catch_up(self, history, member, rows):
        behind = history.behind(self.plan, member, rows)
        if behind is not None:
            self.journal.run(behind.launch, behind.note)

    def loaded(self) -> None:
        """Take note that parameters and state have been written from outside: a state has been loaded."""
        self._skipped_in_row = 0
        for parameter in self.plan.parameters:
            self._copy_out(parameter)
        if self._history is not None:
            self._history.forget()

    def _copy_out(self, parameter):
        """Write the 16-bit copy of a parameter, if there is one, as the parameter is now."""
        kind = self._options.copy_dtype
        if kind is not None:
            self.plan.backend.copy_out(parameter.flat("p"), parameter.flat("copy"), kind)
