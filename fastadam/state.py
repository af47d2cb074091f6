"""State dictionaries in torch's layout: what a checkpoint needs so that a resumed run is bit for bit the same run."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastadam.kernels.texts.casts import WORDS
from fastadam.memory.arrays import as_array, as_bits, check_device, dtype_name, moved
from fastadam.memory.conversion import check_codes, converted, saved_layout
from fastadam.memory.parameters import Parameter
from fastadam.settings.checks import integer, real
from fastadam.settings.groups import ParamGroup
from fastadam.step.plan import Plan


class Saved(NamedTuple):
    """The state of one parameter, checked.

    Attributes:
        carried: What its clock carries.
        asked: How many steps have been asked of its group.
        seed: Of the stochastic rounding; None where nothing is rounded so.
        arrays: Flat array -> the values for it, 1-D.
    """

    carried: tuple[float, ...]
    asked: int
    seed: int | None
    arrays: dict[str, Any]


def dump_state(plan: Plan, groups: Sequence[ParamGroup], seed: int) -> dict[str, Any]:
    """Copies of the state of every parameter, and the settings of every group."""
    state: dict[Hashable, dict[str, Any]] = {}
    carried = plan.tables.carried[plan.clock_of].tolist()
    position = 0
    for index, group in enumerate(groups):
        asked = plan.asked_of(index)
        for parameter in plan.parameters[position : position + len(group["params"])]:
            step, *others = carried[position]
            entry = state[parameter.name] = {"step": int(step)}
            for key, flat in _arrays(plan, position, group).items():
                entry[key] = parameter.view(flat).copy()
            if parameter.formats.blocked and not parameter.layout.plain:
                entry["layout"] = [list(parameter.layout.order), list(parameter.layout.backwards)]
            if parameter.formats.dithers:
                entry["words"], entry["words_seed"] = WORDS, seed
            for number, value in zip(plan.options.family_member.carried.values(), others, strict=False):
                entry[number.state] = value
            if plan.options.nonfinite == "skip" or asked != step:
                entry["skipped"] = int(asked - step)
            position += 1
    return {"state": state, "param_groups": [{**group, "params": list(group["params"])} for group in groups]}


def _buffers(plan, settings) -> dict[str, str]:
    """Names of what the state of a parameter has, each with the name of the buffer."""
    optional = {"v_max": settings.get("amsgrad", False)}
    kept = plan.options.family_member.buffers
    names = {buffer.state: name for name, buffer in kept.items() if optional.get(name, True)}
    return {**names, "ema": "ema"} if plan.options.ema_decay is not None else names


def _arrays(plan, member, settings) -> dict[str, str]:
    """Names of the arrays of a parameter's state, each with the flat array that holds it."""
    formats, names = plan.parameters[member].formats, {}
    for key, buffer in _buffers(plan, settings).items():
        code, *exponent = formats.flats(buffer)
        names[key] = code
        names.update({f"{key}_exponent": flat for flat in exponent})
    if "remainder" in formats.flats("p"):
        names["remainder"] = "remainder"
    return names


def load_state(plan: Plan, groups: Sequence[ParamGroup], state_dict: Mapping[str, Any], *, convert: bool) -> int | None:
    """Take over `state_dict`; all is checked before anything is written, and nothing is cast without `convert`.

    Returns the seed of the stochastic rounding in the state, None where it has none that is to be taken over.
    """
    saved_groups, state = _parts(state_dict)
    positions = {parameter.name: member for member, parameter in enumerate(plan.parameters)}
    if state.keys() != positions.keys():
        difference = sorted(map(repr, state.keys() ^ positions.keys()))
        raise ValueError(f"`state_dict['state']` must have an entry for every parameter and no other, got {difference}")
    settings = [_settings(group, saved_groups, plan.options) for group in groups]
    loaded: dict[int, Saved] = {}
    for group, values in zip(groups, settings, strict=True):
        will_hold = {**group, **values}
        entries = {name: _entry(state[name], plan, positions[name], will_hold, convert) for name in group["params"]}
        asked = sorted({entry.asked for entry in entries.values()})
        if len(asked) != 1:
            raise ValueError(
                "`state_dict` must have one number of steps, taken and skipped, for all parameters of a group, got "
                f"{asked}"
            )
        loaded.update({positions[name]: entry for name, entry in entries.items()})
    seeds = sorted({entry.seed for entry in loaded.values() if entry.seed is not None})
    if len(seeds) > 1:
        raise ValueError(f"`state_dict` must have one seed for all parameters, got {seeds}")
    for index, (group, values) in enumerate(zip(groups, settings, strict=True)):
        group.update(values)
        members = [positions[name] for name in group["params"]]
        plan.set_clocks(index, {member: loaded[member].carried for member in members})
        plan.set_asked(index, loaded[members[0]].asked)
    for member, entry in loaded.items():
        for flat, value in entry.arrays.items():
            plan.parameters[member].flat(flat)[...] = value
    return seeds[0] if seeds else None


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


