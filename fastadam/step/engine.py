"""One step, in order: every front end makes one call of `Engine.take_step`."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fastadam.kernels import Backend
from fastadam.memory.parameters import Parameter
from fastadam.settings.options import Options
from fastadam.sharding.agreement import agree, shared_failure, texts
from fastadam.sharding.exchange import Exchange
from fastadam.step.gather import Gradients
from fastadam.step.history import History
from fastadam.step.plan import Plan
from fastadam.step.reduction import Reduction, not_finite, too_large
from fastadam.step.rows import Rows
from fastadam.step.said import STEP_KEYS, said_of_step

_BEFORE = "before a step"


class Engine:
    """What steps the parameters of an optimizer; it knows where everything lies, and no containers.

    Attributes:
        plan: Clocks, scalars and launches.
        reduction: The norm of the gradients, where an option needs it.
        exchange: What ranks send one another; None for one process.
    """

    def __init__(
        self,
        options: Options,
        backend: Backend,
        device_of: Any,
        *,
        host_counts: bool = False,
        exchange: Exchange | None = None,
    ):
        """Make one without parameters; `host_counts` says that the front end must know which steps were taken.

        `exchange` is there where several ranks share the parameters.
        """
        self._options, self._device_of = options, device_of
        on_device = not isinstance(device_of, np.ndarray)
        # On a GPU the kernels themselves skip, without waiting for the host, unless that must keep a history.
        host_counts = host_counts or options.sparse == "exact"
        self._skipped_by_kernels = options.nonfinite == "skip" and on_device and not host_counts
        host_decides = options.nonfinite != "propagate" and not self._skipped_by_kernels
        # On a GPU the answer of other ranks would have to be waited for, in every step.
        self._compares = not on_device
        self._waits = host_decides or options.sparse == "exact"
        self.exchange = exchange
        self.plan = Plan(options, backend, device_of, guarded=self._skipped_by_kernels, by_buffers=exchange is not None)
        self.reduction = Reduction(self.plan, options, device_of, exchange) if options.reduces else None
        self._history = History(self.plan) if options.sparse == "exact" else None

    def add(self, groups: Sequence[tuple[Sequence[Parameter], Mapping[str, Any], set]]) -> None:
        """Add groups: their parameters, settings, and the names to which weight decay does not apply."""
        plan, before = self.plan, dict(vars(self.plan))
        vars(plan).update({name: list(value) for name, value in before.items() if isinstance(value, list)})
        try:
            plan.add(groups)
            for member in range(len(before["parameters"]), len(plan.parameters)):
                if "ema" in plan.update_of(member).flats:
                    plan.parameters[member].start_average()
                self._copy_out(plan.parameters[member])
            if self.exchange is not None:
                self.exchange.add(plan.parameters)
        except BaseException:  # there is no more memory, say
            vars(plan).update(before)
            raise

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
            self._history.check_decays(dict(rates))
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
        plan, history, exchange = self.plan, self._history, self.exchange
        # What can fail comes first: what is compiled, and what the launches need of memory.
        if exchange is None:
            prepared = plan.prepare(gradients)
        else:
            gradients, prepared = self._reduced(exchange, gradients, rates, grad_scale)
        if self.reduction is None:
            plan.use(grad_scale)
        else:
            self.reduction.clip(prepared, grad_scale)
            if self._is_refused(self.reduction, gradients):
                return False
        for group, lr in rates:
            plan.set_lr(group, lr)
        if history is not None:
            history.before_step(prepared.rows, prepared.clocks)
        plan.asked += 1
        try:
            for bucket, launch in enumerate(prepared.launches):
                if exchange is not None:
                    exchange.arrived(bucket)
                launch()
                if exchange is not None:
                    exchange.send(bucket)
            if exchange is not None:
                exchange.received()
        finally:  # Ctrl-C comes during the launch and is raised after it, when the step has been taken
            if history is not None:
                history.after_step(prepared.rows, prepared.clocks)
            if self._options.zero_grad:
                # Where the kernel read a gradient, it has zeroed it.
                for array in gradients.copied:
                    plan.zero(array)
        return True

    def _reduced(self, exchange, gradients, rates, grad_scale):
        """The gradients on their way to the ranks that own them, and the launches that step them there."""
        with self.told():
            if gradients.rows:
                member = next(iter(gradients.rows))
                raise TypeError(
                    f"`grads[{self.plan.parameters[member].name!r}]` must be an array with `shard`, got SparseRows"
                )
            located = exchange.located(gradients)
            prepared = self.plan.prepare(located)
        if self._compares:
            agree(exchange, _BEFORE, said_of_step(self.plan, prepared, rates, grad_scale))
        exchange.reduce(gradients)
        if self.reduction is not None:
            exchange.all_arrived()
        return located, prepared

    def told(self) -> AbstractContextManager[None]:
        """Tell the other ranks, which wait for this one before a step, of an error that is raised inside."""
        return shared_failure(self.exchange if self._compares else None, len(STEP_KEYS), _BEFORE)

    def _is_refused(self, reduction, gradients):
        """Whether this step is not taken, for a gradient that is not finite; raise if that is the policy."""
        policy = self._options.nonfinite
        if policy == "propagate" or self._skipped_by_kernels or reduction.taken:
            return False
        if policy == "raise":
            reduction.skipped -= 1
            pairs = zip(self.plan.parameters, gradients.held, strict=True)
            named = {parameter.name: array for parameter, array in pairs if array is not None}
            raise FloatingPointError(self._not_finite(named, reduction.norm))
        self.plan.asked += 1
        if self._options.zero_grad:
            for array in (*gradients.held, *gradients.copied):
                if array is not None and not isinstance(array, Rows):
                    self.plan.zero(array)
        return True

    def _not_finite(self, named, norm):
        """What a refused step says of the named gradients; all ranks say the same of those of all ranks."""
        found = not_finite(named)
        if self.exchange is None:
            return found or too_large(named, norm)
        told = texts(self.exchange, found or "")
        rank = next((rank for rank, text in enumerate(told) if text), None)
        if rank is None:
            return f"the sums of gradients must be finite, and their squares, got a norm of {norm}; nothing was written"
        return f"on rank {rank}, {told[rank]}"

    def catch_up(self, members: Sequence[int], rows: np.ndarray | None = None) -> None:
        """Bring rows of parameters, by their positions, up to date: with `sparse="exact"`; all rows without `rows`."""
        if self._history is None:
            return
        for member in members:
            self._history.catch_up(member, rows)
        if rows is None and len(members) == len(self.plan.parameters):
            self._history.forget()

    def whole(self, wanted: Sequence[tuple[Parameter, str]]) -> Iterable[tuple[Parameter, str, Any]]:
        """(parameter, flat, its view with the elements of all ranks) of each (parameter, flat), in any order."""
        if self.exchange is not None:
            return self.exchange.whole(wanted)
        return ((parameter, flat, parameter.view(flat)) for parameter, flat in wanted)

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
