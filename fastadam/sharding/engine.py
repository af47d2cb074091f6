"""One step that ranks share: gradients are reduced to their owners, which step them and send the parameters round."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fastadam.kernels import PARAMETER, Backend, Launch
from fastadam.kernels.steps import Steps
from fastadam.memory.parameters import Parameter, all_buffers
from fastadam.settings.options import Options
from fastadam.sharding.agreement import agree, shared_failure, texts
from fastadam.sharding.exchange import Exchange
from fastadam.step.engine import Engine
from fastadam.step.plan import Plan
from fastadam.step.reduction import not_finite
from fastadam.step.said import STEP_KEYS, said_of_step

_BEFORE = "before a step"


class ShardedEngine(Engine):
    """What steps the share of this rank, and keeps whole what all ranks have."""

    exchange: Exchange

    def __init__(self, options: Options, backend: Backend, device_of: Any, exchange: Exchange):
        """Make one without parameters."""
        self.exchange = exchange
        # On a GPU the answer of other ranks would have to be waited for, in every step.
        self._compares = isinstance(device_of, np.ndarray)
        super().__init__(options, backend, device_of)

    def _new_plan(self, options, backend, device_of, *, guarded):
        return ShardedPlan(options, backend, device_of, self.exchange, guarded=guarded)

    def _add(self, groups):
        super()._add(groups)
        self.exchange.add(self.plan.parameters)

    def snapshot(self) -> Any:
        """All that `add` changes."""
        return super().snapshot(), dict(vars(self.exchange))

    def restore(self, snapshot: Any) -> None:
        """Let all be as it was."""
        of_plan, of_exchange = snapshot
        super().restore(of_plan)
        vars(self.exchange).update(of_exchange)

    def _prepared(self, gradients, rates, grad_scale):
        with self.told():
            if gradients.rows:
                name = self.plan.parameters[next(iter(gradients.rows))].name
                raise TypeError(f"`grads[{name!r}]` must be an array with `shard`, got SparseRows")
            located = self.exchange.located(gradients)
            prepared = self.plan.prepare(located)
        if self._compares:
            agree(self.exchange, _BEFORE, said_of_step(self.plan, prepared, rates, grad_scale))
        self.exchange.reduce(gradients)
        if self.reduction is not None:
            self.exchange.all_arrived()
        return located, prepared

    def told(self) -> AbstractContextManager[Any]:
        """Tell the other ranks, which wait for this one before a step, of an error that is raised inside."""
        return shared_failure(self.exchange if self._compares else None, len(STEP_KEYS), _BEFORE)

    def _not_finite(self, named, norm):
        """What a refused step says: all ranks say the same of the gradients of all."""
        told = texts(self.exchange, not_finite(named) or "")
        rank = next((rank for rank, text in enumerate(told) if text), None)
        if rank is None:
            return f"the sums of gradients must be finite, and their squares, got a norm of {norm}; nothing was written"
        return f"on rank {rank}, {told[rank]}"

    def whole(self, wanted: Sequence[tuple[Parameter, str]]) -> Iterable[tuple[Parameter, str, Any]]:
        """(parameter, flat, its view with the elements of all ranks) of each (parameter, flat), in any order."""
        return self.exchange.whole(wanted)


class ShardedPlan(Plan):
    """A plan whose launch takes turns: each bucket is stepped while others are under way between ranks."""

    def __init__(self, options: Options, backend: Backend, device_of: Any, exchange: Exchange, *, guarded: bool):
        """Make one without groups."""
        super().__init__(options, backend, device_of, guarded=guarded)
        self._exchange = exchange

    def _launch(self, passes):
        return Turns(self._exchange, [super(ShardedPlan, self)._launch(turn) for turn in self._in_turn(passes)])

    def _in_turn(self, passes):
        """The passes of each set of buffers, in their order; the first of them fold all clocks."""
        numbers = {id(buffers): number for number, buffers in enumerate(all_buffers(self.parameters))}
        numbers_of = np.array([numbers[id(each.buffers)] for each in self.parameters])
        for number in range(len(numbers)):
            turn = [
                each._replace(blocks=each.blocks[numbers_of[each.blocks[:, PARAMETER]] == number]) for each in passes
            ]
            yield turn if number == 0 else [each._replace(clocks=each.clocks[:0]) for each in turn if len(each.blocks)]


class Turns(Steps):
    """The launch of a step that ranks share.

    Attributes:
        turns: The launch of each bucket.
    """

    def __init__(self, exchange: Exchange, turns: list[Launch]):
        """Make one of the launches of all buckets."""
        super().__init__(self._take_turns)
        self._exchange, self.turns = exchange, turns

    def _take_turns(self):
        for bucket, launch in enumerate(self.turns):
            self._exchange.arrived(bucket)
            launch()
            self._exchange.send(bucket)
        self._exchange.received()
