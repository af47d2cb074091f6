"""What a contender is: who steps, on what, and how right it has to be."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastadam.bench.layouts import MEMORY, moves

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8
MAX_NORM, SCALE, WEIGHT_DECAY, EMA_DECAY, CLIP_VALUE = 1.0, 0.5, 1e-2, 0.999, 0.5

Arrays = dict[str, np.ndarray]


class Built(NamedTuple):
    """A contender at work.

    Attributes:
        step: Takes one step, and returns when it is done.
        params: Returns the parameters as they are. If the step averages them, "average of <name>" is there too.
        feed: `feed(grads)` puts other gradients in the place of those that it was built with.
        prepare: Called, outside of the time taken, before every few steps: restores gradients that a step zeroes, or
            goes on to the next of `in_rotation`.
        settle: Called once, after the parameters have been compared: brings about the state in which it is timed.
    """

    step: Callable[[], Any]
    params: Callable[[], Arrays]
    feed: Callable[[Arrays], Any]
    prepare: Callable[[], Any] | None = None
    settle: Callable[[], Any] | None = None


class Formula(NamedTuple):
    """What a step computes.

    Attributes:
        member: "Adam", "AdamW", "AMSGrad", "NAdam", "Adamax" or "RAdam", all in the form of PyTorch.
        scale: The factor on the gradients.
        clip_norm: Whether gradients are clipped by their global norm, at MAX_NORM.
        clip_value: Whether gradients are clipped by value, at CLIP_VALUE.
        average: Whether an average of the parameters is kept.
        rates: Whether each parameter has a learning rate of its own, which `rate` gives.
    """

    member: str = "Adam"
    scale: float = 1.0
    clip_norm: bool = False
    clip_value: bool = False
    average: bool = False
    rates: bool = False


def rate(index: int) -> float:
    """The learning rate of the parameter of this index, where each has its own."""
    return LR * (1 + index % 20)


FORMULAS = {
    "plain": Formula(),
    "clip": Formula(clip_norm=True),
    "full": Formula("AdamW", SCALE, clip_norm=True, average=True),
}


class Contender(NamedTuple):
    """How to build a contender, and what is expected of it.

    Attributes:
        name: For tables and the command line.
        build: `build(params, grads, kind)`, on arrays that it may write into.
        needs: Packages without which it is missing.
        kinds: The kinds of cases in which it takes part, keys of `layouts.KINDS`.
        layout: A name of `layouts`: the bytes that it has to move.
        tolerance: Relative and absolute distance from float64 that its storage allows.
        strays: Part of the elements that may be farther off: the format has no range for gradients near zero.
        device: "cpu" or "cuda".
        rotates: Whether its gradients change from turn to turn, through those of `in_rotation`.
        formula: What it computes in a case whose kind has none in `FORMULAS`.
        steps: The number of steps after which it is compared.
        threads: The library whose pool of threads it works on. Contenders of one pool share a process.
        thread_count: The number of threads of that pool that it uses; None for all of them.
    """

    name: str
    build: Callable[[Arrays, Arrays, str], Built]
    needs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("plain",)
    layout: str = "float32"
    tolerance: tuple[float, float] = (1e-5, 1e-6)
    strays: float = 0.0
    device: str = "cpu"
    rotates: bool = False
    formula: Formula = Formula()
    steps: int = 3
    threads: str = "Numba"
    thread_count: int | None = None

    @property
    def process(self) -> str:
        """The process in which it works."""
        if self.device == "cuda":
            return "CUDA"
        return self.threads if self.thread_count is None else f"{self.threads}, {counted(self.thread_count)}"

    @property
    def limit(self) -> str:
        """The contender that moves the same bytes, itself if it does no more than that."""
        return limit_name(self.layout, self.device, self.thread_count)

    @property
    def is_limit(self) -> bool:
        return self.name == self.limit

    def bytes_moved(self, kind: str) -> float:
        """Bytes that a kind of step has to read and write for an element."""
        return moves(self.layout, kind).total

    def missing(self) -> str | None:
        """Why it cannot be built here, or None."""
        absent = [package for package in self.needs if importlib.util.find_spec(package) is None]
        if absent:
            return f"{', '.join(absent)} not installed"
        return None if self.device == "cpu" else no_cuda()


def limit_name(layout: str, device: str = "cpu", count: int | None = None) -> str:
    """The name of the contender that makes the loads and stores of a layout."""
    where = ", CUDA" if device == "cuda" else f", {counted(count)}" if count else ""
    return f"{'memory' if layout in MEMORY else 'limit'}, {layout}{where}"


def counted(threads: int) -> str:
    """A number of threads in words."""
    return f"{threads} thread{'s' * (threads > 1)}"


def fewer_threads() -> list[int]:
    """1, 2, 4 and so on, below the number of Numba's threads."""
    import numba  # not by processes that measure what other libraries take to be imported

    counts = [1]
    while 2 * counts[-1] < numba.config.NUMBA_NUM_THREADS:
        counts.append(2 * counts[-1])
    return counts if numba.config.NUMBA_NUM_THREADS > 1 else []


def no_cuda() -> str | None:
    """Why nothing runs on a GPU here, or None."""
    try:
        from fastadam.kernels import cuda

        return cuda.device_problem()
    except Exception as error:
        return f"CuPy does not work: {error}"


def in_rotation(grads: Arrays) -> list[Arrays]:
    """Three sets of gradients, each of other values in every place, in the memory of little more than one.

    Moments that go on changing take new exponents as in a training.
    """
    longer = {name: np.concatenate([grad.reshape(-1), np.resize(grad, 2_048)]) for name, grad in grads.items()}
    return [
        {name: longer[name][shift : shift + grad.size].reshape(grad.shape) for name, grad in grads.items()}
        for shift in (0, 1_024, 2_048)
    ]


def with_averages(params: Arrays, averages: Arrays) -> Arrays:
    """`params`, and `averages` under names of their own."""
    return {**params, **{f"average of {name}": value for name, value in averages.items()}}
