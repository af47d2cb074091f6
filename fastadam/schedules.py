"""Learning-rate schedules: callables of the number of steps that were asked of a group so far.

A schedule is any callable, `schedule(step) -> float`; `step` is 0 for the first step. That is the count of optax, the
`last_epoch` of torch and the `iterations` of Keras. Every call of the optimizer's `step` counts, whether or not it was
skipped and whichever parameters had a gradient; bias corrections count the steps that each parameter has taken. An
optax schedule needs no adapter: the 0-d array that it returns is taken as the number in it. `from_torch` turns a torch
scheduler into a schedule.

The schedules here are frozen dataclasses: they can be pickled, compared and printed. Arguments have torch's names
where torch has one, and after its end each schedule stays at its final value.

Example:
    >>> import numpy as np, fastadam
    >>> schedule = fastadam.schedules.WarmupCosine(peak_lr=1e-3, warmup_steps=100, total_steps=1000)
    >>> optimizer = fastadam.AdamW({"w": np.ones(3)}, lr=schedule)
    >>> schedule(50)
    0.0005
"""

import importlib
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, SupportsFloat

from fastadam.settings.checks import flag, integer, nonnegative, one_of, positive, real

Schedule = Callable[[int], SupportsFloat]


def _rate(value, label):
    number = real(value, label)
    if not 0.0 < number <= 1.0:
        raise ValueError(f"`{label}` must be in (0, 1], got {number}")
    return number


def _share(value, label):
    number = real(value, label)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"`{label}` must be in [0, 1], got {number}")
    return number


_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("lr", "peak_lr", "max_lr", "initial_lr", "final_lr"), nonnegative),
    **dict.fromkeys(("div_factor", "final_div_factor"), positive),
    **dict.fromkeys(("warmup_steps", "stable_steps"), partial(integer, least=0)),
    **dict.fromkeys(("decay_steps", "total_steps"), partial(integer, least=1)),
    "decay_rate": _rate,
    "pct_start": _share,
    "staircase": flag,
    "anneal_strategy": partial(one_of, choices=("cos", "linear")),
    "shape": partial(one_of, choices=("linear", "cosine", "sqrt")),
}


def _half_cosine(fraction):
    return (1.0 - math.cos(math.pi * fraction)) / 2.0


# Which part of the way is done after a fraction of the steps: from 0 at 0 to 1 at 1.
_SHAPES = {"linear": float, "sqrt": math.sqrt, "cosine": _half_cosine, "cos": _half_cosine}


def _interpolated(step, start, *pieces):
    """The value at `step` on the way from `start` through `pieces`: (length in steps, value at the end, shape)."""
    for length, end, shape in pieces:
        if step <= length and length > 0:
            done = _SHAPES[shape](step / length)
            return (1.0 - done) * start + done * end
        step, start = step - length, end
    return start


