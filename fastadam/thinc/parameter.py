"""One parameter of a model: where its arrays lie, and the launches that step it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastadam.kernels import GRAD_SCALE, GRADIENT, Launch, Pass, Tables
from fastadam.kernels.blocks import cut
from fastadam.kernels.texts.update import Recipe, update_of
from fastadam.settings.recipes import STEP
from fastadam.step.journal import Journal
from fastadam.thinc.settings import Settings


class Arrays(NamedTuple):
    """What a step reads and writes: arrays of one size and dtype; there may be no average."""

    weights: np.ndarray
    gradient: np.ndarray
    mom1: np.ndarray
    mom2: np.ndarray
    average: np.ndarray | None


class Launches(NamedTuple):
    """What steps a parameter of a size by a recipe.

    Attributes:
        tables: Of one parameter and one clock.
        clip: Writes the factor that clips the gradient to a norm.
        step: Takes the step.
    """

    tables: Tables
    clip: Callable[[float], None]
    step: Launch


class Parameter:
    """One parameter, which is stepped where its arrays lie as long as they are the same ones.

    Attributes:
        arrays: As they were handed over.
        recipe: Of the steps that it takes.
    """

    def __init__(self, settings: Settings, arrays: Arrays):
        self._journal, self.recipe = Journal(), settings.recipe
        self._launches = _launches(settings.recipe, arrays.weights.size, arrays.weights.dtype)
        self._settings: Settings | None = None
        self._use(settings)
        self.place(arrays)

    def place(self, arrays: Arrays) -> None:
        """Let the arrays be these, of the same size and dtype."""
        self._own = None if arrays.gradient.flags.carray else np.empty(arrays.gradient.shape, arrays.gradient.dtype)
        self.arrays = arrays
        self._locate(arrays.gradient if self._own is None else self._own)

    def _locate(self, gradient):
        weights, _, *kept = self.arrays
        row = [gradient, weights, *(array for array in kept if array is not None)]
        self._launches.tables.addresses[0, GRADIENT : len(row)] = [array.ctypes.data for array in row]

    def _use(self, settings):
        """Take over settings with the same recipe."""
        self._launches.tables.hyper[0, : len(settings.hyper)] = settings.hyper
        self._settings = settings

    def step(self, settings: Settings, number: int, note: Callable[[Any, int], None], key: Any) -> None:
        """Take step `number` by settings of its recipe; `note(key, number)` when it has been taken."""
        journal, launches, arrays = self._journal, self._launches, self.arrays
        if journal.begun is not None:
            journal.settle()
        if settings is not self._settings:
            self._use(settings)
        if self._own is None and settings.l2:
            self._own = np.empty(arrays.gradient.shape, arrays.gradient.dtype)
            self._locate(self._own)
        if self._own is not None:
            self._own[...] = arrays.gradient
            if settings.l2:
                self._own += settings.l2 * arrays.weights
        if settings.grad_clip:
            launches.clip(settings.grad_clip)
        launches.tables.carried[0, STEP] = number - 1
        journal.run(launches.step, self._finish, number, note, key)

    def _finish(self, number, note, key):
        if self._own is not None:
            self.arrays.gradient[...] = 0.0
        note(key, number)


def _launches(recipe: Recipe, size: int, dtype: np.dtype) -> Launches:
    # Imported only now, as it loads Numba.
    from fastadam.kernels import cpu

    tables, blocks = cpu.tables(1, 1), cut(np.array([[0, 0, 0, size, 0]], np.int64))
    tables.record[GRAD_SCALE] = 1.0
    sums, ends, clocks = np.zeros(len(blocks)), np.array([len(blocks)]), np.zeros(1, np.int64)
    squares = cpu.squares(dtype, "native", blocks, tables, sums)

    def clip(max_norm):
        squares()
        cpu.clip_each(sums, ends, clocks, 1.0, max_norm, tables)

    step = cpu.launcher([Pass(update_of(recipe), dtype, clocks, blocks)], tables, guarded=False)
    return Launches(tables, clip, step)
