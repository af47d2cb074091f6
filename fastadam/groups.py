"""One parameter group: torch's keys, each value checked when it is assigned."""

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import numpy as np

from fastadam.arrays import real


def nonnegative(value: Any, label: str) -> float:
    """`value` as a float; raise unless it is a finite real number >= 0."""
    number = real(value, label)
    if number < 0.0:
        raise ValueError(f"`{label}` must be >= 0, got {number}")
    return number


def _betas(value, label):
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != 2:
        raise TypeError(f"`{label}` must be a pair (beta1, beta2), got {value!r}")
    betas = tuple(nonnegative(beta, f"{label}[{index}]") for index, beta in enumerate(value))
    for index, beta in enumerate(betas):
        if beta >= 1.0:
            raise ValueError(f"`{label}[{index}]` must be in [0, 1), got {beta}")
    return betas


def _flag(value, label):
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{label}` must be True or False, got {value!r}")
    return bool(value)


_CHECKS = {
    "lr": nonnegative,
    "betas": _betas,
    "eps": nonnegative,
    "weight_decay": nonnegative,
    "maximize": _flag,
    "decoupled_weight_decay": _flag,
}


class ParamGroup(MutableMapping):
    """A group of parameters and its hyperparameters, under torch's keys.

    ``group["lr"] = 1e-4`` takes effect at the next step, without recompiling. A bad value raises at the assignment and
    leaves the group as it was. ``group["params"]`` is the tuple of the parameters' names; it cannot be assigned.
    Further keys (a scheduler's ``initial_lr``, a label) are kept and ignored.
    """

    def __init__(self, names: tuple, settings: dict[str, Any]):
        self._values: dict[str, Any] = {"params": names}
        self._values.update({key: self._checked(key, value) for key, value in settings.items()})
        # Called after each assignment.
        self.changed: Callable[[], None] = lambda: None

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = self._checked(key, value)
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
        return _CHECKS[key](value, key) if key in _CHECKS else value

    def check(self, settings: dict[str, Any]) -> None:
        """Raise if one of `settings` cannot be assigned."""
        for key, value in settings.items():
            self._checked(key, value)
