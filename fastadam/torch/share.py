"""Parameters of an optimizer, found anew at each step, and stepped in one launch."""

from collections.abc import Mapping, Sequence
from itertools import compress
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch

from fastadam.kernels import GRADIENT
from fastadam.memory.advice import has_memory
from fastadam.memory.arrays import backend_of, on_host
from fastadam.settings.options import Options
from fastadam.step.engine import Engine
from fastadam.step.gather import Gradients
from fastadam.torch.counters import Counters
from fastadam.torch.facts import Facts
from fastadam.torch.gradients import found
from fastadam.torch.parameter import TensorParameter
from fastadam.torch.state import carried_keys
from fastadam.torch.tensors import array_over, is_sharded, zero
from fastadam.torch.turns import bytes_of, share_memory

_address, _grad = torch.Tensor.data_ptr, attrgetter("grad")
_part, _placements = attrgetter("_local_tensor"), attrgetter("placements")


class Member(NamedTuple):
    """A parameter that has a state.

    Attributes:
        tensors: Flat array -> tensor, as the optimizer and its state have them.
        parameter: Those that are stepped: the same tensors, or of DTensors the parts in this process.
        label: What error messages call it.
        group: Position of its group.
        entry: Its state.
    """

    tensors: dict[str, Any]
    parameter: TensorParameter
    label: str
    group: int
    entry: dict[str, Any]


class TensorEngine(Engine):
    """An engine whose gradients are tensors."""

    def _zero(self, array):
        if isinstance(array, torch.Tensor):
            zero(array)
        else:
            super()._zero(array)


