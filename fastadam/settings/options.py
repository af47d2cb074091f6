"""The options of an optimizer that hold for all of its groups."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, TypedDict

import numpy as np

from fastadam.kernels.texts.member import Convention, Member
from fastadam.kernels.texts.members import MEMBERS
from fastadam.settings.checks import flag, fraction, integer, nonnegative, one_of, positive

CONVENTIONS = ("torch", "optax", "keras", "sklearn", "apex")
NONFINITE = ("propagate", "skip", "raise")
COPY_DTYPES = ("bfloat16", "float16")
MOMENT_DTYPES = ("float32", "float64", "bfloat16", "float16", "float8")
GRAD_DTYPES = ("float32", "float64", "bfloat16", "float16")
ROUNDINGS = ("stochastic", "nearest")
# The root of the smallest second moment that float16 holds.
SMALLEST_FLOAT16_ROOT = 2.0**-12
SPARSE = ("lazy", "exact")
CLIPS = ("clip_value", "max_grad_norm", "max_grad_norm_per_param")


@dataclass(frozen=True)
class Options:
    """The keyword arguments that `fastadam.Adam` describes; they are checked when this is made."""

    member: str
    convention: str = "torch"
    eps_root: float = 0.0
    decouple_lr: bool = False
    clip_value: float | None = None
    max_grad_norm: float | None = None
    max_grad_norm_per_param: float | None = None
    nonfinite: str = "propagate"
    max_skipped_steps: int | None = None
    ema_decay: float | None = None
    ema_warmup: bool = False
    copy_dtype: str | None = None
    zero_grad: bool = False
    moment_dtype: str | tuple[str | None, str | None] | None = None
    grad_dtype: str | None = None
    master_weights: bool = False
    rounding: str = "stochastic"
    seed: int = 0
    sparse: str = "lazy"
    exclude_from_weight_decay: Callable[[Hashable], Any] | None = None

    def __post_init__(self):
        one_of(self.convention, "convention", CONVENTIONS)
        one_of(self.nonfinite, "nonfinite", NONFINITE)
        one_of(self.sparse, "sparse", SPARSE)
        if self.copy_dtype is not None:
            one_of(self.copy_dtype, "copy_dtype", COPY_DTYPES)
        if self.grad_dtype is not None:
            one_of(self.grad_dtype, "grad_dtype", GRAD_DTYPES)
        one_of(self.rounding, "rounding", ROUNDINGS)
        moment_dtypes(self.moment_dtype)
        object.__setattr__(self, "seed", integer(self.seed, "seed", least=0))
        for key in ("decouple_lr", "ema_warmup", "zero_grad", "master_weights"):
            object.__setattr__(self, key, flag(getattr(self, key), key))
        for key in CLIPS:
            if getattr(self, key) is not None:
                object.__setattr__(self, key, positive(getattr(self, key), key))
        if self.max_skipped_steps is not None:
            object.__setattr__(self, "max_skipped_steps", integer(self.max_skipped_steps, "max_skipped_steps", least=0))
        object.__setattr__(self, "eps_root", nonnegative(self.eps_root, "eps_root"))
        if self.ema_decay is not None:
            object.__setattr__(self, "ema_decay", fraction(self.ema_decay, "ema_decay"))
        if self.exclude_from_weight_decay is not None and not callable(self.exclude_from_weight_decay):
            raise TypeError(
                "`exclude_from_weight_decay` must be a function of a parameter's name, "
                f"got {self.exclude_from_weight_decay!r}"
            )
        self._check_together()

    def _check_together(self):
        having = MEMBERS[self.member].conventions
        if self.convention not in having:
            raise ValueError(f"`convention` must be one of {list(having)} for this optimizer, got {self.convention!r}")
        if self.eps_root and not self.preset.eps_root:
            raise ValueError(
                f"`eps_root` must be 0 unless `convention` is 'optax' and the optimizer divides by a root, got "
                f"{self.eps_root} with {self.convention!r}"
            )
        if self.max_skipped_steps is not None and self.nonfinite != "skip":
            raise ValueError(
                f"`max_skipped_steps` must be None unless `nonfinite` is 'skip', got {self.max_skipped_steps} with "
                f"{self.nonfinite!r}"
            )
        if self.ema_warmup and self.ema_decay is None:
            raise ValueError("`ema_warmup` needs `ema_decay`, of the average that it lets begin faster")
        for key, other in combinations(CLIPS, 2):
            if getattr(self, key) is not None and getattr(self, other) is not None:
                raise ValueError(
                    f"`{key}` must be None with `{other}`, got {getattr(self, key)} and {getattr(self, other)}: it "
                    "would not be clear which comes first"
                )

    @property
    def family_member(self) -> Member:
        """The declaration of the member."""
        return MEMBERS[self.member]

    @property
    def preset(self) -> Convention:
        """What the system of `convention` makes of the member."""
        return self.family_member.conventions[self.convention]

    @property
    def first_carried(self) -> tuple[float, ...]:
        """What a clock carries into its first step."""
        return self.family_member.first_carried

    @property
    def stores_otherwise(self) -> bool:
        """Whether an option asks for a buffer in another dtype than that of the arithmetic."""
        return bool(self.copy_dtype or self.moment_dtype or self.grad_dtype or self.master_weights)

    @property
    def reduces(self) -> bool:
        """Whether a step needs the norm of the gradients."""
        clips = self.max_grad_norm is not None or self.max_grad_norm_per_param is not None
        return clips or self.nonfinite != "propagate"


def moment_dtypes(given: Any) -> tuple[str | None, str | None]:
    """Check `moment_dtype` and return the dtypes of first and second moments; None is that of the arithmetic."""
    if given is None:
        return None, None
    pair = (given, given) if isinstance(given, str) else given
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"`moment_dtype` must be a string, a pair of them or None, got {given!r}")
    for index, dtype in enumerate(pair):
        if dtype is not None:
            one_of(dtype, "moment_dtype" if isinstance(given, str) else f"moment_dtype[{index}]", MOMENT_DTYPES)
    return pair[0], pair[1]


OPTION_NAMES = {field.name for field in fields(Options)} - {"member"}


class StepKeywords(TypedDict, total=False):
    """The keyword arguments that `fastadam.torch` has too."""

    max_grad_norm: float | None
    max_grad_norm_per_param: float | None
    nonfinite: str
    max_skipped_steps: int | None
    ema_decay: float | None
    ema_warmup: bool
    copy_dtype: str | None
    zero_grad: bool
    moment_dtype: str | tuple[str | None, str | None] | None
    rounding: str
    master_weights: bool
    seed: int


class OptionKeywords(StepKeywords, total=False):
    """The keyword arguments that all optimizer classes share, for editors and type checkers.

    They are those of `Options`, and how parameters are held.
    """

    flat: bool
    shard: Any
    bucket_bytes: int | None
    memory: Callable[[str, int, np.dtype], Any] | None
    convention: str
    eps_root: float
    decouple_lr: bool
    clip_value: float | None
    grad_dtype: str | None
    sparse: str
    exclude_from_weight_decay: Callable[[Hashable], Any] | None
