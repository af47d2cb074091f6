"""Which launches a step is: the clocks of all parameters, their scalars, and the blocks that are stepped.

Numbers only, no gradients: a front end says in one column of addresses where they lie.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastadam import schedules
from fastadam.kernels import CLOCK, FIRST, GRAD_SCALE, GRADIENT, PARAMETER, START, STOP, Backend, Launch, Pass, Tables
from fastadam.kernels.blocks import cut
from fastadam.kernels.texts.formats import Formats
from fastadam.kernels.texts.update import Update, update_of
from fastadam.memory.parameters import Parameter
from fastadam.settings.options import Options
from fastadam.settings.recipes import LR, hyper_of, recipe_of
from fastadam.step.gather import Gradients
from fastadam.step.rows import Rows


@dataclass(eq=False)
class Part:
    """The parameters of one group that have the same update text and hyperparameters.

    Attributes:
        group: Position of the group.
        formats: How they are stored.
        arithmetic: The dtype of their arithmetic.
        decays: Whether weight decay applies to them.
        members: Positions of the parameters.
        update: The text.
    """

    group: int
    formats: Formats
    arithmetic: np.dtype
    decays: bool
    members: list[int]
    update: Update | None = None


class Prepared(NamedTuple):
    """The launches of a step on certain parameters.

    Attributes:
        launch: Runs them.
        pieces: The gradients as pieces, in the order of the parameters, for the norm.
        clocks: Those that go on.
        rows: Position of a parameter -> its gradient, for those with a gradient of rows only.
        sums: What the reduction keeps for these pieces, once it has been asked.
        present: bool (parameters,): which parameters have a gradient.
    """

    launch: Launch
    pieces: np.ndarray
    clocks: np.ndarray
    rows: dict[int, Rows]
    sums: list[Any]
    present: np.ndarray


@dataclass(eq=False)
class Graphs:
    """CUDA graphs with steps of an optimizer."""

    steps: int = 0


class Plan:
    """The groups of an optimizer, what each carries from step to step, and the launches of a step.

    Learning rate schedules count the steps that have been asked of a group; bias corrections count the steps that a
    parameter has taken, which are those of its clock. A parameter without a gradient is not stepped, and its clock
    stands still.

    An exception from outside, such as Ctrl-C, finds every number as before or as after a change: what a clock begins
    with is written into a row that no parameter has yet, and only then do parameters get it, in one assignment.

    Attributes:
        parameters: All, in the order of the groups.
        tables: What the launches read and write.
        clock_of: int64 (parameters,): the row of scalars of each.
        asked: How many steps have been asked.
        scheduled: Positions of the groups whose learning rate is a schedule.
        on_split: Called with the plan, the rows of a clock and of one that is to begin as its copy, and the parameters
            that are to get it.
        graphs: How many steps have become part of CUDA graphs; it does not hold the plan.
    """

    def __init__(self, options: Options, backend: Backend, device_of: Any, *, guarded: bool):
        self.options, self.backend = options, backend
        self._device_of, self._guarded, self._always_guarded = device_of, guarded, guarded
        self.parameters: list[Parameter] = []
        self.groups: list[Mapping[str, Any]] = []
        self._parts: list[list[Part]] = []  # of each group
        self.tables: Tables = backend.tables(0, 0, device_of)
        self.clock_of = np.zeros(0, np.int64)
        self.asked = 0
        self.scheduled: list[int] = []
        self.on_split: Callable[[Plan, int, int, Sequence[int]], None] = lambda plan, old, new, members: None
        self._kept = np.zeros((0, 2), np.int64)
        self._part_of_clock: list[Part] = []  # of rows that no parameter has, any
        self._clocks_of_group: dict[int, list[int]] = {}
        self._earlier: list[int] = []
        self._prepared: dict[tuple[bool, bytes], Prepared] = {}
        self._column: tuple[np.ndarray | None, Prepared | None] = (None, None)
        self._grad_scale = 0.0
        self.graphs = Graphs()
        # What replays read, which a graph does not hold, and what is asked of the device is read from.
        self._of_graphs: list[Any] = []
        self._asked: Sequence[Any] = ()

    # --- groups and their settings

    def add(self, groups: Sequence[tuple[Sequence[Parameter], Mapping[str, Any], set]]) -> None:
        """Add groups: parameters, settings, and the names to which weight decay does not apply."""
        first = len(self.groups)
        for parameters, settings, excluded in groups:
            self._parts.append(self._new_parts(len(self.groups), parameters, excluded))
            self.groups.append(settings)
            self._earlier.append(-self.asked)
        self._grow()
        for group in range(first, len(self.groups)):
            for part in self._parts[group]:
                clock = part.members[0]
                self.clock_of[part.members] = clock
                self.carry(clock, self.options.first_carried)
            self.refresh(group)

    def _new_parts(self, group, parameters, excluded):
        parts: dict[tuple, Part] = {}
        for parameter in parameters:
            decays = parameter.name not in excluded
            # A parameter with a factor of its own on its gradients has a clock of its own.
            alone = len(self.parameters) if self.options.max_grad_norm_per_param is not None else None
            key = parameter.formats, parameter.arithmetic, decays, alone
            if key not in parts:
                parts[key] = Part(group, parameter.formats, parameter.arithmetic, decays, [])
            parts[key].members.append(len(self.parameters))
            self.parameters.append(parameter)
            self._part_of_clock.append(parts[key])
        return list(parts.values())

    def _grow(self):
        count, before = len(self.parameters), self.tables
        self.tables = tables = self.backend.tables(count, count, self._device_of)
        tables.take_over(before)
        self._kept = np.array([parameter.kept for parameter in self.parameters], np.int64)
        added = np.zeros(count - len(self.clock_of), np.int64)
        self._assign_clocks(np.concatenate([self.clock_of, added]))
        self.forget_launches()

    def _assign_clocks(self, clock_of):
        # Between assignments of one line no exception comes from outside.
        self.clock_of, self._clocks_of_group, self._prepared, self._column = clock_of, {}, {}, (None, None)

    def _clocks_of(self, group):
        """The clocks that parameters of a group have."""
        clocks = self._clocks_of_group.get(group)
        if clocks is None:
            members = [member for part in self._parts[group] for member in part.members]
            clocks = self._clocks_of_group[group] = np.unique(self.clock_of[members]).tolist()
        return clocks

    def refresh(self, group: int) -> None:
        """Take over the settings of a group."""
        self._refuse_captured("numbers of a group")
        settings = self.groups[group]
        updates = [
            update_of(recipe_of(settings, self.options, part.formats, decays=part.decays))
            for part in self._parts[group]
        ]
        # Allocated, if need be, before anything is changed.
        rows = [
            {member: self._row(member, update) for member in (part.members if update is not part.update else ())}
            for part, update in zip(self._parts[group], updates, strict=True)
        ]
        self.scheduled = [position for position in self.scheduled if position != group]
        if callable(settings["lr"]):
            self.scheduled.append(group)
        for part, update, located in zip(self._parts[group], updates, rows, strict=True):
            if update is not part.update:
                # The kernel is compiled at the next step, and not while setting after setting is assigned.
                part.update = update
                for member, row in located.items():
                    self._locate(member, row)
                self.forget_launches()
            self._refresh_part(part, update, settings)

    def _refresh_part(self, part, update, settings):
        lr = 0.0 if callable(settings["lr"]) else settings["lr"]
        values = hyper_of(settings, self.options, update.hyper, lr, decays=part.decays)
        row = np.array(values, np.float64)
        for clock in np.unique(self.clock_of[part.members]).tolist():
            self.tables.write("hyper", (clock, slice(len(row))), row)

    def _row(self, member, update):
        """Where the flat arrays of a parameter lie, and its place of random words."""
        parameter = self.parameters[member]
        return [*(parameter.address(flat, self.backend) for flat in update.flats), parameter.place]

    def _locate(self, member, row):
        """Write what `_row` returns into the parameter's row of addresses."""
        self.tables.write("addresses", (member, slice(GRADIENT + 1, GRADIENT + 1 + len(row))), row)

    def place_random_words(self, places: Sequence[int]) -> None:
        """Let the random words of each parameter begin at these places from now on."""
        for member, place in enumerate(places):
            self.parameters[member].place = place
            self._locate(member, self._row(member, self.update_of(member)))

    def set_lr(self, group: int, lr: float) -> None:
        """Take over the learning rate of a group: `refresh` for that alone."""
        self._refuse_captured("the learning rate of a group")
        for clock in self._clocks_of(group):
            self.tables.write("hyper", (clock, LR), lr)

    def asked_of(self, group: int) -> int:
        """How many steps have been asked of a group, whether they were taken or not."""
        return self.asked + self._earlier[group]

    def set_asked(self, group: int, count: int) -> None:
        """Set how many steps have been asked of a group."""
        self._earlier[group] = count - self.asked

    def lr(self, group: int) -> float:
        """The learning rate of a group for its next step."""
        lr = self.groups[group]["lr"]
        return schedules.checked(lr, self.asked_of(group), "lr") if callable(lr) else lr

    # --- clocks

    def carry(self, clock: int, values: Sequence[float]) -> None:
        """Set what a clock carries from step to step."""
        self._refuse_captured("a state")
        self.tables.write("carried", (clock, slice(len(values))), np.array(values, np.float64))

    def update_of(self, member: int) -> Update:
        """The update text of a parameter."""
        update = self.part_of(self.clock_of[member]).update
        assert update is not None
        return update

    def part_of(self, clock: int) -> Part:
        """The part whose parameters a clock has."""
        return self._part_of_clock[clock]

    def set_clocks(self, group: int, carried: Mapping[int, Sequence[float]]) -> None:
        """Let each parameter of a group (by its position) go on from what its clock is to carry."""
        for part in self._parts[group]:
            alike: dict[tuple, list[int]] = {}
            for member in part.members:
                alike.setdefault(tuple(carried[member]), []).append(member)
            first = int(self.clock_of[part.members[0]])
            clock_of = self.clock_of.copy()
            clock_of[part.members] = first
            self._assign_clocks(clock_of)
            for position, (values, members) in enumerate(alike.items()):
                self.carry(self._split(part, first, members) if position else first, values)
        self.forget_launches()

    def _split(self, part, old, members):
        """Another clock for some parameters of an old one, which begins as its copy."""
        clock_of = self.clock_of.copy()
        # There are as many rows as parameters, and those of an old clock have at most one row for two of them.
        new = int(np.flatnonzero(np.bincount(clock_of, minlength=len(clock_of)) == 0)[0])
        clock_of[members] = new
        self._part_of_clock[new] = part
        self.tables.copy_clock(old, new)
        self.on_split(self, old, new, members)
        self._assign_clocks(clock_of)
        return new

    def _split_clocks(self, present):
        """Let the clocks of parameters without a gradient stand still, apart from those that go on."""
        rows = len(self.clock_of)
        members = np.bincount(self.clock_of, minlength=rows)
        going = np.bincount(self.clock_of[present], minlength=rows)
        for old in np.flatnonzero((going > 0) & (going < members)).tolist():
            self._split(self.part_of(old), old, np.flatnonzero(present & (self.clock_of == old)))

    def scalars(self, clock: int) -> dict[str, float]:
        """The scalars of the last step of a clock, by name. On a GPU this waits for the step."""
        part = self.part_of(clock)
        assert part.update is not None
        return dict(zip(part.update.scalars, self.tables.table[clock].view(part.arithmetic).tolist(), strict=False))

    # --- launches

    def forget_launches(self) -> None:
        """Prepare the launches anew at the next step."""
        self._prepared.clear()
        self._column = None, None

    def use(self, grad_scale: float) -> None:
        """Take the next step with this factor on the gradients."""
        if grad_scale != self._grad_scale:
            self._refuse_captured("another `grad_scale` than that of the step before")
            self._grad_scale = math.nan  # no number, until it is written
            self.tables.write("record", GRAD_SCALE, grad_scale)
            self._grad_scale = grad_scale

    def ask(self, factor_at: int = 0, divisor_at: int = 0, found_inf_at: int = 0, *, held: Sequence[Any] = ()) -> None:
        """Let a GPU decide about the next steps, by float32 numbers at these addresses, in memory of what is `held`.

        They are a factor and a divisor of the gradients, and what is not 0 if a step is not taken; 0 is no address.
        """
        self._asked = held
        guarded = self._always_guarded or found_inf_at != 0
        if guarded != self._guarded:
            self._guarded = guarded
            self.forget_launches()
        self.tables.ask(factor_at, divisor_at, found_inf_at)

    def zero(self, array: Any) -> None:
        """Fill a gradient with zeros, on its device."""
        with nullcontext() if isinstance(array, np.ndarray) else array.device:
            array[...] = 0.0

    @property
    def is_captured(self) -> bool:
        """Whether what is launched now becomes part of a CUDA graph."""
        return self.backend.is_captured(self._device_of)

    def _refuse_captured(self, what):
        """Raise if `what` is now written into a CUDA graph: each replay would write it again."""
        if self.is_captured:
            raise RuntimeError(f"{what} must not be written while a CUDA graph is captured: do so before, or after it")

    def prepare(self, gradients: Gradients) -> Prepared:
        """The launches of a step on the parameters that have a gradient: all that can fail happens here."""
        column, prepared = self._column
        if column is not gradients.addresses or prepared is None:
            # Whatever fails from here on, the earlier launches no longer find their gradients.
            self._column = None, None
            self.tables.addresses[:, GRADIENT] = gradients.addresses
            prepared = self._prepare(gradients)
            self._column = (None, None) if gradients.rows else (gradients.addresses, prepared)
        if self.tables.send():
            self.graphs.steps += 1
            self._of_graphs.append((prepared, gradients, self._asked))
        return prepared

    def _prepare(self, gradients):
        present = gradients.addresses != 0
        key = gradients.in_buffers, present.tobytes()
        if key in self._prepared and not gradients.rows:
            return self._prepared[key]
        if self.is_captured:
            raise RuntimeError(
                "a step must have been taken once before it is captured in a CUDA graph, with arrays as gradients of "
                "the same parameters: the first one compiles and allocates, and gradients of rows do so in every step"
            )
        if not present.all():
            self._split_clocks(present)
        pieces = self._pieces(present)
        whole = pieces
        if gradients.rows:
            of_rows = [self._pieces_of_rows(member, rows) for member, rows in gradients.rows.items()]
            dense = ~np.isin(pieces[:, PARAMETER], list(gradients.rows))
            pieces = np.concatenate([pieces[dense], *of_rows])
            whole = whole.copy()
            for member, rows in gradients.rows.items():
                whole[whole[:, PARAMETER] == member, STOP] = rows.size
        clocks = np.unique(self.clock_of[present])
        passes = self._passes(pieces, clocks)
        if gradients.in_buffers:
            passes = [self._merged(each) for each in passes]
        prepared = Prepared(self._launch(passes), whole, clocks, gradients.rows, [], present)
        if not gradients.rows:
            if len(self._prepared) > 64:
                self._prepared.clear()
            self._prepared[key] = prepared
        return prepared

    def _launch(self, passes):
        cuts = [each._replace(blocks=cut(each.blocks)) for each in passes]
        return self.backend.launcher(cuts, self.tables, guarded=self._guarded)

    def _pieces(self, present):
        """A piece for each parameter that has a gradient, of the elements that are kept."""
        members = np.flatnonzero(present)
        pieces = np.zeros((len(members), 5), np.int64)
        pieces[:, PARAMETER], pieces[:, CLOCK] = members, self.clock_of[members]
        pieces[:, [START, STOP]] = self._kept[members]
        pieces[:, FIRST] = pieces[:, START]
        return pieces[pieces[:, START] < pieces[:, STOP]]

    def _pieces_of_rows(self, member, rows: Rows):
        pieces = np.empty((len(rows.indices), 5), np.int64)
        pieces[:, PARAMETER], pieces[:, CLOCK], pieces[:, FIRST] = member, self.clock_of[member], rows.offsets
        pieces[:, [START, STOP]] = self.spans(member, rows.indices)
        return pieces

    def spans(self, member: int, indices: np.ndarray) -> np.ndarray:
        """Where rows of a parameter begin and end, in elements: int64 (rows, 2)."""
        parameter = self.parameters[member]
        width = parameter.size // max(1, parameter.shape[0])
        starts = indices * width
        return np.stack([starts, starts + width], axis=1)

    def _passes(self, pieces, clocks):
        """What each update text steps; its blocks are not cut yet."""
        by_update: dict[tuple[Update, np.dtype], list[int]] = {}
        for clock in clocks.tolist():
            part = self.part_of(clock)
            assert part.update is not None
            by_update.setdefault((part.update, part.arithmetic), []).append(clock)
        if len(by_update) == 1:
            ((update, dtype),) = by_update
            return [Pass(update, dtype, clocks, pieces)]
        return [
            Pass(update, dtype, np.array(rows, np.int64), pieces[np.isin(pieces[:, CLOCK], rows)])
            for (update, dtype), rows in by_update.items()
        ]

    def _merged(self, each: Pass) -> Pass:
        """A pass in which whole parameters that lie one after the other in all flat arrays are one piece.

        Random words and exponents belong to single parameters. A piece takes 0.15 us, which is much for a small bias.
        """
        storage, pieces = each.update.storage, each.blocks
        if storage.dithers or storage.blocked:
            return each
        itemsizes = np.array([storage.itemsize(flat, each.dtype) for flat in ("g", *each.update.flats)], np.int64)
        addresses = self.tables.addresses[pieces[:, PARAMETER], : len(itemsizes)]
        starts, stops = (addresses + pieces[:, [column]] * itemsizes for column in (START, STOP))
        follows = (starts[1:] == stops[:-1]).all(axis=1) & (pieces[1:, CLOCK] == pieces[:-1, CLOCK])
        first = np.flatnonzero(np.concatenate([[True], ~follows]))[: len(pieces)]
        merged = pieces[first]
        sizes = pieces[:, STOP] - pieces[:, START]
        merged[:, STOP] = merged[:, START] + (np.add.reduceat(sizes, first) if len(first) else 0)
        return each._replace(blocks=merged)
