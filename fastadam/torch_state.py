"""States of torch's own optimizers: numbered parameters, steps as tensors, no entry for what was never stepped."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from fastadam.saved import NEVER_STEPPED
from fastadam.settings.checks import integer, real

# Which loops torch takes: keys that each of its groups has.
_HOW_TORCH_STEPS = ("foreach", "capturable", "differentiable", "fused")

Groups = Sequence[Mapping[str, Any]]


def from_torch(groups: Groups) -> bool:
    """Whether a state with these groups is one of torch's own Adam optimizers."""
    return any("foreach" in group for group in groups)


def renamed(
    groups: Groups, state: Mapping[Hashable, Any], names: Sequence[Hashable], label: str
) -> tuple[list[dict[str, Any]], dict[Hashable, Any]]:
    """The groups and entries of a state of torch, as fastadam has them, with the `names` of this optimizer.

    torch numbers parameters in the order of its groups. They are found by the names that torch was given, if it was
    given any, and else by their place in `names`.
    """
    numbers = [number for group in groups for number in group["params"]]
    called = [name for group in groups for name in group.get("param_names", ())]
    if len(called) != len(numbers) or not set(called) & set(names):
        called = list(names)
    if len(called) != len(numbers):
        raise ValueError(
            f"`{label}['param_groups']` of torch must have the {len(names)} parameters of this optimizer in their "
            f"order, got {len(numbers)}"
        )
    name_of = dict(zip(numbers, called, strict=True))
    entries: dict[Hashable, Any] = {name_of.get(number, number): entry for number, entry in state.items()}
    taken: list[dict[str, Any]] = []
    for group in groups:
        members = [name_of[number] for number in group["params"]]
        _count_steps(entries, members, label)
        kept = {key: value for key, value in group.items() if key not in (*_HOW_TORCH_STEPS, "param_names")}
        taken.append({**kept, "params": members})
    return taken, entries


def _count_steps(entries, members, label):
    """Let the steps of `members` be integers, and let those that torch never stepped begin afresh."""
    steps = {}
    for name in members:
        entry = entries.setdefault(name, NEVER_STEPPED)
        if isinstance(entry, Mapping) and "step" in entry:
            where = f"{label}['state'][{name!r}]['step']"
            step = real(entry["step"], where)
            steps[name] = integer(int(step) if step.is_integer() else step, where, least=0)
    for name, step in steps.items():
        entries[name] = {**entries[name], "step": step, "skipped": max(steps.values()) - step}
