"""State dictionaries in torch's layout: what a checkpoint needs so that a resumed run is bit for bit the same run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastadam.memory.arrays import as_array, as_bits, check_like, dtype_name, moved
from fastadam.memory.conversion import check_codes, converted
from fastadam.settings.checks import integer, real
from fastadam.settings.recipes import SEEDS
from fastadam.step.plan import Plan


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
                state[name][key] = plan.buffers.part(name, flat).copy()
            if plan.buffers.storage.dithers:
                state[name]["seed"] = plan.seed(row)
            if plan.options.member == "nadam":
                state[name]["mu_product"] = momentum_product
            if plan.options.nonfinite == "skip" or plan.calls(row) != step:
                state[name]["skipped"] = plan.calls(row) - step
        groups.append({**group, "params": list(group["params"])})
    return {"state": state, "param_groups": groups}


def _buffers(plan, settings) -> dict[str, str]:
    """Torch's names of what the state of a parameter has, each with the name of the buffer."""
    names = {"exp_avg": "m", "exp_inf" if plan.options.member == "adamax" else "exp_avg_sq": "v"}
    if settings.get("amsgrad"):
        names["max_exp_avg_sq"] = "v_max"
    if plan.options.ema_decay is not None:
        names["ema"] = "ema"
    return names


def _arrays(plan, settings) -> dict[str, str]:
    """The names of the arrays of a parameter's state, each with the flat array that holds it."""
    storage = plan.buffers.storage
    names = {}
    for key, buffer in _buffers(plan, settings).items():
        code, *exponent = storage.flats(buffer)
        names[key] = code
        names.update({f"{key}_exponent": flat for flat in exponent})
    if storage.p == "split":
        names["remainder"] = "remainder"
    return names


def load_state(rows: list[tuple[Plan, int]], state_dict: Mapping[str, Any], *, convert: bool) -> None:
    """Take over `state_dict`; all is checked before anything is written, and nothing is cast without `convert`."""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(
            "`state_dict` must be a dict with the keys 'state' and 'param_groups', as `state_dict()` makes it"
        )
    groups, state = state_dict["param_groups"], state_dict["state"]
    _check_kind(groups, Sequence, "state_dict['param_groups']", "a list")
    _check_kind(state, Mapping, "state_dict['state']", "a dict")
    for index, group in enumerate(groups):
        _check_kind(group, Mapping, f"state_dict['param_groups'][{index}]", "a dict")
    if convert:
        groups = _regrouped(groups, rows)
    if len(groups) != len(rows):
        raise ValueError(
            f"`state_dict['param_groups']` must hold {len(rows)} groups, got {len(groups)} (8-bit moments make "
            "groups of small parameters: `convert=True` takes other groups with the same settings)"
        )
    expected = {name for plan, row in rows for name in plan.groups[row]["params"]}
    if state.keys() != expected:
        difference = sorted(map(repr, state.keys() ^ expected))
        raise ValueError(f"`state_dict['state']` must have an entry for every parameter and no other, got {difference}")
    loaded = [
        (_settings(group, plan, row, index), _entries(state, plan, row, group, convert))
        for index, (group, (plan, row)) in enumerate(zip(groups, rows, strict=True))
    ]
    for (plan, row), (settings, (step, momentum_product, skipped, seed, arrays)) in zip(rows, loaded, strict=True):
        plan.groups[row].update(settings)
        plan.use_seed(row, seed)
        plan.carry(row, step, momentum_product)
        plan.set_calls(row, step + skipped)
        for view, value in arrays:
            view[...] = value


def _check_kind(value, kind, label, description):
    if not isinstance(value, kind) or isinstance(value, str):
        raise TypeError(f"`{label}` must be {description}, got {value!r}")


def _regrouped(groups, rows):
    """`groups` in the order of `rows`: parameters of one group here may be in several there, with the same settings."""
    regrouped = []
    for plan, row in rows:
        names = plan.groups[row]["params"]
        found = [group for group in groups if not set(names).isdisjoint(group.get("params", ()))]
        settings = [{key: value for key, value in group.items() if key != "params"} for group in found]
        if not found or any(each != settings[0] for each in settings):
            raise ValueError(
                "`state_dict['param_groups']` must have the same settings for all parameters of a group of this "
                f"optimizer, got {settings} for {list(names)}"
            )
        regrouped.append({**settings[0], "params": list(names)})
    return regrouped


