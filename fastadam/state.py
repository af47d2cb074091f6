"""State dictionaries in torch's layout: what a checkpoint needs so that a resumed run is bit for bit the same run."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from fastadam.kernels.texts.casts import WORDS
from fastadam.memory.arrays import as_bits, assign, moved, on_host
from fastadam.memory.buffers import WHOLE
from fastadam.memory.parameters import Parameter
from fastadam.saved import NEVER_STEPPED, PARAMETER, Loading, checked_entry, saved_arrays
from fastadam.saved_groups import homes, parts, settings_of
from fastadam.settings.groups import ParamGroup
from fastadam.settings.recipes import STEP
from fastadam.step.plan import Plan
from fastadam.torch_state import from_torch, renamed


def dump_state(
    plan: Plan,
    groups: Sequence[ParamGroup],
    seed: int,
    take: Callable[[Parameter, str, str], Any] = lambda parameter, key, flat: parameter.view(flat).copy(),
    *,
    params: bool = False,
) -> dict[str, Any]:
    """The state of every parameter, and the settings of every group; with `params`, the parameters too.

    `take(parameter, key, flat)` makes what the state has of a flat array of a parameter: a copy of its view. The
    learning rate of a schedule is that of the next step, and is left out if the schedule gives none.
    """
    state: dict[Hashable, dict[str, Any]] = {}
    carried = on_host(plan.tables.carried)[plan.clock_of].tolist()
    parameters = iter(zip(plan.parameters, carried, strict=True))
    for index, group in enumerate(groups):
        for _ in group["params"]:
            parameter, (step, *others) = next(parameters)
            # The replays of a CUDA graph take steps that are not asked for here.
            asked = max(plan.asked_of(index), int(step))
            entry = state[parameter.name] = {"step": int(step)}
            flats = {PARAMETER: "p"} if params else {}
            for key, flat in {**flats, **saved_arrays(parameter, plan.options, group)}.items():
                entry[key] = take(parameter, key, flat)
            if parameter.formats.blocked and not parameter.layout.plain:
                entry["layout"] = list(parameter.layout.axes)
            if parameter.formats.dithers:
                entry["words"], entry["words_seed"] = WORDS, seed
            for number, value in zip(plan.options.family_member.carried.values(), others, strict=False):
                entry[number.state] = value
            if plan.options.nonfinite == "skip" or asked != step:
                entry["skipped"] = int(asked - step)
    return {"state": state, "param_groups": [_saved_group(plan, *each) for each in enumerate(groups)]}


def _saved_group(plan, index, group):
    saved = {**group, "params": list(group["params"])}
    if callable(group["lr"]):
        try:
            saved["lr"] = plan.lr(index)
        except Exception:  # whatever the user's schedule raises, what has been trained can be saved
            del saved["lr"]
    return saved


class Loaded(NamedTuple):
    """What has been loaded, by names such as "w" (the parameter) and "w.exp_avg".

    Attributes:
        seed: Seed of the stochastic rounding; None if there is none to take over.
        taken: Taken over from the state.
        afresh: Not in the state, or not for this shape: begun as for a new parameter.
        left_out: In the state, and not used.
        changed: Options of the saved run that are others here, from a checkpoint: name -> (saved, here).
    """

    seed: int | None
    taken: tuple[str, ...]
    afresh: tuple[str, ...]
    left_out: tuple[str, ...]
    changed: dict[str, tuple[Any, Any]] = {}  # noqa: RUF012 (never written)

    def __str__(self) -> str:
        lines = [f"{len(self.taken):,} arrays taken"]
        for what, names in (("begun afresh", self.afresh), ("left out", self.left_out)):
            listed = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
            lines += [f"{len(names):,} {what}: {listed}"] * bool(names)
        lines += [f"{name}: {saved!r} when saved, {here!r} here" for name, (saved, here) in self.changed.items()]
        return "\n".join(lines)


def load_state(
    plan: Plan, groups: Sequence[ParamGroup], state_dict: Any, how: Loading
) -> tuple[Loaded, Callable[[], None]]:
    """Check `state_dict`: what is to be loaded, and a function that writes it, which may be called twice."""
    saved_groups, state = parts(state_dict, how.label)
    names = [parameter.name for parameter in plan.parameters]
    if from_torch(saved_groups):
        saved_groups, state = renamed(saved_groups, state, names, how.label)
    unknown = [name for name in state if name not in set(names)]
    if how.strict and (unknown or len(state) != len(names)):
        difference = sorted(state.keys() ^ set(names), key=repr)
        raise ValueError(
            f"`{how.label}['state']` must have an entry for every parameter and no other, got {difference}"
        )
    placed = homes(saved_groups, how.label)
    settings = [settings_of(group, placed, plan.options.exclude_from_weight_decay, how) for group in groups]
    loaded = _checked(plan, groups, settings, state, how)
    asked = [_asked(loaded, group, how.label) for group in groups]
    seed = _one({entry.seed for entry in loaded.values() if entry.seed is not None}, "seed for all parameters", how)
    _allocate(plan, loaded)
    how.ready()
    listed = {name: tuple(key for key in state[name] if hasattr(state[name][key], "shape")) for name in unknown}
    left_out = {name: each.left_out for name, each in loaded.items()}
    report = Loaded(
        seed,
        _labels({name: each.taken for name, each in loaded.items()}),
        _labels({name: each.afresh for name, each in loaded.items()}),
        _labels({**left_out, **listed}),
    )
    return report, partial(_write, plan, groups, settings, asked, loaded)


def _checked(plan, groups, settings, state, how):
    """Name -> what is to be loaded of a parameter, in the order of the parameters."""
    parameters, loaded = iter(plan.parameters), {}
    for group, values in zip(groups, settings, strict=True):
        will_hold = {**group, **values}
        for parameter in (next(parameters) for _ in group["params"]):
            entry = state.get(parameter.name, NEVER_STEPPED)
            loaded[parameter.name] = checked_entry(entry, parameter, plan.options, will_hold, how)
    return loaded


def _labels(keys):
    """What a report calls these keys of each parameter: the parameter "w" is "w", its moment is "w.exp_avg"."""
    return tuple(
        str(name) if key == PARAMETER else f"{name}.{key}"
        for name, found in keys.items()
        for key in found
        if key != "step"
    )


def _asked(loaded, group, label):
    """How many steps have been asked of a group: none, if all of it begins afresh."""
    counts = {loaded[name].asked for name in group["params"]} - {None}
    return _one(counts, "number of steps, taken and skipped, for all parameters of a group", Loading(label)) or 0


def _one(values, what, how):
    """The one of `values`, None if there is none; raise if there are several."""
    if len(values) > 1:
        raise ValueError(f"`{how.label}` must have one {what}, got {sorted(values)}")
    return next(iter(values), None)


def _allocate(plan, loaded):
    for parameter, entry in zip(plan.parameters, loaded.values(), strict=True):
        converted = [flat for buffer in entry.conversions for flat in parameter.formats.flats(buffer)]
        for flat in (*entry.arrays, *converted):
            parameter.flat(flat)


def _write(plan, groups, settings, asked, loaded):
    first = 0
    for index, (group, values) in enumerate(zip(groups, settings, strict=True)):
        group.update(values)
        members = range(first, first + len(group["params"]))
        plan.set_clocks(index, {member: loaded[plan.parameters[member].name].carried for member in members})
        plan.set_asked(index, asked[index])
        first = members.stop
    for parameter, entry in zip(plan.parameters, loaded.values(), strict=True):
        # What is converted is in memory for one buffer at a time.
        for arrays in chain([entry.arrays], (convert() for convert in entry.conversions.values())):
            for flat, value in arrays.items():
                whole = flat in WHOLE or parameter.kept == (0, parameter.size)
                view = as_bits(parameter.view(flat) if whole else parameter.flat(flat))
                if hasattr(value, "shape"):
                    value = moved(value if whole else parameter.part(flat, value), view)
                assign(view, value)
        if "ema" in entry.afresh:
            parameter.start_average()


def steps_not_taken(plan: Plan, groups: Sequence[ParamGroup]) -> int:
    """How many steps no parameter has taken: the skipped steps, as far as a state tells.

    Only the groups of which most steps were asked count: later ones do not know of steps skipped before them.
    """
    asked = [plan.asked_of(index) for index, group in enumerate(groups) for _ in group["params"]]
    taken = on_host(plan.tables.carried)[plan.clock_of, STEP].tolist()
    most = max(asked)
    return int(min(most - step for count, step in zip(asked, taken, strict=True) if count == most))
