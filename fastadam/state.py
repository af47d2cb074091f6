"""State dictionaries in torch's layout: what a checkpoint needs so that a resumed run is bit for bit the same run."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from fastadam.kernels.texts.casts import WORDS
from fastadam.memory.arrays import assign, on_host
from fastadam.saved import Saved, checked_entry, saved_arrays
from fastadam.settings.groups import ParamGroup
from fastadam.settings.recipes import STEP
from fastadam.step.plan import Plan


def dump_state(plan: Plan, groups: Sequence[ParamGroup], seed: int) -> dict[str, Any]:
    """Copies of the state of every parameter, and the settings of every group."""
    state: dict[Hashable, dict[str, Any]] = {}
    carried = on_host(plan.tables.carried)[plan.clock_of].tolist()
    parameters = iter(zip(plan.parameters, carried, strict=True))
    for index, group in enumerate(groups):
        for _ in group["params"]:
            parameter, (step, *others) = next(parameters)
            # The replays of a CUDA graph take steps that are not asked for here.
            asked = max(plan.asked_of(index), int(step))
            entry = state[parameter.name] = {"step": int(step)}
            for key, flat in saved_arrays(parameter, plan.options, group).items():
                entry[key] = parameter.view(flat).copy()
            if parameter.formats.blocked and not parameter.layout.plain:
                entry["layout"] = list(parameter.layout.axes)
            if parameter.formats.dithers:
                entry["words"], entry["words_seed"] = WORDS, seed
            for number, value in zip(plan.options.family_member.carried.values(), others, strict=False):
                entry[number.state] = value
            if plan.options.nonfinite == "skip" or asked != step:
                entry["skipped"] = int(asked - step)
    return {"state": state, "param_groups": [{**group, "params": list(group["params"])} for group in groups]}


def load_state(plan: Plan, groups: Sequence[ParamGroup], state_dict: Mapping[str, Any], *, convert: bool) -> int | None:
    """Load `state_dict`. Everything is checked before anything is written, and nothing is cast without `convert`.

    Returns the seed of the stochastic rounding in the state, or None if there is no seed to take over.
    """
    saved_groups, state = _parts(state_dict)
    positions = {parameter.name: member for member, parameter in enumerate(plan.parameters)}
    if state.keys() != positions.keys():
        difference = sorted(map(repr, state.keys() ^ positions.keys()))
        raise ValueError(f"`state_dict['state']` must have an entry for every parameter and no other, got {difference}")
    homes = _homes(saved_groups)
    settings = [_settings(group, homes, plan.options.exclude_from_weight_decay) for group in groups]
    loaded: dict[int, Saved] = {}
    for group, values in zip(groups, settings, strict=True):
        will_hold = {**group, **values}
        for name in group["params"]:
            parameter = plan.parameters[positions[name]]
            loaded[positions[name]] = checked_entry(state[name], parameter, plan.options, will_hold, convert=convert)
        _one(
            {loaded[positions[name]].asked for name in group["params"]},
            "number of steps, taken and skipped, for all parameters of a group",
        )
    seed = _one({entry.seed for entry in loaded.values() if entry.seed is not None}, "seed for all parameters")
    _write(plan, groups, settings, loaded)
    return seed


def _one(values, what):
    """The one of `values`, None if there is none; raise if there are several."""
    if len(values) > 1:
        raise ValueError(f"`state_dict` must have one {what}, got {sorted(values)}")
    return next(iter(values), None)


def _write(plan, groups, settings, loaded):
    for member, entry in loaded.items():
        for flat in entry.arrays:
            plan.parameters[member].flat(flat)  # allocate everything before anything is written
    first = 0
    for index, (group, values) in enumerate(zip(groups, settings, strict=True)):
        group.update(values)
        members = range(first, first + len(group["params"]))
        plan.set_clocks(index, {member: loaded[member].carried for member in members})
        plan.set_asked(index, loaded[first].asked)
        first = members.stop
    for member, entry in loaded.items():
        for flat, value in entry.arrays.items():
            assign(plan.parameters[member].flat(flat), value)


def steps_not_taken(plan: Plan, groups: Sequence[ParamGroup]) -> int:
    """How many steps no parameter has taken: the skipped steps, as far as a state tells.

    Only the groups of which most steps were asked count: later ones do not know of steps skipped before them.
    """
    asked = [plan.asked_of(index) for index, group in enumerate(groups) for _ in group["params"]]
    taken = on_host(plan.tables.carried)[plan.clock_of, STEP].tolist()
    most = max(asked)
    return int(min(most - step for count, step in zip(asked, taken, strict=True) if count == most))


def _parts(state_dict):
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            "`state_dict` must be a dict with the keys 'state' and 'param_groups', as `state_dict()` makes it"
        )
    groups, state = state_dict["param_groups"], state_dict["state"]
    _check_kind(groups, Sequence, "state_dict['param_groups']", "a list")
    _check_kind(state, Mapping, "state_dict['state']", "a dict")
    for index, group in enumerate(groups):
        _check_kind(group, Mapping, f"state_dict['param_groups'][{index}]", "a dict")
        _check_kind(group.get("params"), Sequence, f"state_dict['param_groups'][{index}]['params']", "a list")
    return groups, state


def _check_kind(value, kind, label, description):
    if not isinstance(value, kind) or isinstance(value, str):
        raise TypeError(f"`{label}` must be {description}, got {value!r}")


def _homes(saved_groups):
    """Name of a parameter -> the saved group that it is in."""
    homes: dict[Hashable, Mapping[str, Any]] = {}
    for index, saved in enumerate(saved_groups):
        label = f"state_dict['param_groups'][{index}]['params']"
        for name in saved["params"]:
            if not isinstance(name, Hashable):
                raise TypeError(f"`{label}` must have the names of parameters, got {name!r}")
            if name in homes:
                raise ValueError(f"`{label}` must have parameters that are in no group before, got {name!r}")
            homes[name] = saved
    return homes


def _settings(
    group: ParamGroup, homes: Mapping[Hashable, Mapping[str, Any]], predicate: Callable[[Hashable], Any] | None
) -> dict[str, Any]:
    """Check and return the saved settings for `group`. The saved groups may be others than those of this optimizer."""
    missing = [name for name in group["params"] if name not in homes]
    found = [] if missing else _all_settings(group, homes, predicate)
    if missing or any(settings != found[0] for settings in found):
        raise ValueError(
            "`state_dict['param_groups']` must have the parameters of each group of this optimizer, with one set of "
            f"settings, got {f'none of {missing}' if missing else found} for {list(group['params'])}"
        )
    settings = found[0]
    if callable(group["lr"]) and not callable(settings.get("lr")):
        # A saved number does not replace a schedule, which goes on where the saved run was.
        settings.pop("lr", None)
    group.check(settings)
    return settings


def _all_settings(group, homes, predicate):
    """The settings of every saved group that has a parameter of `group`."""
    by_home: dict[int, list[Hashable]] = {}
    for name in group["params"]:
        by_home.setdefault(id(homes[name]), []).append(name)
    decaying: list[dict[str, Any]] = []
    excluded: list[dict[str, Any]] = []
    for names in by_home.values():
        # The arrays themselves tell how moments are stored.
        saved = {key: value for key, value in homes[names[0]].items() if key not in ("params", "moment_dtype")}
        # Older states have parameters without weight decay in groups of their own, whose decay is zero.
        alone = predicate is not None and saved.get("weight_decay") == 0.0 and all(map(predicate, names))
        (excluded if alone else decaying).append(saved)
    if not decaying:
        return excluded
    return decaying + [{**saved, "weight_decay": decaying[0].get("weight_decay")} for saved in excluded]
