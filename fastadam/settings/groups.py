"""One parameter group: torch's keys, each value checked when it is assigned."""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from fastadam.settings.checks import flag, fraction, nonnegative
from fastadam.settings.options import OPTION_NAMES


def _lr(value, label):
    return value if callable(value) else nonnegative(value, label)


def _betas(value, label):
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != 2:
        raise TypeError(f"`{label}` must be a pair (beta1, beta2), got {value!r}")
    return tuple(fraction(beta, f"{label}[{index}]") for index, beta in enumerate(value))


def _momentum_decay(value, label):
    # Infinite: the momentum is beta1 at every step.
    return value if isinstance(value, float) and value == float("inf") else nonnegative(value, label)


_CHECKS = {
    "lr": _lr,
    "betas": _betas,
    "eps": nonnegative,
    "weight_decay": nonnegative,
    "amsgrad": flag,
    "maximize": flag,
    "decoupled_weight_decay": flag,
    "momentum_decay": _momentum_decay,
}


class ParamGroup(MutableMapping):
    """A group of parameters and its hyperparameters, under torch's keys.

    ``group["lr"] = 1e-4`` takes effect at the next step, without recompiling; it may also be a schedule, a callable of
    the number of steps before this one. A bad value raises at the assignment and leaves the group as it was.
    ``group["params"]`` is the tuple of the parameters' names; it cannot be assigned.
    Further keys (a scheduler's ``initial_lr``, a label) are kept and ignored.
    """

    def __init__(self, names: tuple, settings: dict[str, Any]):
        self._values: dict[str, Any] = {"params": names}
        self._values.update({key: self._checked(key, value) for key, value in settings.items()})
        # Called after each assignment.
        self.changed: Callable[[], None] = lambda: None
        # Called before each assignment with all values as they would be; it raises if they do not go together.
        self.check_together: Callable[[dict[str, Any]], None] = lambda values: None

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, settings: Any = (), **more: Any) -> None:  # type: ignore[override]
        """Assign several values at once: all of them, or none if one is bad or they do not go together."""
        self._values.update(self.check({**dict(settings), **more}))
        self.changed()

    def __delitem__(self, key: str) -> None:
        if key == "params" or key in _CHECKS:
            raise TypeError(f"`{key}` is a part of every parameter group and cannot be deleted")
        del self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ParamGroup({self._values!r})"

    @staticmethod
    def _checked(key, value):
        if key == "params":
            raise TypeError("`params` of a group cannot be assigned: add parameters with `add_param_group`")
        if key in OPTION_NAMES:
            raise TypeError(f"`{key}` must be given to the optimizer, not to a group: it holds for all of them")
        return _CHECKS[key](value, key) if key in _CHECKS else value

    def check(self, settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` as they would be assigned; raise if they cannot be."""
        checked = {key: self._checked(key, value) for key, value in settings.items()}
        self.check_together({**self._values, **checked})
        return checked
