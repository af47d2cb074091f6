"""The groups of a state dictionary: which settings each group of an optimizer takes over."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from fastadam.saved import Loading
from fastadam.settings.groups import ParamGroup


def parts(state_dict: Any, label: str) -> tuple[Sequence[Mapping[str, Any]], Mapping[Hashable, Any]]:
    """The groups and the entries of a state dictionary, of the right kinds."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            f"`{label}` must be a dict with the keys 'state' and 'param_groups', as `state_dict()` makes it"
        )
    groups, state = state_dict["param_groups"], state_dict["state"]
    _check_kind(groups, Sequence, f"{label}['param_groups']", "a list")
    _check_kind(state, Mapping, f"{label}['state']", "a dict")
    for index, group in enumerate(groups):
        _check_kind(group, Mapping, f"{label}['param_groups'][{index}]", "a dict")
        _check_kind(group.get("params"), Sequence, f"{label}['param_groups'][{index}]['params']", "a list")
    return groups, state


def _check_kind(value, kind, label, description):
    if not isinstance(value, kind) or isinstance(value, str):
        raise TypeError(f"`{label}` must be {description}, got {value!r}")


def homes(saved_groups: Sequence[Mapping[str, Any]], label: str) -> dict[Hashable, Mapping[str, Any]]:
    """Name of a parameter -> the saved group that it is in."""
    found: dict[Hashable, Mapping[str, Any]] = {}
    for index, saved in enumerate(saved_groups):
        names = f"{label}['param_groups'][{index}]['params']"
        for name in saved["params"]:
            if not isinstance(name, Hashable):
                raise TypeError(f"`{names}` must have the names of parameters, got {name!r}")
            if name in found:
                raise ValueError(f"`{names}` must have parameters that are in no group before, got {name!r}")
            found[name] = saved
    return found


def settings_of(
    group: ParamGroup,
    homes: Mapping[Hashable, Mapping[str, Any]],
    predicate: Callable[[Hashable], Any] | None,
    how: Loading,
) -> dict[str, Any]:
    """Check and return the saved settings for `group`. The saved groups may be others than those of this optimizer."""
    missing = [name for name in group["params"] if name not in homes]
    names = [name for name in group["params"] if name in homes]
    found = [] if missing and how.strict else _all_settings(names, homes, predicate)
    if (missing and how.strict) or any(settings != found[0] for settings in found):
        raise ValueError(
            f"`{how.label}['param_groups']` must have the parameters of each group of this optimizer, with one set of "
            f"settings, got {found if found else f'none of {missing}'} for {list(group['params'])}"
        )
    # Settings of another member are none here.
    settings = {key: value for key, value in (found[0] if found else {}).items() if group.resembled(key) is None}
    if callable(group["lr"]) and not callable(settings.get("lr")):
        # A saved number does not replace a schedule, which goes on where the saved run was.
        settings.pop("lr", None)
    if not how.strict:
        # It says which state there is: what is switched on here begins afresh, what is not is left out.
        settings.pop("amsgrad", None)
    group.check(settings)
    return settings


def _all_settings(names, homes, predicate):
    """The settings of every saved group that has a parameter of these `names`."""
    by_home: dict[int, list[Hashable]] = {}
    for name in names:
        by_home.setdefault(id(homes[name]), []).append(name)
    decaying: list[dict[str, Any]] = []
    excluded: list[dict[str, Any]] = []
    for together in by_home.values():
        # The arrays themselves tell how moments are stored.
        saved = {key: value for key, value in homes[together[0]].items() if key not in ("params", "moment_dtype")}
        # Older states have parameters without weight decay in groups of their own, whose decay is zero.
        alone = predicate is not None and saved.get("weight_decay") == 0.0 and all(map(predicate, together))
        (excluded if alone else decaying).append(saved)
    if not decaying:
        return excluded
    return decaying + [{**saved, "weight_decay": decaying[0].get("weight_decay")} for saved in excluded]
