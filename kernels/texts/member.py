"""The declaration of a member of the family: all that others need to know of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fastadam.kernels.texts.update import Recipe

# Hyperparameters that every table has, in this order; those of the member follow. `sign` is -1 to ascend.
SHARED_HYPER = (
    "lr",
    "beta1",
    "beta2",
    "eps",
    "weight_decay",
    "sign",
    "eps_root",
    "clip_value",
    "ema_decay",
    "clip",
)
# Where the factor stands that clips the gradients of a clock with one parameter: it is written before each step.
CLIP = SHARED_HYPER.index("clip")


class Buffer(NamedTuple):
    """What a member keeps of each element.

    Attributes:
        state: Its name in a state dictionary.
        signed: Whether it can be below zero.
        speed: How fast it changes, "fast", "slow" or "slowest", which no other buffer of the member shares. None if it
            is never rounded stochastically, and has no 8-bit codes.
    """

    state: str
    signed: bool
    speed: str | None


class Carried(NamedTuple):
    """A number that the fold carries from step to step: what it begins with, and its name in a state dictionary."""

    first: float
    state: str


class Hyper(NamedTuple):
    """A hyperparameter of a member alone, 0 or greater: its default, and whether it may be infinite."""

    default: float
    unbounded: bool = False


class Convention(NamedTuple):
    """A member as another system has it.

    Attributes:
        eps: Default of `eps`.
        decoupled: Whether the weight decay is decoupled unless asked otherwise.
        amsgrad: Whether there is AMSGrad.
        eps_root: Whether something can be added inside of the root.
        eps_stages: Stages of the fold that put eps where this system has it.
        hyper: Defaults of the member's own hyperparameters, where they are others.
    """

    eps: float = 1e-8
    decoupled: bool = False
    amsgrad: bool = False
    eps_root: bool = False
    eps_stages: tuple[Callable, ...] = ()
    hyper: Mapping[str, float] = {}


@dataclass(frozen=True, eq=False)
class Member:
    """A member of the family.

    Attributes:
        name: What recipes call it.
        buffers: What it keeps of each element: name -> :class:`Buffer`, in the order of the flat arrays.
        element: `element(recipe)`: its stages of the element, between those on the gradient and those on the result.
        fold: `fold(recipe)`: its stages of the fold, after those of the step and of the decay.
        conventions: System -> :class:`Convention`; the first is the default.
        lr: Default learning rate.
        betas: Default betas.
        small_betas: Numbers of the betas, counted from 1, that need another stage where they are below 0.5.
        has_eps: Whether it divides by something that eps is added to.
        has_root: Whether that is the root of `v`.
        hyper: Its own hyperparameters: name -> :class:`Hyper`.
        carried: What its fold carries from step to step beside the count of steps: name -> :class:`Carried`.
        exact_rows: Whether steps that a row has missed can be made up for.
    """

    name: str
    buffers: Mapping[str, Buffer]
    element: Callable[["Recipe"], Sequence[Callable]]
    fold: Callable[["Recipe"], Sequence[Callable]]
    conventions: Mapping[str, Convention]
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)
    small_betas: tuple[int, ...] = (1, 2)
    has_eps: bool = True
    has_root: bool = True
    hyper: Mapping[str, Hyper] = field(default_factory=dict)
    carried: Mapping[str, Carried] = field(default_factory=dict)
    exact_rows: bool = False

    @property
    def hyper_names(self) -> tuple[str, ...]:
        """Names of all hyperparameters, in the order of their table."""
        betas = tuple(f"beta{number}" for number in range(3, len(self.betas) + 1))
        return (*SHARED_HYPER, *betas, *self.hyper)

    @property
    def carried_names(self) -> tuple[str, ...]:
        """Names of what is carried from step to step, in the order of its table."""
        return ("step", *self.carried)

    @property
    def first_carried(self) -> tuple[float, ...]:
        """What is carried into the first step."""
        return (0.0, *(number.first for number in self.carried.values()))

    def hyper_defaults(self, convention: str) -> dict[str, float]:
        """Defaults of the member's own hyperparameters."""
        changed = self.conventions[convention].hyper
        return {name: changed.get(name, hyper.default) for name, hyper in self.hyper.items()}

    def small(self, betas: Sequence[float]) -> tuple[int, ...]:
        """The `small_betas` of a recipe with these betas."""
        return tuple(number for number in self.small_betas if betas[number - 1] < 0.5)

    def format(self, buffer: str, dtype: str, *, stochastic: bool = True) -> str:
        """The format, a key of `formats.FORMATS`, of a buffer kept in `dtype`.

        `dtype` is "native", "bfloat16", "float16", or "float8" for 8-bit codes. What has no codes stays native with
        "float8". If `stochastic`, parameters and moments in bfloat16 are rounded stochastically.
        """
        if buffer == "p":
            return "dithered" if stochastic and dtype == "bfloat16" else dtype
        kept = self.buffers.get(buffer)
        if kept is None or kept.speed is None:
            return "native" if dtype == "float8" else dtype
        if dtype == "float8":
            return f"{'signed' if kept.signed else 'unsigned'}_{kept.speed}"
        return f"dithered_{kept.speed}" if stochastic and dtype == "bfloat16" else dtype