def _settings(group, saved_groups, options):
    """The saved settings of the parameters of `group`, which may have been grouped otherwise, checked."""
    predicate = options.exclude_from_weight_decay
    found: list[dict[str, Any]] = []
    for saved in saved_groups:
        names = [name for name in group["params"] if name in saved["params"]]
        # Older states have what is excluded from weight decay in groups of their own, whose decay is zero.
        if names and not (predicate and saved.get("weight_decay") == 0.0 and all(map(predicate, names))):
            found.append({key: value for key, value in saved.items() if key != "params"})
    in_groups = {name for saved in saved_groups for name in saved["params"]}
    missing = [name for name in group["params"] if name not in in_groups]
    if missing or any(settings != found[0] for settings in found):
        raise ValueError(
            "`state_dict['param_groups']` must have the parameters of each group of this optimizer, with one set of "
            f"settings, got {f'none of {missing}' if missing else found} for {list(group['params'])}"
        )
    settings = found[0] if found else {}
    if callable(group["lr"]) and not callable(settings.get("lr")):
        # A number does not take the place of a schedule, which goes on where the saved run was.
        settings.pop("lr", None)
    group.check(settings)
    return settings


def _entry(entry, plan, member, settings, convert) -> Saved:
    """The state of a parameter; `settings` are those that will hold."""
    parameter = plan.parameters[member]
    label = f"state_dict['state'][{parameter.name!r}]"
    _check_kind(entry, Mapping, label, "a dict")
    buffers, flats = _buffers(plan, settings), _arrays(plan, member, settings)
    if not convert:
        _check_no_other_format(entry, label, flats)
    needed = ["step", *(buffers if convert else flats)]
    if not set(needed) <= entry.keys():
        raise ValueError(f"`{label}` must have the keys {', '.join(map(repr, needed))}, got {list(entry)}")
    carried, asked = _counts(entry, label, plan.options.family_member)
    arrays = {}
    if convert:
        for key, buffer in buffers.items():
            if not _is_stored_alike(entry, key, label, parameter, buffer):
                arrays.update(converted(entry, key, label, parameter, buffer, plan.options.family_member))
        if "remainder" in flats and "remainder" not in entry:
            arrays["remainder"] = 0
    for key, flat in flats.items():
        if flat not in arrays:
            arrays[flat] = _as_stored(entry, key, label, parameter, flat)
    return Saved(carried, asked, _seed(entry, label, parameter, convert), arrays)


def _check_no_other_format(entry, label, expected):
    """Raise if `entry` has a part of a format that this optimizer does not store: it would be dropped."""
    others = [key for key in entry if (key == "remainder" or key.endswith("_exponent")) and key not in expected]
    if others:
        raise TypeError(
            f"`{label}` must be stored as in this optimizer, got {', '.join(map(repr, others))} too: nothing is "
            "dropped or cast unless `load_state_dict` is asked to by `convert=True`"
        )


def _is_stored_alike(entry, key, label, parameter, buffer):
    """Whether a moment in `entry` is in the format of this optimizer."""
    stored = as_array(entry[key], f"{label}['{key}']")
    has_codes, codes = f"{key}_exponent" in entry, buffer in parameter.formats.blocked
    alike = dtype_name(stored) == parameter.buffers.dtype(buffer).name and has_codes == codes
    return alike and (not codes or saved_layout(entry, label, parameter.shape) == parameter.layout)


def _as_stored(entry, key, label, parameter, flat):
    """`entry[key]`, which must be stored as this optimizer stores it, in the order of memory of the parameter."""
    view = parameter.view(flat)
    value = as_array(entry[key], f"{label}['{key}']")
    if value.dtype != view.dtype and not (value.dtype.isnative and dtype_name(value) == dtype_name(view)):
        raise TypeError(
            f"`{label}['{key}']` must be {view.dtype} as in this optimizer, got {value.dtype}: nothing is cast unless "
            "`load_state_dict` is asked to by `convert=True`"
        )
    # bfloat16 has another dtype in CuPy.
    value = moved(as_bits(value), view).view(view.dtype)
    if key.endswith("_exponent"):
        check_codes(as_array(entry[key.removesuffix("_exponent")], label), value, key.removesuffix("_exponent"), label)
        if saved_layout(entry, label, parameter.shape) != parameter.layout:
            raise ValueError(
                f"`{label}['layout']` must be that of the parameter in this optimizer, {parameter.layout}: codes of "
                "another order are taken with `convert=True`"
            )
        return value
    if value.shape != view.shape:
        raise ValueError(f"`{label}['{key}']` must have shape {view.shape} like its parameter, got {value.shape}")
    check_device(value, view, f"{label}['{key}']", "its parameter")
    return parameter.layout.flat(value)


def _counts(entry, label, member):
    """What the clock of a parameter carries, and how many steps were asked of its group."""
    step = integer(entry["step"], f"{label}['step']", least=0)
    skipped = integer(entry.get("skipped", 0), f"{label}['skipped']", least=0)
    carried = [float(step)]
    for number in member.carried.values():
        if number.state not in entry:
            raise ValueError(f"`{label}` must have the key {number.state!r} for this optimizer, got {list(entry)}")
        carried.append(real(np.asarray(entry[number.state])[()], f"{label}['{number.state}']"))
    return tuple(carried), step + skipped


def _seed(entry, label, parameter: Parameter, convert):
    """The seed by which a parameter was rounded stochastically."""
    if not parameter.formats.dithers or (convert and entry.get("words") != WORDS):
        return None
    if entry.get("words") != WORDS:
        reason = "was made by fastadam 0.1, whose random numbers depended on how parameters were packed"
        reason = reason if "seed" in entry else f"has {entry.get('words')!r}"
        raise ValueError(
            f"`{label}['words']` must be {WORDS!r}, by which this optimizer rounds stochastically, but this state "
            f"{reason}: `load_state_dict(..., convert=True)` takes it and goes on with other random numbers"
        )
    return integer(entry.get("words_seed"), f"{label}['words_seed']", least=0)