def _settings(group, plan, row, index):
    label = f"state_dict['param_groups'][{index}]"
    names, saved = plan.groups[row]["params"], group.get("params")
    if not isinstance(saved, Sequence) or tuple(saved) != names:
        raise ValueError(f"`{label}['params']` must be {list(names)} as in this optimizer, got {saved!r}")
    settings = {key: value for key, value in group.items() if key != "params"}
    if callable(plan.groups[row]["lr"]) and not callable(settings.get("lr")):
        # A number does not take the place of a schedule, which goes on where the saved run was.
        settings.pop("lr", None)
    plan.groups[row].check(settings)
    return settings


def _entries(state, plan, row, group, convert):
    """The counts of a group, and (view, value) of each array; `group` has the settings that will hold."""
    counts, arrays = set(), []
    settings, buffers = {**plan.groups[row], **group}, plan.buffers
    moments, flats = _buffers(plan, settings), _arrays(plan, settings)
    for name in plan.groups[row]["params"]:
        label, entry = f"state_dict['state'][{name!r}]", state[name]
        _check_kind(entry, Mapping, label, "a dict")
        if not convert:
            _check_no_other_format(entry, label, flats)
        needed = ["step", *(moments if convert else flats)]
        if not set(needed) <= entry.keys():
            raise ValueError(f"`{label}` must have the keys {', '.join(map(repr, needed))}, got {list(entry)}")
        counts.add(_counts(entry, label, plan, row))
        values = {}
        if convert:
            for key, buffer in moments.items():
                if not _is_stored_alike(entry, key, label, buffers, buffer):
                    values.update(converted(entry, key, label, buffers, name, buffer))
            if buffers.storage.p == "split" and "remainder" not in entry:
                values["remainder"] = 0
        for key, flat in flats.items():
            if flat not in values:
                values[flat] = _as_stored(entry, key, label, buffers.part(name, flat))
        arrays += [(buffers.part(name, flat), value) for flat, value in values.items()]
    if convert and len({seed for *_, seed in counts}) > 1:
        # Buffers that were stored apart had seeds of their own.
        counts = {(*others, plan.seed(row)) for *others, _ in counts}
    for index, what in enumerate(("step count", "product of momenta", "number of skipped steps", "seed")):
        found = sorted({count[index] for count in counts})
        if len(found) != 1:
            raise ValueError(f"`state_dict` must have one {what} for all parameters of a group, got {found}")
    return (*counts.pop(), arrays)


def _check_no_other_format(entry, label, expected):
    """Raise if `entry` has a part of a format that this optimizer does not store: it would be dropped."""
    others = [key for key in entry if (key == "remainder" or key.endswith("_exponent")) and key not in expected]
    if others:
        raise TypeError(
            f"`{label}` must be stored as in this optimizer, got {', '.join(map(repr, others))} too: nothing is "
            "dropped or cast unless `load_state_dict` is asked to by `convert=True`"
        )


def _is_stored_alike(entry, key, label, buffers, buffer):
    """Whether a moment in `entry` is in the format of this optimizer."""
    stored = as_array(entry[key], f"{label}['{key}']")
    has_exponents = f"{key}_exponent" in entry
    return dtype_name(stored) == buffers.dtype(buffer).name and has_exponents == (buffer in buffers.storage.blocked)


def _as_stored(entry, key, label, view):
    """`entry[key]`, which must be stored as `view` is."""
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
    check_like(value, view, f"{label}['{key}']", "its parameter")
    return value


def _counts(entry, label, plan, row):
    step = integer(entry["step"], f"{label}['step']", least=0)
    skipped = integer(entry.get("skipped", 0), f"{label}['skipped']", least=0)
    product: float = 1.0
    if plan.options.member == "nadam":
        if "mu_product" not in entry:
            raise ValueError(f"`{label}` must have the key 'mu_product' for NAdam, got {list(entry)}")
        product = real(np.asarray(entry["mu_product"])[()], f"{label}['mu_product']")
    seed = plan.seed(row)
    if plan.buffers.storage.dithers:
        seed = integer(entry.get("seed", seed), f"{label}['seed']", least=0)
        if seed >= SEEDS:
            raise ValueError(f"`{label}['seed']` must be < 2**24, got {seed}")
    return step, product, skipped, seed
