"""State dictionaries in torch's layout: what a checkpoint needs so that a resumed run is bit for bit the same run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastadam.arrays import as_array, check_like, moved
from fastadam.checks import integer, real
from fastadam.plan import Plan


def dump_state(rows: list[tuple[Plan, int]]) -> dict[str, Any]:
    """Copies of the state of every parameter, and the settings of every group; `rows` are the groups."""
    state: dict[Any, dict[str, Any]] = {}
    groups = []
    for plan, row in rows:
        group = plan.groups[row]
        step, momentum_product = plan.state(row)
        for name in group["params"]:
            state[name] = {"step": step}
            for key, flat in _arrays(plan, group).items():
                state[name][key] = plan.view_of(name, getattr(plan.buffers, flat)).copy()
            if plan.options.member == "nadam":
                state[name]["mu_product"] = momentum_product
            if plan.options.nonfinite == "skip" or plan.calls(row) != step:
                state[name]["skipped"] = plan.calls(row) - step
        groups.append({**group, "params": list(group["params"])})
    return {"state": state, "param_groups": groups}


def _arrays(plan, settings) -> dict[str, str]:
    """Torch's names of the arrays of a parameter's state, each with the flat buffer that holds it."""
    names = {"exp_avg": "m", "exp_inf" if plan.options.member == "adamax" else "exp_avg_sq": "v"}
    if settings.get("amsgrad"):
        names["max_exp_avg_sq"] = "v_max"
    if plan.options.ema_decay is not None:
        names["ema"] = "ema"
    return names


def load_state(rows: list[tuple[Plan, int]], state_dict: Mapping[str, Any]) -> None:
    """Take over `state_dict`; everything is checked before anything is written, and nothing is cast."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            "`state_dict` must be a dict with the keys 'state' and 'param_groups', as `state_dict()` makes it"
        )
    groups, state = state_dict["param_groups"], state_dict["state"]
    _check_kind(groups, Sequence, "state_dict['param_groups']", "a list")
    _check_kind(state, Mapping, "state_dict['state']", "a dict")
    if len(groups) != len(rows):
        raise ValueError(f"`state_dict['param_groups']` must hold {len(rows)} groups, got {len(groups)}")
    expected = {name for plan, row in rows for name in plan.groups[row]["params"]}
    if state.keys() != expected:
        difference = sorted(map(repr, state.keys() ^ expected))
        raise ValueError(f"`state_dict['state']` must have an entry for every parameter and no other, got {difference}")
    loaded = [
        (_settings(group, plan, row, index), _entries(state, plan, row, group))
        for index, (group, (plan, row)) in enumerate(zip(groups, rows, strict=True))
    ]
    for (plan, row), (settings, (step, momentum_product, skipped, arrays)) in zip(rows, loaded, strict=True):
        plan.groups[row].update(settings)
        plan.carry(row, step, momentum_product)
        plan.set_calls(row, step + skipped)
        for view, value in arrays:
            view[...] = value


def _check_kind(value, kind, label, description):
    if not isinstance(value, kind) or isinstance(value, str):
        raise TypeError(f"`{label}` must be {description}, got {value!r}")


def _settings(group, plan, row, index):
    label = f"state_dict['param_groups'][{index}]"
    _check_kind(group, Mapping, label, "a dict")
    names, saved = plan.groups[row]["params"], group.get("params")
    if not isinstance(saved, Sequence) or tuple(saved) != names:
        raise ValueError(f"`{label}['params']` must be {list(names)} as in this optimizer, got {saved!r}")
    settings = {key: value for key, value in group.items() if key != "params"}
    if callable(plan.groups[row]["lr"]) and not callable(settings.get("lr")):
        # A number does not take the place of a schedule, which goes on where the saved run was.
        settings.pop("lr", None)
    plan.groups[row].check(settings)
    return settings


def _entries(state, plan, row, group):
    """The counts of a group, and (view, value) of each array; `group` has the settings that will hold."""
    counts, arrays = set(), []
    for name in plan.groups[row]["params"]:
        label, entry = f"state_dict['state'][{name!r}]", state[name]
        _check_kind(entry, Mapping, label, "a dict")
        flats = _arrays(plan, {**plan.groups[row], **group})
        if not {"step", *flats} <= entry.keys():
            wanted = ", ".join(map(repr, ["step", *flats]))
            raise ValueError(f"`{label}` must have the keys {wanted}, got {list(entry)}")
        counts.add(_counts(entry, label, plan))
        for key, flat in flats.items():
            view = plan.view_of(name, getattr(plan.buffers, flat))
            value = moved(as_array(entry[key], f"{label}['{key}']"), view)
            check_like(value, view, f"{label}['{key}']", "its parameter")
            arrays.append((view, value))
    if len(counts) != 1:
        steps = sorted({step for step, _, _ in counts})
        raise ValueError(f"`state_dict` must have one step count for all parameters of a group, got {steps}")
    return (*counts.pop(), arrays)


def _counts(entry, label, plan):
    step = integer(entry["step"], f"{label}['step']", least=0)
    skipped = integer(entry.get("skipped", 0), f"{label}['skipped']", least=0)
    product: float = 1.0
    if plan.options.member == "nadam":
        if "mu_product" not in entry:
            raise ValueError(f"`{label}` must have the key 'mu_product' for NAdam, got {list(entry)}")
        product = real(np.asarray(entry["mu_product"])[()], f"{label}['mu_product']")
    return step, product, skipped
