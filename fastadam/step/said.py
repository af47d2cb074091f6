"""What a rank says of its optimizer and of its next step, which must be the same on all ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from fastadam.memory.arrays import dtype_name
from fastadam.memory.parameters import Parameter
from fastadam.settings.options import Options
from fastadam.sharding.agreement import Said, lines
from fastadam.step.plan import Plan, Prepared

ADDED = "when they are given to an optimizer"
LOADED = "when a state is loaded"
SAID_KEYS = ("parameters", "groups", "settings", "options")
STEP_KEYS = ("gradients", "steps", "settings", "`grad_scale`")


def said_of_step(
    plan: Plan, prepared: Prepared, rates: Sequence[tuple[int, float]], grad_scale: float
) -> dict[str, Said]:
    """What a rank says before a step: the keys are `STEP_KEYS`."""
    tables = plan.tables
    counts = np.ascontiguousarray(tables.carried[plan.clock_of])
    said = (
        (prepared.present.tobytes(), lambda: _present(plan, prepared.present)),
        (b"%d " % plan.asked + counts.tobytes(), lambda: _steps(plan, counts)),
        (tables.hyper[plan.clock_of].tobytes() + repr(rates).encode(), lambda: _settings(plan, rates)),
        (repr(grad_scale).encode(), lambda: [repr(grad_scale)]),
    )
    return dict(zip(STEP_KEYS, said, strict=True))


def _steps(plan, counts):
    each = zip(plan.parameters, counts, strict=True)
    return [f"{plan.asked} steps", *(f"{int(count[0])} steps of {parameter.name!r}" for parameter, count in each)]


def _settings(plan, rates):
    found = {group: {**settings} for group, settings in enumerate(plan.groups)}
    for group, lr in rates:
        found[group]["lr"] = lr
    return _of_groups(found)


def _present(plan, present):
    each = zip(plan.parameters, present.tolist(), strict=True)
    return [f"{'a' if there else 'no'} gradient of {parameter.name!r}" for parameter, there in each]


def said_of_parameters(
    entries: Sequence[Any], groups: Sequence[Mapping[str, Any]], options: Options, bucket_bytes: int | None
) -> dict[str, Said]:
    """What a rank says of parameters that are to be added, of their groups, and of its options: `SAID_KEYS`."""
    chosen = {field.name: getattr(options, field.name) for field in fields(options)} | {"bucket_bytes": bucket_bytes}
    said = (
        [f"{each.name!r} {dtype_name(each.array)} {tuple(each.array.shape)}" for each in entries],
        [f"a group of {len(group['params'])} parameters" for group in groups],
        _of_groups(dict(enumerate(groups))),
        [f"`{key}` {_shown(value)}" for key, value in chosen.items()],
    )
    return dict(zip(SAID_KEYS, map(lines, said), strict=True))


def said_of_values(parameters: Sequence[Parameter]) -> dict[str, Said]:
    """What a rank says of the values of parameters: the sum of their bits."""
    found = []
    for each in parameters:
        flat = each.flat("p")
        bits = flat.view(f"u{flat.itemsize}")
        found.append(f"values of {each.name!r}, with bits that add up to {int(bits.sum(dtype=np.uint64))},")
    return {"values of parameters": lines(found)}


def _of_groups(groups):
    return [
        f"`param_groups[{index}][{key!r}]` {_shown(value)}"
        for index, group in groups.items()
        for key, value in group.items()
        if key != "params"
    ]


def _shown(value):
    """`value` in a form that is the same in all processes."""
    return "a function" if callable(value) else repr(value)
