"""Checkpoints of sharded optimizers: one file, or a file for each rank and one that says what is where."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np

from fastadam.checkpoints.atomic import earlier, remove_leftovers
from fastadam.checkpoints.errors import CheckpointError
from fastadam.checkpoints.loading import PARTS, RANGES, opened, part_names
from fastadam.checkpoints.saving import Contents, dtype_of, save, split
from fastadam.kernels.texts.formats import EXPONENT_GROUP
from fastadam.memory.buffers import WHOLE
from fastadam.memory.parameters import Parameter
from fastadam.sharding.agreement import agree, lines, shared_failure, texts
from fastadam.sharding.errors import CollectiveError
from fastadam.sharding.exchange import Exchange

_BEFORE, _AFTER = "before a checkpoint is saved", "when a checkpoint was saved"


def view_of(parameter: Parameter, key: str, flat: str) -> Any:
    """The view of a flat array of a parameter, as a state has it."""
    return parameter.view(flat)


@dataclass(frozen=True)
class Share:
    """A flat array of a parameter of which this rank may have a part only."""

    parameter: Parameter
    key: str
    flat: str

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the array."""
        return self.parameter.flat(self.flat).dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        if self.flat.endswith("_exponent"):
            return (-(-self.parameter.size // EXPONENT_GROUP),)
        return self.parameter.shape

    @property
    def part(self) -> Any:
        """The elements that this rank keeps, 1-D."""
        return self.parameter.part(self.flat, self.parameter.view("p") if self.flat in WHOLE else None)


def save_together(exchange: Exchange, path: Path, contents: Contents, keep: int) -> None:
    """Write the whole of a state, whose arrays are shares, into one file: rank 0 does, all ranks send their parts."""
    _compare(exchange, path, keep)
    with shared_failure(exchange, 0, _AFTER):
        arrays, _ = split(contents.state["state"])
        stream = _whole(exchange, arrays)
        try:
            if exchange.rank == 0:
                save(path, contents, keep, read=lambda _: stream)
        finally:  # whoever cannot write goes on to receive what the others send
            for _ in stream:
                pass
    agree(exchange, _AFTER, {})
    if exchange.rank == 0:
        _remove_others(path, keep)


def _whole(exchange, arrays):
    names = {(share.parameter, share.flat): name for name, share in arrays.items()}
    for parameter, flat, view in exchange.whole(names):
        yield names[parameter, flat], view


def save_parts(exchange: Exchange, path: Path, contents: Contents, keep: int) -> None:
    """Write the share of each rank into a file of its own, and then, on rank 0, the file at `path`."""
    _compare(exchange, path, keep)
    token = texts(exchange, token_hex(4))[0]
    files = [path.with_name(_part_name(path, token, rank, exchange.ranks)) for rank in range(exchange.ranks)]
    try:
        with shared_failure(exchange, 0, _AFTER):
            held, ranges = _parts(contents.state)
            own = contents._replace(state=held)
            save(files[exchange.rank], own, 1, metadata={RANGES: json.dumps(ranges)})
        agree(exchange, _AFTER, {})
        with shared_failure(exchange, 0, _AFTER):
            if exchange.rank == 0:
                arrays, _ = split(contents.state["state"])
                wholes = {name: [dtype_of(name, share), list(share.shape)] for name, share in arrays.items()}
                told = json.dumps({"files": [file.name for file in files], "tensors": wholes})
                save(path, contents._replace(state=_without_arrays(contents.state)), keep, metadata={PARTS: told})
        agree(exchange, _AFTER, {})
    except CollectiveError:  # the checkpoint may be there already, so that its files must stay
        raise
    except Exception:
        with suppress(OSError):
            files[exchange.rank].unlink()
        raise
    if exchange.rank == 0:
        _remove_others(path, keep)


def _compare(exchange, path, keep):
    agree(exchange, _BEFORE, {"file": lines([str(path.absolute())]), "number of files": lines([f"`keep` {keep}"])})


def _parts(state):
    """The state with what this rank keeps of each array, and tensor -> (start, stop) of it."""
    arrays, _ = split(state["state"])
    ranges = {}
    for name, share in arrays.items():
        start, stop = share.parameter.kept
        group = EXPONENT_GROUP if share.flat.endswith("_exponent") else 1
        if start < stop:
            ranges[name] = [start // group, -(-stop // group)]
    entries = {
        name: {
            key: value.part if isinstance(value, Share) else value
            for key, value in entry.items()
            if not isinstance(value, Share) or value.parameter.kept[0] < value.parameter.kept[1]
        }
        for name, entry in state["state"].items()
    }
    return {**state, "state": entries}, ranges


def _without_arrays(state):
    entries = {
        name: {key: value for key, value in entry.items() if not isinstance(value, Share)}
        for name, entry in state["state"].items()
    }
    return {**state, "state": entries}


def _part_name(path, token, rank, ranks):
    return f"{path.stem}.{token}-{rank}-of-{ranks}{path.suffix}"


def _remove_others(path, keep):
    """Remove the files of ranks that no checkpoint at `path`, of those that are kept, has."""
    used: set[str] = set()
    for file in (path, *(earlier(path, number) for number in range(1, keep))):
        with suppress(OSError, CheckpointError), opened(file) as checkpoint:
            listed = checkpoint.metadata.get(PARTS)
            used |= set(part_names(listed, str(file)) if listed else ())
    part = re.compile(rf"\.?({re.escape(path.stem)}\.[0-9a-f]{{8}}-\d+-of-\d+{re.escape(path.suffix)})(\..*)?")
    for name in [file.name for file in path.parent.iterdir()]:
        found = part.fullmatch(name)
        if found and found[1] not in used:
            with suppress(OSError):
                remove_leftovers(path.with_name(found[1]))
                path.with_name(found[1]).unlink()
