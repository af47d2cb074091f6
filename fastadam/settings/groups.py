"""One parameter group: torch's keys, each value checked when it is assigned."""

from collections.abc import Callable, Iterator, MutableMapping
from math import inf
from typing import Any

from fastadam.kernels.texts.member import Member
from fastadam.settings.checks import flag, fraction, nonnegative
from fastadam.settings.options import OPTION_NAMES, moment_dtypes


def _lr(value, label):
    return value if callable(value) else nonnegative(value, label)


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


class ParamGroup(MutableMapping):
    """A group of parameters and its hyperparameters, under torch's keys.

    ``group["lr"] = 1e-4`` takes effect at the next step, without recompiling. It may also be a schedule, a callable
    that takes the number of steps that were asked of the group before. A bad value raises at the assignment and leaves
    the group as it was.
    ``group["params"]`` is the tuple of the parameters' names; it cannot be assigned.
    Further keys (a scheduler's ``initial_lr``, a label) are kept and ignored.
    """

    def __init__(
        self,
        names: tuple,
        settings: dict[str, Any],
        member: Member,
        check_together: Callable[[dict[str, Any]], None] = lambda values: None,
    ):
        """Make a group; `check_together` raises if values that are right one by one do not go together."""
        self._checks = _checks(member)
        self._check_together = check_together
        # `lr_changed` is called when a plain number was assigned to "lr", `changed` after all other assignments.
        self.changed: Callable[[], None] = lambda: None
        self.lr_changed: Callable[[float], None] = lambda lr: None
        self._values: dict[str, Any] = {"params": names}
        if "moment_dtype" in settings:
            moment_dtypes(settings["moment_dtype"])
            self._values["moment_dtype"] = settings["moment_dtype"]
        self._values.update({key: self._checked(key, value) for key, value in settings.items()})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr" and type(value) is float and 0.0 <= value < inf and not callable(self._values["lr"]):
            # What every scheduler assigns at every step.
            before = self._values["lr"]
            try:
                self._values["lr"] = value
                self.lr_changed(value)
            except BaseException:
                self._values["lr"] = before
                self.lr_changed(before)
                raise
            return
        self.update({key: value})

    def update(self, settings: Any = (), **more: Any) -> None:  # type: ignore[override]
        """Assign several values at once, or none of them if one is bad or they do not go together."""
        before = self._values
        values = {**before, **self.check({**dict(settings), **more})}
        try:
            self._values = values
            self.changed()
        except BaseException:  # there is no memory for what a setting needs, or Ctrl-C comes
            self._values = before
            self.changed()
            raise

    def __delitem__(self, key: str) -> None:
        if key in ("params", "moment_dtype") or key in self._checks:
            raise TypeError(f"`{key}` is a part of every parameter group and cannot be deleted")
        del self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"ParamGroup({self._values!r})"

    def _checked(self, key, value):
        if key == "params":
            raise TypeError("`params` of a group cannot be assigned: add parameters with `add_param_group`")
        if key == "moment_dtype":
            if key in self._values and value == self._values[key]:
                return value
            raise TypeError("`moment_dtype` of a group cannot be assigned: its moments are there, and stored already")
        if key in OPTION_NAMES:
            raise TypeError(f"`{key}` must be given to the optimizer, not to a group: it holds for all of them")
        return self._checks[key](value, key) if key in self._checks else value

    def check(self, settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` as they would be assigned; raise if they cannot be."""
        checked = {key: self._checked(key, value) for key, value in settings.items()}
        self._check_together({**self._values, **checked})
        return checked
