"""How the demo trains: three optimizers side by side on the same batches, every step timed by itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import fastadam
from fastadam.demo.models import Task
from fastadam.demo.textbook import TextbookAdam
from fastadam.kernels import GRAD_SCALE, Pass, reference
from fastadam.kernels.texts.update import Recipe, update_of


class Device(NamedTuple):
    """Where to train: moves arrays there and back, and waits until all work there is done."""

    name: str
    move: Callable[[Any], Any]
    back: Callable[[Any], Any]
    synchronize: Callable[[], None]


CPU = Device("cpu", np.asarray, np.asarray, lambda: None)


class Run(ABC):
    """One training: parameters, an optimizer for them, and what was measured."""

    name: str

    def __init__(self, task: Task, device: Device, seed: int):
        self.task = task.moved(device.move)
        self.device = device
        self.params = {name: device.move(array) for name, array in task.initial(seed).items()}
        self.gradients = {name: p.copy() for name, p in self.params.items()}
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.gradient_seconds = 0.0
        self.step_seconds: list[float] = []

    @abstractmethod
    def step(self) -> None:
        """Take one optimizer step with `gradients`."""

    def find_gradients(self, rows: Any) -> None:
        """Write the gradients of the loss on the batch of `rows` into `gradients`."""
        rows = self.device.move(rows)
        self.task.model.write_gradients(self.params, self.task.x[rows], self.task.y[rows], self.gradients)

    def train_on(self, rows: Any) -> None:
        """Find the gradients and take the step, and time both."""
        began = perf_counter()
        self.find_gradients(rows)
        self.device.synchronize()
        found = perf_counter()
        self.step()
        self.device.synchronize()
        self.step_seconds.append(perf_counter() - found)
        self.gradient_seconds += found - began

    def note_loss(self) -> None:
        """Append the loss on all training data, or on the held-out data, to `losses`, and the time until now."""
        self.seconds.append(self.gradient_seconds + sum(self.step_seconds))
        self.losses.append(float(self.task.model.loss(self.params, *self.task.judged)))

    @property
    def accuracy(self) -> float | None:
        """Share of the test data that is classified correctly; None without test data."""
        task = self.task
        return None if task.test_x is None else task.model.accuracy(self.params, task.test_x, task.test_y)

    @property
    def median_step(self) -> float:
        """The median time of a step, in seconds."""
        return median(self.step_seconds)

    @property
    def optimizer_share(self) -> float:
        """The optimizer's part of the time for gradients and steps."""
        in_steps = sum(self.step_seconds)
        return in_steps / (in_steps + self.gradient_seconds)

    def furthest_from(self, other: "Run") -> float:
        """Largest absolute difference between the parameters of two runs."""
        mine, others = self.params_on_host(), other.params_on_host()
        return max(float(np.max(np.abs(mine[name] - others[name]))) for name in mine)

    def params_on_host(self) -> dict[str, np.ndarray]:
        """The parameters as float64 NumPy arrays."""
        return {name: np.asarray(self.device.back(p), np.float64) for name, p in self.params.items()}


class TextbookRun(Run):
    """Trains with Adam as a textbook writes it."""

    name = "textbook"

    def __init__(self, task: Task, device: Device, seed: int):
        super().__init__(task, device, seed)
        self._optimizer = TextbookAdam(lr=task.lr)

    def step(self) -> None:
        """Take one optimizer step with `gradients`."""
        self.params = self._optimizer.step(self.params, self.gradients)


class FastRun(Run):
    """Trains with fastadam."""

    name = "fastadam"

    def __init__(self, task: Task, device: Device, seed: int):
        super().__init__(task, device, seed)
        self._start(fastadam.Adam(self.params, lr=task.lr))

    def _start(self, optimizer):
        self._optimizer = optimizer
        self.gradients = {name: optimizer.grads[name] for name in self.params}

    def step(self) -> None:
        """Take one optimizer step with `gradients`, which lie where the optimizer reads them."""
        self._optimizer.step()


