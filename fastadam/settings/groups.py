"""One parameter group: torch's keys, each value checked when it is assigned."""

from collections.abc import Callable
from copy import deepcopy
from inspect import signature
from math import inf
from typing import Any

from fastadam.kernels.texts.member import Member
from fastadam.settings.checks import ALIASES, flag, fraction, nearest, nonnegative
from fastadam.settings.options import OPTION_NAMES, moment_dtypes

# What schedulers and frameworks write into groups.
OF_OTHERS = (
    "initial_lr",
    "name",
    "swa_lr",
    "max_lr",
    "min_lr",
    "base_lr",
    "base_momentum",
    "max_momentum",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "param_names",
)


def _lr(value, label):
    if not callable(value):
        return nonnegative(value, label)
    try:
        arguments = signature(value)
    except (TypeError, ValueError):  # many functions written in C have none
        return value
    try:
        arguments.bind(0)
    except TypeError as error:
        raise TypeError(
            f"`{label}` must be a number or a function of the number of earlier steps, got {value!r}: {error}"
        ) from None
    return value


def _unbounded(value, label):
    return value if isinstance(value, float) and value == inf else nonnegative(value, label)


def _checks(member: Member) -> dict[str, Callable[[Any, str], Any]]:
    """Key of a group -> the function that checks a value."""

    def betas(value, label):
        count = len(member.betas)
        if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != count:
            names = ", ".join(f"beta{number}" for number in range(1, count + 1))
            kind = {2: "a pair", 3: "a triple"}[count]
            raise TypeError(f"`{label}` must be {kind} ({names}), got {value!r}")
        return tuple(fraction(beta, f"{label}[{index}]") for index, beta in enumerate(value))

    return {
        "lr": _lr,
        "betas": betas,
        "eps": nonnegative,
        "weight_decay": nonnegative,
        "amsgrad": flag,
        "maximize": flag,
        "decoupled_weight_decay": flag,
        **{name: _unbounded if hyper.unbounded else nonnegative for name, hyper in member.hyper.items()},
    }


class ParamGroup(dict):
    """A group of parameters and its hyperparameters, under torch's keys.

    ``group["lr"] = 1e-4`` takes effect at the next step, without recompiling. It may also be a schedule, a callable
    that takes the number of steps that were asked of the group before. A bad value raises at the assignment and leaves
    the group as it was.
    ``group["params"]`` is the tuple of the parameters' names; it cannot be assigned.
    Further keys (a scheduler's ``initial_lr``, a label) are kept and ignored, unless they resemble a setting: those are
    refused, because they would do nothing.

    Copies, by `copy`, `copy.deepcopy` or pickle, are plain dicts.
    """

    def __init__(
        self,
        names: tuple,
        settings: dict[str, Any],
        member: Member,
        check_together: Callable[[dict[str, Any]], None] = lambda values: None,
    ):
        """Make a group; `check_together` raises if values that are right one by one do not go together."""
        super().__init__(params=names)
        self._checks = _checks(member)
        self._check_together = check_together
        # `lr_changed` is called when a plain number was assigned to "lr", `changed` after all other assignments.
        self.changed: Callable[[], None] = lambda: None
        self.lr_changed: Callable[[float], None] = lambda lr: None
        if "moment_dtype" in settings:
            moment_dtypes(settings["moment_dtype"])
            super().__setitem__("moment_dtype", settings["moment_dtype"])
        super().update({key: self._checked(key, value) for key, value in settings.items()})

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr" and type(value) is float and 0.0 <= value < inf and not callable(self["lr"]):
            # What every scheduler assigns at every step.
            before = self["lr"]
            try:
                super().__setitem__(key, value)
                self.lr_changed(value)
            except BaseException:
                super().__setitem__(key, before)
                self.lr_changed(before)
                raise
            return
        self.update({key: value})

    def update(self, settings: Any = (), **more: Any) -> None:  # type: ignore[override]
        """Assign several values at once, or none of them if one is bad or they do not go together."""
        before, values = dict(self), self.check({**dict(settings), **more})
        try:
            super().update(values)
            self.changed()
        except BaseException:  # there is no memory for what a setting needs, or Ctrl-C comes
            for key in values.keys() - before.keys():
                super().pop(key, None)
            super().update(before)
            self.changed()
            raise

    def __ior__(self, settings: Any) -> "ParamGroup":  # type: ignore[misc]
        self.update(settings)
        return self

    def setdefault(self, key: str, default: Any = None) -> Any:
        """`self[key]`, after `self[key] = default` if there is none."""
        if key not in self:
            self[key] = default
        return self[key]

    def __delitem__(self, key: str) -> None:
        if key in ("params", "moment_dtype") or key in self._checks:
            raise TypeError(f"`{key}` is a part of every parameter group and cannot be deleted")
        super().__delitem__(key)

    def pop(self, key: str, *default: Any) -> Any:
        """Remove a key that is no setting, and return its value."""
        value = self[key] if key in self or not default else default[0]
        if key in self:
            del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        """Refused, like `clear`: settings cannot be deleted."""
        raise TypeError("settings are a part of every parameter group and cannot be deleted")

    def clear(self) -> None:
        """Refused: settings cannot be deleted."""
        self.popitem()

    def copy(self) -> dict[str, Any]:
        """The values, in a plain dict."""
        return dict(self)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return deepcopy(dict(self), memo)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def __repr__(self) -> str:
        return f"ParamGroup({super().__repr__()})"

    def resembled(self, key: Any) -> str | None:
        """The setting or option that `key` resembles; None if it resembles none, or is one."""
        if not isinstance(key, str) or key in self._checks or key in ("params", *OF_OTHERS, *OPTION_NAMES):
            return None
        return ALIASES.get(key.lower()) or nearest(key, [*self._checks, "moment_dtype", *OPTION_NAMES])

    def _checked(self, key, value):
        if key == "params":
            raise TypeError("`params` of a group cannot be assigned: add parameters with `add_param_group`")
        if key == "moment_dtype":
            if key in self and value == self[key]:
                return value
            raise TypeError("`moment_dtype` of a group cannot be assigned: its moments are there, and stored already")
        if key in OPTION_NAMES:
            raise TypeError(f"`{key}` must be given to the optimizer, not to a group: it holds for all of them")
        if key in self._checks:
            return self._checks[key](value, key)
        meant = self.resembled(key)
        if meant is not None:
            raise TypeError(f"`{key}` is no setting of a group, and would do nothing. Did you mean `{meant}`?")
        return value

    def check(self, settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` as they would be assigned; raise if they cannot be."""
        checked = {key: self._checked(key, value) for key, value in settings.items()}
        self._check_together({**self, **checked})
        return checked
