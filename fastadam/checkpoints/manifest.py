"""What a checkpoint says beside its arrays: settings, steps, seeds and versions, as JSON in the file's metadata."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from math import inf
from typing import Any, NamedTuple

import numpy as np

from fastadam.checkpoints.errors import CheckpointError
from fastadam.checkpoints.names import encoded
from fastadam.checkpoints.strict_json import parsed
from fastadam.kernels.texts.casts import WORDS
from fastadam.settings.options import Options

KEY = "fastadam"
# The version of each format that a file may have; a reader refuses what it does not know.
FORMATS = {"file": 1, "codes": 1, "remainder": 1}
_INFINITE = "inf"


class Manifest(NamedTuple):
    """The metadata of a checkpoint.

    Attributes:
        fastadam: The version that wrote it.
        optimizer: The class.
        options: The options of the optimizer, by name.
        formats: The version of each format in the file.
        param_groups: The settings of every group; "params" are encoded names.
        schedules: Position of a group -> what its schedule looks like, for people.
        state: Encoded name of a parameter -> its numbers, such as "step".
    """

    fastadam: str
    optimizer: str
    options: dict[str, Any]
    formats: dict[str, Any]
    param_groups: list[dict[str, Any]]
    schedules: dict[str, str]
    state: dict[str, dict[str, Any]]

    def text(self) -> str:
        """The manifest as JSON."""
        return json.dumps(self._asdict(), allow_nan=False, separators=(",", ":"))


def options_of(options: Options, seed: int) -> dict[str, Any]:
    """The options that a manifest has: all but a function."""
    named = {field.name: getattr(options, field.name) for field in fields(options)}
    return {**plain(named | {"exclude_from_weight_decay": None}, "options"), "seed": seed}


def formats_of(keys: set[str]) -> dict[str, Any]:
    """The version of each format that a file with these keys of state has."""
    used = {"file", *(["remainder"] if "remainder" in keys else [])}
    used |= {"codes"} if any(key.endswith("_exponent") for key in keys) else set()
    return {**{name: FORMATS[name] for name in sorted(used)}, "words": WORDS}


def groups_of(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The groups of a state dictionary as JSON has them."""
    return [
        plain({**group, "params": [encoded(name) for name in group["params"]]}, f"param_groups[{index}]")
        for index, group in enumerate(groups)
    ]


def plain(value: Any, label: str) -> Any:
    """`value` in what JSON has, tuples as lists and infinity as "inf"; raise if it cannot be."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value == inf:
        return _INFINITE
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and value - value == 0.0):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(each, f"{label}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(each, f"{label}[{key!r}]") for key, each in value.items()}
    raise TypeError(
        f"`{label}` must be finite numbers, strings, None, or lists and dicts of these to be saved, got {value!r}"
    )


def groups_with_names(
    manifest: Manifest, names: Mapping[str, Hashable], unbounded: Sequence[str]
) -> list[dict[str, Any]]:
    """The groups as a state dictionary has them, with the names that this optimizer has."""
    found = []
    for group in manifest.param_groups:
        infinite = {key: inf for key in unbounded if group.get(key) == _INFINITE}
        found.append({**group, **infinite, "params": [names[name] for name in group["params"]]})
    return found


def read_manifest(metadata: Mapping[str, str], label: str) -> Manifest:
    """The manifest in the metadata of a file, after all checks of its form."""
    if KEY not in metadata:
        raise CheckpointError(f"`{label}` must have {KEY!r} in its metadata: it is no checkpoint of fastadam")
    found = parsed(metadata[KEY], f"{label}: {KEY}")
    if not isinstance(found, dict) or found.keys() != set(Manifest._fields):
        raise CheckpointError(f"`{label}: {KEY}` must be a JSON object with {', '.join(Manifest._fields)}")
    manifest = Manifest(**found)
    _check_formats(manifest.formats, label)
    for key, kind in (("fastadam", str), ("optimizer", str), ("options", dict), ("schedules", dict)):
        _check(isinstance(found[key], kind), label, key)
    _check(_are(manifest.schedules.values(), str), label, "schedules")
    _check(isinstance(manifest.state, dict) and _are(manifest.state.values(), dict), label, "state")
    _check(isinstance(manifest.param_groups, list) and _are(manifest.param_groups, dict), label, "param_groups")
    for group in manifest.param_groups:
        _check(isinstance(group.get("params"), list) and _are(group["params"], str), label, "param_groups")
    return manifest


def _check_formats(formats, label):
    known = {**FORMATS, "words": WORDS}
    if not isinstance(formats, dict) or "file" not in formats:
        raise CheckpointError(f"`{label}: formats` must have the version of the file")
    for name, version in formats.items():
        # Words of another generator are refused where they are needed, by name.
        if name not in known or (name != "words" and (type(version) is not int or version != known[name])):
            raise CheckpointError(
                f"`{label}: formats` must be those that this version of fastadam reads, {known}, got "
                f"{name[:80]!r}: {str(version)[:80]}"
            )


def _are(values, kind):
    return all(isinstance(value, kind) for value in values)


def _check(good, label, key):
    if not good:
        raise CheckpointError(f"`{label}: {key}` must have the form that fastadam writes")
