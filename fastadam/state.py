"""State dictionaries in torch's layout: what a checkpoint needs so that a resumed run is bit for bit the same run."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastadam.arrays import as_array, check_like, integer, moved
from fastadam.stretch import Stretch

# torch's names of the moments.
_MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v"}


def dump_state(stretches: list[Stretch]) -> dict[str, Any]:
    """Copies of the steps and moments of every parameter, and the settings of every group."""
    state = {}
    for stretch in stretches:
        for name in stretch.settings["params"]:
            segment = stretch.buffers.segments[name]
            moments = {key: segment.of(getattr(stretch.buffers, flat)).copy() for key, flat in _MOMENTS.items()}
            state[name] = {"step": stretch.step, **moments}
    groups = [{**stretch.settings, "params": list(stretch.settings["params"])} for stretch in stretches]
    return {"state": state, "param_groups": groups}


def load_state(stretches: list[Stretch], state_dict: Mapping[str, Any]) -> None:
    """Take over `state_dict`; everything is checked before anything is written, and nothing is cast."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            "`state_dict` must be a dict with the keys 'state' and 'param_groups', as `state_dict()` makes it"
        )
    groups, state = state_dict["param_groups"], state_dict["state"]
    _check_kind(groups, Sequence, "state_dict['param_groups']", "a list")
    _check_kind(state, Mapping, "state_dict['state']", "a dict")
    if len(groups) != len(stretches):
        raise ValueError(f"`state_dict['param_groups']` must hold {len(stretches)} groups, got {len(groups)}")
    expected = {name for stretch in stretches for name in stretch.settings["params"]}
    if state.keys() != expected:
        difference = sorted(map(repr, state.keys() ^ expected))
        raise ValueError(f"`state_dict['state']` must have an entry for every parameter and no other, got {difference}")
    loaded = [
        (_settings(group, stretch, index), *_moments(state, stretch))
        for index, (group, stretch) in enumerate(zip(groups, stretches, strict=True))
    ]
    for stretch, (settings, step, moments) in zip(stretches, loaded, strict=True):
        stretch.settings.update(settings)
        stretch.step = step
        for view, value in moments:
            view[...] = value


def _check_kind(value, kind, label, description):
    if not isinstance(value, kind) or isinstance(value, str):
        raise TypeError(f"`{label}` must be {description}, got {value!r}")


def _settings(group, stretch, index):
    label = f"state_dict['param_groups'][{index}]"
    _check_kind(group, Mapping, label, "a dict")
    names, saved = stretch.settings["params"], group.get("params")
    if not isinstance(saved, Sequence) or tuple(saved) != names:
        raise ValueError(f"`{label}['params']` must be {list(names)} as in this optimizer, got {saved!r}")
    settings = {key: value for key, value in group.items() if key != "params"}
    stretch.settings.check(settings)
    return settings


def _moments(state, stretch):
    steps, moments = set(), []
    for name in stretch.settings["params"]:
        label, entry = f"state_dict['state'][{name!r}]", state[name]
        _check_kind(entry, Mapping, label, "a dict")
        if not {"step", *_MOMENTS} <= entry.keys():
            raise ValueError(f"`{label}` must have the keys 'step', 'exp_avg' and 'exp_avg_sq', got {list(entry)}")
        steps.add(integer(entry["step"], f"{label}['step']", least=0))
        for key, flat in _MOMENTS.items():
            view = stretch.buffers.segments[name].of(getattr(stretch.buffers, flat))
            value = as_array(entry[key], f"{label}['{key}']")
            value = moved(value, view)
            check_like(value, view, f"{label}['{key}']", "its parameter")
            moments.append((view, value))
    if len(steps) != 1:
        raise ValueError(f"`state_dict` must have one step count for all parameters of a group, got {sorted(steps)}")
    return steps.pop(), moments