class ResumedRun(FastRun):
    """Trains with fastadam, and in the middle saves a checkpoint and goes on from it with a new optimizer."""

    name = "resumed"

    def __init__(self, task: Task, device: Device, seed: int, path: Path):
        super().__init__(task, device, seed)
        self._path, self._steps_to_go = path, task.steps // 2

    def step(self) -> None:
        """Take one optimizer step with `gradients`, and resume after half of the steps."""
        super().step()
        self._steps_to_go -= 1
        if self._steps_to_go == 0:
            self._optimizer.save(self._path)
            self.params = {name: self.device.move(np.zeros(p.shape, np.float32)) for name, p in self.params.items()}
            self._start(fastadam.Adam(self.params))
            self._optimizer.load(self._path)

    def is_same_as(self, other: Run) -> bool:
        """Whether two runs have the same parameters to the last bit."""
        mine, others = (
            {name: self.device.back(p).tobytes() for name, p in run.params.items()} for run in (self, other)
        )
        return mine == others


class ReferenceRun(Run):
    """Trains with the NumPy form of fastadam's update, in place in flat buffers, on the CPU.

    With a `leader` on a GPU it takes the leader's gradients, because its own would be rounded differently.
    """

    name = "reference"

    def __init__(self, task: Task, seed: int, leader: Run | None = None):
        super().__init__(task, CPU, seed)
        self._leader = leader
        update, size = update_of(Recipe()), sum(p.size for p in self.params.values())
        self._flats = {name: np.zeros(size, np.float32) for name in ("g", *update.flats)}
        views = _views(self._flats["p"], self.params)
        for name, p in self.params.items():
            views[name][...] = p
        self.params, self.gradients = views, _views(self._flats["g"], views)
        hyper = {"lr": task.lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "sign": 1.0}
        tables = reference.tables(parameters=1, clocks=1)
        tables.addresses[0, : len(self._flats)] = [reference.address(flat) for flat in self._flats.values()]
        tables.hyper[0, : len(update.hyper)] = [hyper.get(name, 0.0) for name in update.hyper]
        tables.record[GRAD_SCALE] = 1.0
        # One parameter, one clock, and one block with all elements.
        step = Pass(update, np.dtype(np.float32), np.zeros(1, np.int64), np.array([[0, 0, 0, size, 0]], np.int64))
        self._launch = reference.launcher([step], tables, guarded=False)

    def find_gradients(self, rows: Any) -> None:
        """Write the gradients of the loss on the batch of `rows`, or those of the leader, into `gradients`."""
        if self._leader is None:
            super().find_gradients(rows)
            return
        for name, gradient in self._leader.gradients.items():
            self.gradients[name][...] = self._leader.device.back(gradient)

    def step(self) -> None:
        """Take one optimizer step with `gradients`."""
        self._launch()


def _views(flat, arrays):
    """Name -> view of the next elements of `flat`, in the shape of the array of that name."""
    stops = np.cumsum([array.size for array in arrays.values()])
    parts = np.split(flat, stops[:-1])
    return {name: part.reshape(arrays[name].shape) for name, part in zip(arrays, parts, strict=True)}


def contenders(task: Task, device: Device, seed: int) -> list[Run]:
    """The three runs of a task, all from the same starting parameters, in the order in which they take a step."""
    fast = FastRun(task, device, seed)
    return [TextbookRun(task, device, seed), fast, ReferenceRun(task, seed, None if device is CPU else fast)]


def warm_up(task: Task, device: Device, seed: int) -> float:
    """Take one step with every optimizer, and return the seconds that the first one with fastadam took.

    They go into importing Numba or CuPy, and into compiling the kernels or loading them from the cache.
    """
    began = perf_counter()
    _take_empty_step(FastRun(task, device, seed))
    seconds = perf_counter() - began
    for run in contenders(task, device, seed):
        _take_empty_step(run)
    return seconds


def _take_empty_step(run):
    for gradient in run.gradients.values():
        gradient[...] = 0
    run.step()
    run.device.synchronize()


def train(runs: list[Run], seed: int, advance: Callable[[int], Any]) -> None:
    """Train `runs` of one task, batch by batch in turn; `advance(steps)` is called after every epoch."""
    task = runs[0].task
    rng = np.random.default_rng(seed)
    for _ in range(task.epochs):
        batches = batches_of_epoch(task, rng)
        for rows in batches:
            for run in runs:
                run.train_on(rows)
        for run in runs:
            run.note_loss()
        advance(len(batches))


def batches_of_epoch(task: Task, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of each batch of one epoch, in random order; the full batch keeps its order."""
    if task.batches is not None:
        return list(rng.integers(len(task.x), size=(task.batches, task.rows)))
    if task.batch_size is None:
        return [np.arange(len(task.x))]
    return np.array_split(rng.permutation(len(task.x)), task.steps // task.epochs)