@dataclass(frozen=True)
class _Schedule:
    """What every schedule does: check its arguments and its steps."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _CHECKS[field.name](getattr(self, field.name), field.name))

    def __call__(self, step: int) -> float:
        """The learning rate for the step after `step` steps, a float."""
        return self._at(integer(step, "step", least=0))

    def _at(self, step):
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(_Schedule):
    """The same learning rate at every step: lr(step) = lr.

    Args:
        lr: Learning rate, >= 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a learning rate that is negative or not finite.

    Example:
        >>> from fastadam.schedules import Constant
        >>> Constant(1e-3)(100)
        0.001
    """

    lr: float

    def _at(self, step):
        return self.lr


@dataclass(frozen=True)
class _WarmupDecay(_Schedule):
    peak_lr: float
    warmup_steps: int
    total_steps: int
    final_lr: float = 0.0
    initial_lr: float = 0.0
    _shape: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_steps <= self.warmup_steps:
            raise ValueError(f"`total_steps` must be > `warmup_steps` = {self.warmup_steps}, got {self.total_steps}")

    def _at(self, step):
        warmup = (self.warmup_steps, self.peak_lr, "linear")
        decay = (self.total_steps - self.warmup_steps, self.final_lr, self._shape)
        return _interpolated(step, self.initial_lr, warmup, decay)


@dataclass(frozen=True)
class WarmupCosine(_WarmupDecay):
    """Linear warm-up, then decay along half a cosine: `optax.warmup_cosine_decay_schedule`.

    With w = warmup_steps, T = total_steps:

        lr(step) = initial_lr + (peak_lr - initial_lr) * step / w                                      step <  w
        lr(step) = final_lr + (peak_lr - final_lr) * (1 + cos(pi * (step - w) / (T - w))) / 2     w <= step <= T

    Args:
        peak_lr: Learning rate at the end of the warm-up, >= 0.
        warmup_steps: Length of the warm-up, in steps; 0 for none.
        total_steps: Length of warm-up and decay together, in steps (optax: `decay_steps`), > `warmup_steps`.
        final_lr: Learning rate at step `total_steps` and after it (optax: `end_value`), >= 0.
        initial_lr: Learning rate of the first step of the warm-up (optax: `init_value`), >= 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a learning rate that is negative or not finite, or a number of steps out of range.

    Example:
        >>> from fastadam.schedules import WarmupCosine
        >>> schedule = WarmupCosine(peak_lr=0.5, warmup_steps=10, total_steps=110)
        >>> [round(schedule(step), 6) for step in (0, 5, 10, 60, 110, 200)]
        [0.0, 0.25, 0.5, 0.25, 0.0, 0.0]

    References:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", https://arxiv.org/abs/1608.03983.
    """

    _shape = "cosine"


@dataclass(frozen=True)
class WarmupLinear(_WarmupDecay):
    """Linear warm-up, then linear decay.

    With w = warmup_steps, T = total_steps:

        lr(step) = initial_lr + (peak_lr - initial_lr) * step / w                 step <  w
        lr(step) = peak_lr + (final_lr - peak_lr) * (step - w) / (T - w)     w <= step <= T

    Args:
        peak_lr: Learning rate at the end of the warm-up, >= 0.
        warmup_steps: Length of the warm-up, in steps; 0 for none.
        total_steps: Length of warm-up and decay together, in steps, > `warmup_steps`.
        final_lr: Learning rate at step `total_steps` and after it, >= 0.
        initial_lr: Learning rate of the first step of the warm-up, >= 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a learning rate that is negative or not finite, or a number of steps out of range.

    Example:
        >>> from fastadam.schedules import WarmupLinear
        >>> schedule = WarmupLinear(peak_lr=0.5, warmup_steps=10, total_steps=110, initial_lr=0.25)
        >>> [schedule(step) for step in (0, 5, 10, 60, 110, 200)]
        [0.25, 0.375, 0.5, 0.25, 0.0, 0.0]

    References:
        Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", https://arxiv.org/abs/1810.04805.
    """

    _shape = "linear"


@dataclass(frozen=True)
class WarmupStableDecay(_Schedule):
    """Linear warm-up, a plateau, then decay.

    With f the fraction of the decay that is done, from 0 to 1, the last phase is

        lr(step) = peak_lr + (final_lr - peak_lr) * s(f),    s(f) = f                        shape="linear"
                                                                    (1 - cos(pi * f)) / 2    shape="cosine"
                                                                    sqrt(f)                  shape="sqrt"

    Args:
        peak_lr: Learning rate of the plateau, >= 0.
        warmup_steps: Length of the warm-up, in steps; 0 for none.
        stable_steps: Length of the plateau, in steps; 0 for none.
        decay_steps: Length of the decay, in steps, > 0.
        final_lr: Learning rate after all these steps, >= 0.
        initial_lr: Learning rate of the first step of the warm-up, >= 0.
        shape: The curve of the decay: "linear", "cosine" or "sqrt" (the papers' 1-sqrt).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a learning rate that is negative or not finite, a number of steps out of range, an unknown shape.

    Example:
        >>> from fastadam.schedules import WarmupStableDecay
        >>> schedule = WarmupStableDecay(0.5, warmup_steps=10, stable_steps=50, decay_steps=40, shape="sqrt")
        >>> [schedule(step) for step in (0, 5, 10, 60, 70, 100, 200)]
        [0.0, 0.25, 0.5, 0.5, 0.25, 0.0, 0.0]

    References:
        Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models", https://arxiv.org/abs/2404.06395.
        Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
        https://arxiv.org/abs/2405.18392.
    """

    peak_lr: float
    warmup_steps: int
    stable_steps: int
    decay_steps: int
    final_lr: float = 0.0
    initial_lr: float = 0.0
    shape: str = "linear"

    def _at(self, step):
        warmup = (self.warmup_steps, self.peak_lr, "linear")
        stable = (self.stable_steps, self.peak_lr, "linear")
        return _interpolated(step, self.initial_lr, warmup, stable, (self.decay_steps, self.final_lr, self.shape))


@dataclass(frozen=True)
class OneCycle(_Schedule):
    """The 1cycle policy: `torch.optim.lr_scheduler.OneCycleLR` of two phases, without its momentum.

    The learning rate goes from max_lr / div_factor at step 0 to max_lr at step pct_start * total_steps - 1, and from
    there to max_lr / div_factor / final_div_factor at step total_steps - 1, the last one. Both phases interpolate with

        lr = start + (end - start) * s(f),    s(f) = (1 - cos(pi * f)) / 2    anneal_strategy="cos"
                                                     f                        anneal_strategy="linear"

    where f is the fraction of the phase that is done.

    Args:
        max_lr: Highest learning rate, >= 0.
        total_steps: Length of the cycle, in steps, > 0.
        pct_start: Fraction of the cycle, in [0, 1], in which the learning rate rises.
        anneal_strategy: "cos" or "linear".
        div_factor: `max_lr` over the learning rate of the first step, > 0.
        final_div_factor: The learning rate of the first step over that of the last one, > 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a number out of range, an unknown strategy.

    Example:
        >>> from fastadam.schedules import OneCycle
        >>> schedule = OneCycle(max_lr=1.0, total_steps=100)
        >>> [round(schedule(step), 6) for step in (0, 29, 64, 99, 200)]
        [0.04, 1.0, 0.500002, 4e-06, 4e-06]

    References:
        Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
        https://arxiv.org/abs/1708.07120.
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def _at(self, step):
        initial_lr = self.max_lr / self.div_factor
        rise = self.pct_start * self.total_steps - 1  # below 0: step 0 is already past the peak, as in torch
        fall = self.total_steps - 1 - rise
        phases = (rise, self.max_lr), (fall, initial_lr / self.final_div_factor)
        return _interpolated(step, initial_lr, *((*phase, self.anneal_strategy) for phase in phases))


@dataclass(frozen=True)
class Exponential(_Schedule):
    """Exponential decay: Keras's `ExponentialDecay`, `optax.exponential_decay`, and torch's `ExponentialLR`.

        lr(step) = max(final_lr, lr * decay_rate**(step / decay_steps))

    where step / decay_steps is rounded down with `staircase`, which is torch's `StepLR`.

    Args:
        lr: Learning rate of the first step, >= 0.
        decay_rate: The factor on the learning rate over `decay_steps` steps, in (0, 1] (torch: `gamma`).
        decay_steps: After how many steps the factor is reached, > 0 (optax: `transition_steps`; torch: `step_size`).
        staircase: Decay at every `decay_steps`-th step only.
        final_lr: Where the decay stops (optax: `end_value`), >= 0 and <= `lr`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a number out of range.

    Example:
        >>> from fastadam.schedules import Exponential
        >>> schedule = Exponential(1.0, decay_rate=0.5, decay_steps=10, final_lr=0.125)
        >>> [schedule(step) for step in (0, 10, 20, 100)]
        [1.0, 0.5, 0.25, 0.125]
    """

    lr: float
    decay_rate: float
    decay_steps: int = 1
    staircase: bool = False
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final_lr > self.lr:
            raise ValueError(f"`final_lr` must be <= `lr` = {self.lr}, got {self.final_lr}")

    def _at(self, step):
        decays = step // self.decay_steps if self.staircase else step / self.decay_steps
        return max(self.final_lr, self.lr * self.decay_rate**decays)


class TorchSchedule:
    """A torch scheduler as a callable of the step: what `from_torch` returns.

    Each new step advances the scheduler once. The values of earlier steps are stored, 8 bytes each. Unpickling builds
    the scheduler anew and replays it.
    """

    def __init__(self, make_scheduler: Callable[[Any], Any], lr: float):
        if not callable(make_scheduler):
            raise TypeError(f"`make_scheduler` must be a function of a torch optimizer, got {make_scheduler!r}")
        self.make_scheduler = make_scheduler
        self.lr = nonnegative(lr, "lr")
        self._begin()

    def __call__(self, step: int) -> float:
        """The learning rate for the step after `step` steps, a float."""
        step = integer(step, "step", least=0)
        while len(self._lrs) <= step:
            self._optimizer.step()  # torch warns unless the optimizer steps before its scheduler
            self._scheduler.step()
            self._lrs.append(float(self._optimizer.param_groups[0]["lr"]))
        return self._lrs[step]

    def __repr__(self) -> str:
        return f"TorchSchedule(make_scheduler={self.make_scheduler!r}, lr={self.lr!r})"

    def __reduce__(self):
        return TorchSchedule, (self.make_scheduler, self.lr)

    def _begin(self):
        torch = importlib.import_module("torch")
        self._optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=self.lr)
        self._scheduler = self.make_scheduler(self._optimizer)
        kinds, name = torch.optim.lr_scheduler, type(self._scheduler).__name__
        if not isinstance(self._scheduler, kinds.LRScheduler):
            raise TypeError(f"`make_scheduler` must return a torch LRScheduler, got {name}")
        if isinstance(self._scheduler, kinds.ReduceLROnPlateau):
            raise TypeError(f"`make_scheduler` must return a scheduler of the step alone, got {name}")
        if self._scheduler.optimizer is not self._optimizer:
            raise ValueError(f"`make_scheduler` must schedule the optimizer that it is given, got a {name} of another")
        self._lrs = array("d", [self._optimizer.param_groups[0]["lr"]])