class Share:
    """The parameters on one device that have a state, all DTensors or none, with all that a launch needs.

    What `locate` reads at each step says whether they are still what they were: the addresses of all tensors, and of
    the gradients also the dtypes, strides and sizes, which are those of the parameters.

    Attributes:
        bytes: How many each parameter takes.
        engine: What steps them.
        is_on_device: Whether they are on a GPU, which may decide about steps by itself.
    """

    is_on_device = False

    def __init__(self, members: Sequence[Member], settings: Sequence[dict[str, Any]], options: Options):
        self._options, self._settings, self._members = options, [dict(each) for each in settings], members
        self._parameters = [member.parameter for member in members]
        self._labels = [member.label for member in members]
        self._params = [member.tensors["p"] for member in members]
        kept = [[tensor for flat, tensor in member.tensors.items() if flat != "p"] for member in members]
        self._located = [*self._params, *(tensor for tensors in kept for tensor in tensors)]
        self._sharded = is_sharded(self._params[0])
        self._located_at = list(map(_address, self._parts(self._located)))
        self._device, self.bytes = self._params[0].device, bytes_of(self._parts(self._params))
        self._facts, self._placements = Facts(self._parts(self._params)), self._placements_of(self._params)
        self._counters = [Counters([member.entry[key] for member in members]) for key in carried_keys(options)]
        # Without the counters, which are in no graph.
        self._written = [
            [tensor for tensor in (p, *tensors) if not tensor.is_inference()]
            for p, tensors in zip(self._params, kept, strict=True)
        ]
        self._all_written = [tensor for tensors in self._written for tensor in tensors]
        # Of what is not finite an error tells the place, and NumPy has no bfloat16.
        may_raise = options.nonfinite == "raise" or options.max_skipped_steps is not None
        self._shows_arrays = may_raise and any(p.dtype is torch.bfloat16 for p in self._params)
        self.engine = self._new_engine()
        # What is written into the column is read by the launch that follows.
        self._column = self.engine.plan.tables.addresses[:, GRADIENT]
        self._restart()

    def _new_engine(self):
        example = array_over(self._parts(self._params[:1])[0])
        backend = backend_of(example, self._labels[0])
        engine = TensorEngine(self._options, backend, example[:0].copy(), host_counts=not self.is_on_device)
        groups: list[list[TensorParameter]] = [[] for _ in self._settings]
        for member in self._members:
            groups[member.group].append(member.parameter)
        engine.add([(group, settings, set()) for group, settings in zip(groups, self._settings, strict=True)])
        return engine

    def refresh(self, settings: Sequence[Mapping[str, Any]]) -> None:
        """Take over the settings of all groups."""
        plan = self.engine.plan
        for index, (kept, values) in enumerate(zip(self._settings, settings, strict=True)):
            changed = {key for key in kept if kept[key] != values[key]}
            kept.update(values)
            if changed == {"lr"}:
                plan.set_lr(index, kept["lr"])
            elif changed:
                plan.refresh(index)

    def _parts(self, tensors):
        """The tensors that have the memory of `tensors`: of DTensors the parts in this process."""
        return list(map(_part, tensors)) if self._sharded else tensors

    def _placements_of(self, tensors):
        return list(map(_placements, tensors)) if self._sharded else []

    @property
    def has_moved(self) -> bool:
        """Whether parameters or their states lie elsewhere than in the last step."""
        return list(map(_address, self._parts(self._located))) != self._located_at

    def locate(self) -> Gradients | None:
        """The gradients as they are now; None if parameters or their states are no longer what they were."""
        located_at = list(map(_address, self._parts(self._located)))
        if located_at != self._located_at and not self._have_params_moved(located_at):
            return None
        if any(map(Counters.are_others, self._counters)):
            self._restart()
        located = self._where_they_lie(list(map(_grad, self._params)))
        if located is not None:
            return located
        # A parameter may be of another size or dtype, and begin where it began.
        if not self._facts.are_of(self._parts(self._params)):
            return None
        return self._found()

    def copies(self) -> Gradients:
        """The gradients as they are now, copied; with `zero_grad`, those that were given are zeroed after the step."""
        return self._found(copies=True)

    def _found(self, *, copies=False):
        backend, as_arrays = self.engine.plan.backend, self._shows_arrays
        return found(self._params, self._parameters, self._labels, backend, as_arrays=as_arrays, copies=copies)

    def _have_params_moved(self, located_at):
        """Whether nothing but parameters has moved; their new addresses are taken over."""
        count, params = len(self._params), self._params
        # Another part of a DTensor is another tensor, and not one whose memory has moved.
        if self._sharded or located_at[count:] != self._located_at[count:]:
            return False
        if not self._facts.are_of(params) or any(p.device != self._device for p in params):
            return False
        if share_memory(located_at[:count], self.bytes):
            return False
        self.engine.plan.tables.write("addresses", (slice(None), GRADIENT + 1), located_at[:count])
        self._located_at = located_at
        return True

    def _where_they_lie(self, gradients):
        """The gradients, if all that are there are dense and lie as their parameters do; else None."""
        if self._shows_arrays:
            return None
        try:
            parts = self._parts(gradients)
            if not self._facts.are_of_gradients(parts):
                return None
            if self._sharded and self._placements_of(gradients) != self._placements:
                return None
            addresses = list(map(_address, parts))
        except (AttributeError, RuntimeError):  # there is none, or one that is sparse
            return self._those_there(gradients)
        if 0 in addresses:
            if not all(map(has_memory, parts)):
                return None
            addresses = [address or 1 for address in addresses]
        self._column[...] = addresses
        return Gradients(self._column, {}, parts)

    def _those_there(self, gradients):
        present = [gradient is not None for gradient in gradients]
        there = list(compress(gradients, present))
        if any(gradient.layout is not torch.strided or is_sharded(gradient) != self._sharded for gradient in there):
            return None
        if self._sharded and self._placements_of(there) != list(compress(self._placements, present)):
            return None
        parts = self._parts(there)
        if not self._facts.are_of_some(parts, present) or not all(map(has_memory, parts)):
            return None
        addresses = np.zeros(len(gradients), np.int64)
        addresses[present] = [address or 1 for address in map(_address, parts)]
        found = iter(parts)
        return Gradients(addresses, {}, [next(found) if is_there else None for is_there in present])

    def step(self, gradients: Gradients, grad_scale: float, divisor: Any = None, found_inf: Any = None) -> bool:
        """Step the parameters that have one of `gradients`; return whether the step was taken, as far as is known.

        `divisor` and `found_inf` are tensors by which a GPU decides: None on the host.
        """
        try:
            taken = self.engine.take_step(gradients, (), grad_scale)
            if taken:
                self._count(gradients)
        except BaseException:  # Ctrl-C, say, when the launch has run
            self._recount()
            raise
        if self._options.zero_grad:
            torch.autograd.graph.increment_version([p.grad for p in self._params if p.grad is not None])
        return taken

    def _count(self, gradients):
        """Let the counters of the parameters that were stepped go on, and say that their tensors were written."""
        going, written = None, self._all_written
        if gradients.addresses is not self._column:
            going = gradients.addresses != 0
            written = [tensor for tensors in compress(self._written, going) for tensor in tensors]
        self._counters[0].advance(going)
        if len(self._counters) > 1:
            self._count_others()
        torch.autograd.graph.increment_version(written)

    def _count_others(self):
        """Let numbers other than counts be those of the clocks."""
        plan = self.engine.plan
        carried = on_host(plan.tables.carried)[plan.clock_of]
        for column, each in enumerate(self._counters[1:], 1):
            each.assign(carried[:, column])

    def recount(self) -> None:
        """Let the numbers in the state be those that the device has counted, if it counts."""

    @property
    def skipped_on_device(self) -> int:
        """How many steps the device has skipped; this waits for it."""
        return 0

    @property
    def skips(self) -> Any:
        """The same as a tensor on the device, which nothing waits for; 0 if the host counts."""
        return 0

    def _recount(self):
        """Let the numbers in the state be those of the clocks, and say that all tensors may have been written."""
        plan = self.engine.plan
        carried = on_host(plan.tables.carried)[plan.clock_of]
        for column, each in enumerate(self._counters):
            each.assign(carried[:, column])
        torch.autograd.graph.increment_version(self._all_written)

    def _restart(self):
        """Let all clocks go on from the numbers in the state."""
        counted = np.stack([each.values() for each in self._counters], axis=1)
        wrong = ~np.isfinite(counted)
        wrong[:, 0] |= counted[:, 0] < 0.0  # the steps
        if wrong.any():
            member, column = np.argwhere(wrong)[0]
            label = f"state of {self._labels[member]}['{[*carried_keys(self._options)][column]}']"
            got = counted[member, column]
            raise ValueError(f"`{label}` must be finite, and >= 0 if it counts steps, got {got}")
        carried = counted.tolist()
        plan = self.engine.plan
        for group in range(len(self._settings)):
            of_group = {index: carried[index] for index, each in enumerate(self._members) if each.group == group}
            if of_group:
                plan.set_clocks(group, of_group)
        for each in self._counters:
            each.keep()
