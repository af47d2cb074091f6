"""How one set of flat buffers is stepped: a row of hyperparameters for each group, a launch for each update text."""

from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from fastadam import schedules
from fastadam.kernels.texts import fold
from fastadam.kernels.texts.update import Recipe, Update, update_of
from fastadam.memory.arrays import kernels, zeros
from fastadam.memory.buffers import Buffers
from fastadam.settings.groups import ParamGroup
from fastadam.settings.options import Options
from fastadam.settings.recipes import LR, MOMENTUM_PRODUCT, STEP, check_settings, hyper_of, recipe_of

# Elements `start` to `stop` of the flat buffers, stepped with a row of hyperparameters and the gradient of a parameter,
# from element `offset` of that gradient on.
Piece = tuple[int, int, int, int, int]


class Plan:
    """The groups that share one set of flat buffers, what each carries from step to step, and their launches.

    Attributes:
        names: Of the parameters, in the order of their gradients.
        segments: Of the parameters, in the same order.
        scheduled: Rows of the groups whose learning rate is a schedule.
        asked: How many steps have been asked of it.
    """

    def __init__(self, buffers: Buffers, groups: list[ParamGroup], options: Options, seed: int):
        self.buffers, self.groups, self.options = buffers, groups, options
        self.kernels: ModuleType = kernels(buffers.p, "params")
        self.names = [name for group in groups for name in group["params"]]
        self.segments = [buffers.segments[name] for name in self.names]
        self.rows = [row for row, group in enumerate(groups) for _ in group["params"]]
        self.asked = 0
        self._seeds = [seed] * len(groups)
        self._earlier = [0] * len(groups)
        self.hyper = zeros((len(groups), len(fold.HYPER)), np.float64, buffers.p)
        self.carried = zeros((len(groups), len(fold.CARRIED)), np.float64, buffers.p)
        self.table = zeros((len(groups), fold.COLUMNS), buffers.arithmetic, buffers.p)
        self.recipes: list[Recipe | None] = [None] * len(groups)
        self._launches: dict[bool, list[tuple]] = {}
        self.scheduled: list[int] = []
        for row, group in enumerate(groups):
            self.carry(row, *fold.FIRST_CARRIED)
            group.changed = partial(self._refresh, row)
            group.check_together = partial(check_settings, options=options)
            self._refresh(row)
        if options.ema_decay is not None:
            buffers.allocate("ema")
        self.refresh_copies()

    def refresh_copies(self) -> None:
        """Write the 16-bit copy of the parameters, if there is one, as they are now."""
        if self.options.copy_dtype:
            self.kernels.copy_out(self.buffers.p, self.buffers.low, self.options.copy_dtype)

    def _refresh(self, row: int) -> None:
        group = self.groups[row]
        recipe = recipe_of(group, self.options, self.buffers.storage)
        if recipe != self.recipes[row]:
            # The kernel is compiled at the next step, and not while setting after setting is assigned.
            self.recipes[row] = recipe
            self._launches.clear()
        self.scheduled = [index for index, each in enumerate(self.groups) if callable(each["lr"])]
        lr = 0.0 if callable(group["lr"]) else group["lr"]
        self.hyper[row] = self._uploaded(hyper_of(group, self.options, lr, self._seeds[row]))

    def _uploaded(self, values):
        return self.kernels.upload(np.array(values, np.float64), self.buffers.p)

    def scheduled_lrs(self) -> list[tuple[int, float]]:
        """(row, learning rate for the next step) of every group with a schedule."""
        return [(row, self.lr(row)) for row in self.scheduled]

    def lr(self, row: int) -> float:
        """The learning rate of a group for its next step."""
        lr = self.groups[row]["lr"]
        return schedules.checked(lr, self.calls(row), "lr") if callable(lr) else lr

    def use_lrs(self, lrs: list[tuple[int, float]]) -> None:
        """Take the next step with these learning rates."""
        for row, lr in lrs:
            self.hyper[row, LR] = lr

    def carry(self, row: int, step: float, momentum_product: float) -> None:
        """Set what a group carries from step to step."""
        self.carried[row] = self._uploaded([step, momentum_product])

    def state(self, row: int) -> tuple[int, float]:
        """Steps taken and NAdam's product of momenta of a group. On a GPU this waits for the last step."""
        values = self.carried[row].tolist()
        return int(values[STEP]), values[MOMENTUM_PRODUCT]

    def seed(self, row: int) -> int:
        """The seed of the stochastic rounding of a group."""
        return self._seeds[row]

    def use_seed(self, row: int, seed: int) -> None:
        """Round the parameters of a group by this seed from now on."""
        self._seeds[row] = seed
        self._refresh(row)

    def addresses(self, flat: Any) -> np.ndarray:
        """Where the gradient of each parameter lies in the flat array `flat`."""
        first = self.kernels.address(flat)
        return np.array([first + segment.start * flat.itemsize for segment in self.segments], np.int64)

    def launches(self, merged: bool) -> list[tuple]:
        """The launches of a step on all parameters; `merged` if all gradients lie in one flat array."""
        if merged not in self._launches:
            pieces = self.pieces(merged=merged)
            self._launches[merged] = [self.launch(update, rows, pieces) for update, rows in self.updates().items()]
        return self._launches[merged]

    def updates(self) -> dict[Update, list[int]]:
        """The update texts of the groups, each with the rows that it steps."""
        rows: dict[Update, list[int]] = {}
        for row, recipe in enumerate(self.recipes):
            assert recipe is not None
            rows.setdefault(update_of(recipe), []).append(row)
        return rows

    def pieces(self, *, merged: bool, without: frozenset[int] = frozenset()) -> list[Piece]:
        """A piece for each parameter, but for those `without` one; if `merged`, neighbours of a group share one.

        Neighbours have no gap between them: without eps its zeros would become 0 / 0.
        """
        pieces: list[Piece] = []
        for index, (segment, row) in enumerate(zip(self.segments, self.rows, strict=True)):
            if index in without:
                continue
            if merged and pieces and pieces[-1][1:3] == (segment.start, row):
                start, _, row, first, _ = pieces.pop()
                pieces.append((start, segment.stop, row, first, 0))
            else:
                pieces.append((segment.start, segment.stop, row, index, 0))
        return pieces

    def launch(self, update: Update, rows: list[int], pieces: Any) -> tuple:
        """The launch of `update` on those of `pieces` that are in `rows`: a function and its first arguments."""
        pieces = np.asarray(pieces, np.int64).reshape(-1, 5)
        if len(rows) < len(self.groups):
            pieces = pieces[np.isin(pieces[:, 2], rows)]
        size = int((pieces[:, 1] - pieces[:, 0]).sum())
        flats = tuple(self.buffers.flat(name) for name in update.flats)
        call = self.kernels.launcher(update, self.buffers.arithmetic, size)
        like = self.buffers.p
        blocks = self.kernels.blocks_of(pieces, like, self.buffers.storage)
        return call, flats, blocks, self.kernels.upload(np.array(rows, np.int64), like)

    def scalars(self, row: int) -> dict[str, float]:
        """The scalars of the last step of a group, by name. On a GPU this waits for the step."""
        recipe = self.recipes[row]
        assert recipe is not None
        names = update_of(recipe).scalars
        return dict(zip(names, self.table[row].tolist(), strict=False))

    def calls(self, row: int) -> int:
        """How many steps have been asked of a group, those that were skipped included."""
        return self.asked + self._earlier[row]

    def set_calls(self, row: int, count: int) -> None:
        """Set how many steps have been asked of a group."""
        self._earlier[row] = count - self.asked