def from_torch(make_scheduler: Callable[[Any], Any], lr: float) -> TorchSchedule:
    """Turn a torch scheduler into a schedule.

    Args:
        make_scheduler: A function that takes a torch optimizer and returns a scheduler for it. The optimizer that it
            is given is made for this purpose.
        lr: The learning rate that the scheduler starts from, >= 0.

    Raises:
        TypeError: `make_scheduler` returns no `LRScheduler`, or one that needs more than the step
            (`ReduceLROnPlateau`).
        ValueError: a learning rate that is negative or not finite, or a scheduler of another optimizer.

    Example:
        >>> import torch
        >>> from fastadam.schedules import from_torch
        >>> schedule = from_torch(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30, gamma=0.5), lr=1.0)
        >>> [schedule(step) for step in (0, 29, 30, 60, 0)]
        [1.0, 1.0, 0.5, 0.25, 1.0]
    """
    return TorchSchedule(make_scheduler, lr)


def checked(schedule: Schedule, step: int, label: str) -> float:
    """The value of `schedule` at `step` as a float; `label` is its name in error messages.

    Args:
        schedule: Any callable that takes the number of steps that were asked of a group.
        step: That number, 0 for the first step.
        label: The hyperparameter that the schedule sets.

    Raises:
        TypeError: the value is not one real number.
        ValueError: the value is negative or not finite.

    Example:
        >>> from fastadam.schedules import checked
        >>> checked(lambda step: 0.1 / (1 + step), 4, "lr")
        0.02
    """
    value = schedule(step)
    try:
        return nonnegative(value, label)
    except TypeError as error:
        raise TypeError(f"`{label}` must be a real number, got {value!r} from its schedule at step {step}") from error
    except ValueError as error:
        message = f"`{label}` must be >= 0 and finite, got {float(value)} from its schedule at step {step}"
        raise ValueError(message) from error
