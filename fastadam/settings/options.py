"""What an optimizer does beside its update, the same for all groups; and the presets named after other systems."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from fastadam.settings.checks import flag, fraction, integer, nonnegative, one_of, positive


class Convention(NamedTuple):
    """The defaults of a system. Where its eps stands, and what its AMSGrad is, is in `fastadam.kernels.texts.fold`.

    Attributes:
        eps: Its default of `eps`.
        decoupled: Whether its weight decay is decoupled unless asked otherwise.
        momentum_decay: NAdam's, as a number for the common formula; None where it has no NAdam.
        members: Which members of the family it has.
        amsgrad: Whether it has AMSGrad.
    """

    eps: float
    decoupled: bool
    momentum_decay: float | None
    members: tuple[str, ...]
    amsgrad: bool


CONVENTIONS = {
    "torch": Convention(1e-8, False, 4e-3, ("adam", "nadam", "adamax", "radam"), True),
    "optax": Convention(1e-8, True, float("inf"), ("adam", "nadam", "adamax", "radam"), True),
    "keras": Convention(1e-7, True, 1.0, ("adam", "nadam", "adamax"), True),
    "sklearn": Convention(1e-8, False, None, ("adam",), False),
    "apex": Convention(1e-8, True, None, ("adam",), False),
}
NONFINITE = ("propagate", "skip", "raise")
COPY_DTYPES = ("bfloat16", "float16")
MOMENT_DTYPES = ("float32", "float64", "bfloat16", "float16", "float8")
GRAD_DTYPES = ("float32", "float64", "bfloat16", "float16")
ROUNDINGS = ("stochastic", "nearest")
# Of the smallest second moment that float16 holds.
SMALLEST_FLOAT16_ROOT = 2.0**-12
SPARSE = ("lazy", "exact")


@dataclass(frozen=True)
class Options:
    """The keyword arguments of the optimizer classes that are described in `fastadam.Adam`, checked."""

    member: str
    convention: str = "torch"
    eps_root: float = 0.0
    decouple_lr: bool = False
    clip_value: float | None = None
    max_grad_norm: float | None = None
    nonfinite: str = "propagate"
    ema_decay: float | None = None
    copy_dtype: str | None = None
    zero_grad: bool = False
    moment_dtype: str | tuple[str, str] | None = None
    grad_dtype: str | None = None
    master_weights: bool = False
    rounding: str = "stochastic"
    seed: int = 0
    sparse: str = "lazy"
    exclude_from_weight_decay: Callable[[Hashable], Any] | None = None

    def __post_init__(self):
        one_of(self.convention, "convention", tuple(CONVENTIONS))
        one_of(self.nonfinite, "nonfinite", NONFINITE)
        one_of(self.sparse, "sparse", SPARSE)
        if self.copy_dtype is not None:
            one_of(self.copy_dtype, "copy_dtype", COPY_DTYPES)
        if self.grad_dtype is not None:
            one_of(self.grad_dtype, "grad_dtype", GRAD_DTYPES)
        one_of(self.rounding, "rounding", ROUNDINGS)
        for index, dtype in enumerate(self.moment_dtypes):
            if dtype is not None:
                label = "moment_dtype" if isinstance(self.moment_dtype, str) else f"moment_dtype[{index}]"
                one_of(dtype, label, MOMENT_DTYPES)
        object.__setattr__(self, "seed", integer(self.seed, "seed", least=0))
        for key in ("decouple_lr", "zero_grad", "master_weights"):
            object.__setattr__(self, key, flag(getattr(self, key), key))
        for key in ("clip_value", "max_grad_norm"):
            if getattr(self, key) is not None:
                object.__setattr__(self, key, positive(getattr(self, key), key))
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
        if self.member not in CONVENTIONS[self.convention].members:
            having = [name for name, convention in CONVENTIONS.items() if self.member in convention.members]
            raise ValueError(f"`convention` must be one of {having} for this optimizer, got {self.convention!r}")
        if self.eps_root and self.convention != "optax":
            raise ValueError(
                f"`eps_root` must be 0 unless `convention` is 'optax', got {self.eps_root} with {self.convention!r}, "
                "whose eps stands elsewhere"
            )
        if self.eps_root and self.member == "adamax":
            raise ValueError(f"`eps_root` must be 0 for Adamax, which has no root, got {self.eps_root}")
        if self.clip_value is not None and self.max_grad_norm is not None:
            raise ValueError(
                f"`clip_value` must be None with `max_grad_norm`, got {self.clip_value} and {self.max_grad_norm}: it "
                "would not be clear which comes first"
            )

    @property
    def moment_dtypes(self) -> tuple[str | None, str | None]:
        """Of the first and of the second moment; None is the dtype of the arithmetic."""
        given = self.moment_dtype
        if given is None or isinstance(given, str):
            return given, given
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise TypeError(f"`moment_dtype` must be a string, a pair of them or None, got {given!r}")
        return given[0], given[1]

    @property
    def stores_otherwise(self) -> bool:
        """Whether something is asked for that is stored in another dtype than that of the arithmetic."""
        return bool(self.copy_dtype or self.moment_dtype or self.grad_dtype or self.master_weights)

    @property
    def reduces(self) -> bool:
        """Whether a step needs the norm of the gradients."""
        return self.max_grad_norm is not None or self.nonfinite != "propagate"


OPTION_NAMES = {field.name for field in fields(Options)} - {"member"}
