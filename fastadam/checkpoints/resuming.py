"""A checkpoint is loaded into an optimizer, by the same checks as a state dictionary."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastadam.checkpoints.errors import CheckpointError
from fastadam.checkpoints.loading import Checkpoint, opened
from fastadam.checkpoints.names import encoded
from fastadam.saved import PARAMETER, Loading
from fastadam.settings.groups import ParamGroup
from fastadam.settings.options import Options
from fastadam.sharding.exchange import Exchange
from fastadam.state import Loaded
from fastadam.step.plan import Plan

# What must be the same, or moments mean something else.
_MEANING = ("member", "convention")


def load(
    path: Path,
    plan: Plan,
    groups: Sequence[ParamGroup],
    options: Mapping[str, Any],
    how: Loading,
    take: Callable[[Mapping[str, Any], Loading], Loaded],
    exchange: Exchange | None = None,
) -> Loaded:
    """Check the file at `path` as a whole, and let `take` load its state; `options` are those of the optimizer.

    With an `exchange`, ranks share the work of checking.
    """
    with opened(path) as checkpoint:
        changed = _changed(checkpoint, options, strict=how.strict)
        if how.strict:
            _check_schedules(checkpoint, groups)
        checkpoint.verify(*(() if exchange is None else (exchange.rank, exchange.ranks)))
        kept = {each.name: each.kept for each in plan.parameters}
        state = checkpoint.state_dict(kept, _unbounded(plan.options))
        _check_parameters(checkpoint, state, how)
        return take(state, how)._replace(changed=changed)


def _changed(checkpoint: Checkpoint, options, *, strict):
    """The options that are others here; raise if state would not mean the same."""
    saved = checkpoint.manifest.options
    others = {key: here for key, here in options.items() if key != "seed" and saved.get(key) != here}
    changed = {key: (saved.get(key), here) for key, here in others.items()}
    for key in _MEANING:
        if strict and key in changed:
            before, here = changed[key]
            raise ValueError(
                f"`{checkpoint.label}: {key}` must be {here!r} as in this optimizer, got {before!r}: its moments are "
                "others, and are taken with `strict=False` only"
            )
    return changed


def _check_schedules(checkpoint, groups):
    """Raise where the saved run had a schedule and this optimizer has a number: the file has no schedules."""
    scheduled: dict[str, str] = {}
    for index, group in enumerate(checkpoint.manifest.param_groups):
        shown = checkpoint.manifest.schedules.get(str(index))
        scheduled.update(dict.fromkeys(group["params"], shown) if shown else {})
    for index, group in enumerate(groups):
        shown = next((scheduled[name] for name in map(encoded, group["params"]) if name in scheduled), None)
        if shown and not callable(group["lr"]):
            raise ValueError(
                f"`param_groups[{index}]['lr']` must be a schedule as in the saved run, {shown}, got {group['lr']}: a "
                "schedule is not in the file. `strict=False` goes on with the number"
            )


def _check_parameters(checkpoint, state, how):
    if how.strict and how.params and not any(PARAMETER in entry for entry in state["state"].values()):
        raise CheckpointError(
            f"`{checkpoint.label}` must have parameters: it was saved without them, so load it with `params=False`"
        )


def _unbounded(options: Options) -> list[str]:
    return [name for name, hyper in options.family_member.hyper.items() if hyper.unbounded]
