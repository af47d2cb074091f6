"""A state is written into one safetensors file, which takes the place of the earlier one as a whole."""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import fastadam
from fastadam.checkpoints import pieces
from fastadam.checkpoints.atomic import replacing
from fastadam.checkpoints.header import header_bytes, laid_out
from fastadam.checkpoints.manifest import KEY, Manifest, formats_of, groups_of, plain
from fastadam.checkpoints.names import STATE_KEYS, encoded, tensor_name
from fastadam.memory.arrays import dtype_name
from fastadam.saved import PARAMETER

CHECKSUMS = "crc32"
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint16": "U16",
    "uint8": "U8",
}


class Contents(NamedTuple):
    """What a checkpoint says.

    Attributes:
        optimizer: The name of its class.
        options: Its options.
        schedules: Position of a group -> what its learning rate is, for those that have a schedule.
        state: What `state_dict()` has, whose arrays may be views.
    """

    optimizer: str
    options: Mapping[str, Any]
    schedules: Mapping[str, str]
    state: Mapping[str, Any]


def save(
    path: Path,
    contents: Contents,
    keep: int,
    *,
    read: Callable[[Mapping[str, Any]], Iterable[tuple[str, Any]]] = lambda arrays: arrays.items(),
    metadata: Mapping[str, str] = {},
) -> None:
    """Write `contents` to `path`.

    Arrays may be other objects with a dtype and a shape too: `read` then makes arrays of them, named, in any order.
    """
    from safetensors import safe_open

    optimizer, options, schedules, state = contents
    arrays, numbers = split(state["state"])
    keys = {key for entry in state["state"].values() for key in entry}
    groups = groups_of(state["param_groups"])
    manifest = Manifest(
        fastadam.__version__, optimizer, dict(options), formats_of(keys), groups, dict(schedules), numbers
    )
    shapes = {name: (dtype_of(name, array), array.shape) for name, array in arrays.items()}
    tensors = laid_out(shapes)
    checksums = dict.fromkeys(tensors, "0" * 8)

    def header():
        return header_bytes(tensors, {KEY: manifest.text(), CHECKSUMS: json.dumps(checksums), **metadata})

    with replacing(path, keep) as file, ThreadPoolExecutor(1) as pool:
        first = header()
        pieces.reserve(file, len(first) + sum(tensor.nbytes for tensor in tensors.values()))
        file.write(first)
        for name, array in read({name: arrays[name] for name in tensors}):
            file.seek(len(first) + tensors[name].start)
            checksums[name] = f"{pieces.write(file, array, pool):08x}"
        file.seek(0)
        file.write(header())
        # Whatever the package does not read must not take the place of a good file.
        with safe_open(file.name, framework="numpy"):
            pass


def split(state: Mapping[Hashable, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Name of a tensor -> array, and encoded name of a parameter -> its numbers."""
    arrays: dict[str, Any] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, entry in state.items():
        called = encoded(name)
        numbers[called] = {}
        for key, value in entry.items():
            if key == PARAMETER or key in STATE_KEYS:
                arrays[tensor_name(called, key)] = value
            else:
                numbers[called][key] = plain(value, f"state[{name!r}][{key!r}]")
    return arrays, numbers


def dtype_of(name: str, array: Any) -> str:
    """The dtype of a tensor in the words of safetensors."""
    # In CuPy bfloat16 is its bits, uint16; only the remainder of a parameter is uint16 itself.
    return "U16" if name.endswith(".remainder") else _DTYPES[dtype_name(array)]
