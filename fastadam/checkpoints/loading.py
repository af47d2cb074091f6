"""A checkpoint is mapped into memory, checked as a whole, and only then copied into the buffers that are there."""

import mmap
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fastadam.checkpoints.errors import CheckpointError
from fastadam.checkpoints.header import DTYPES, Tensor, read_header
from fastadam.checkpoints.manifest import Manifest, groups_with_names, read_manifest
from fastadam.checkpoints.names import STATE_KEYS, encoded
from fastadam.checkpoints.pieces import checksum
from fastadam.checkpoints.saving import CHECKSUMS
from fastadam.checkpoints.strict_json import parsed
from fastadam.kernels.texts.formats import EXPONENT_GROUP
from fastadam.saved import PARAMETER


@dataclass(frozen=True)
class Unknown:
    """A parameter that only the file has, by its name there."""

    name: str

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return repr(self.name)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of which the header has been checked.

    Attributes:
        label: What error messages call it.
        manifest: Settings, steps and seeds.
        tensors: Name -> where its bytes are, in the order of the file.
        checksums: Name -> CRC-32.
        data: The bytes of all tensors, uint8, mapped.
        nbytes: The size of the file.
        metadata: All of its metadata.
    """

    label: str
    manifest: Manifest
    tensors: dict[str, Tensor]
    checksums: dict[str, int]
    data: np.ndarray
    nbytes: int
    metadata: dict[str, str]

    def damaged(self, rank: int = 0, ranks: int = 1) -> list[str]:
        """The tensors whose bytes are not those that were saved: this reads the file once.

        With `ranks`, it reads only every tensor of that number, from number `rank` on.
        """

        def is_damaged(name):
            tensor = self.tensors[name]
            return checksum(self.data[tensor.start : tensor.stop]) != self.checksums[name]

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            names = list(self.tensors)[rank::ranks]
            found = pool.map(is_damaged, names)
            return [name for name, damaged in zip(names, found, strict=True) if damaged]

    def verify(self, rank: int = 0, ranks: int = 1) -> None:
        """Raise unless every byte is as it was saved; of `ranks` that share the work, this is one."""
        damaged = self.damaged(rank, ranks)
        if damaged:
            raise CheckpointError(
                f"`{self.label}` is damaged: {', '.join(map(repr, damaged[:3]))} must have the checksum that was saved"
            )

    def array(self, name: str, kept: tuple[int, int] | None = None) -> np.ndarray:
        """A tensor, over the memory of the file; bfloat16 as void of two bytes.

        Of a checkpoint in several files only the elements `kept` are sure to be there, (start, stop); None for all.
        """
        tensor = self.tensors[name]
        return self.data[tensor.start : tensor.stop].view(DTYPES[tensor.dtype]).reshape(tensor.shape)

    def owners(self) -> dict[str, dict[str, str]]:
        """Encoded name of a parameter -> key of its state, "param" for itself -> tensor."""
        found: dict[str, dict[str, str]] = {name: {} for name in self.manifest.state}
        for tensor in self.tensors:
            name, _, key = (tensor, "", PARAMETER) if tensor in found else tensor.rpartition(".")
            if name not in found or key not in (PARAMETER, *STATE_KEYS):
                raise CheckpointError(f"`{self.label}` must have tensors of its parameters only, got {tensor[:80]!r}")
            found[name][key] = tensor
        return found

    def state_dict(self, kept: Mapping[Hashable, tuple[int, int]], unbounded: Sequence[str]) -> dict[str, Any]:
        """The state as `Optimizer.state_dict` has it, for an optimizer that keeps such elements of its parameters."""
        listed = [name for group in self.manifest.param_groups for name in group["params"]]
        known: dict[str, Hashable] = {name: Unknown(name) for name in (*self.manifest.state, *listed)}
        known.update({called: name for called, name in ((encoded(name), name) for name in kept) if called in known})

        def arrays(name, tensors):
            needed = kept.get(known[name], (0, 0))
            return {key: self.array(each, None if key == PARAMETER else needed) for key, each in tensors.items()}

        state = {
            known[name]: {**self.manifest.state[name], **arrays(name, tensors)}
            for name, tensors in self.owners().items()
        }
        return {"state": state, "param_groups": groups_with_names(self.manifest, known, unbounded)}


# The metadata of a file of a rank: tensor -> (start, stop) of its elements. And of the file that says what is where.
RANGES, PARTS = "ranges", "parts"


@dataclass(frozen=True)
class Joined(Checkpoint):
    """A checkpoint in several files.

    Attributes:
        files: Those of the ranks.
        pieces: Tensor -> (start, stop, number of the file) of its parts, in order.
    """

    files: Sequence[Checkpoint]
    pieces: dict[str, list[tuple[int, int, int]]]

    def damaged(self, rank: int = 0, ranks: int = 1) -> list[str]:
        """The tensors whose bytes are not those that were saved, with the file: this reads all files once."""
        return [f"{name} in {file.label}" for file in self.files for name in file.damaged(rank, ranks)]

    def array(self, name: str, kept: tuple[int, int] | None = None) -> np.ndarray:
        """A tensor, in new memory, of which only the elements `kept` are read and take memory; None for all."""
        tensor = self.tensors[name]
        whole = np.zeros(tensor.shape, DTYPES[tensor.dtype])
        flat, (low, high) = whole.reshape(-1), kept or (0, whole.size)
        if name.endswith("_exponent") and kept:
            low, high = low // EXPONENT_GROUP, -(-high // EXPONENT_GROUP)
        for start, stop, number in self.pieces.get(name, ()):
            first, last = max(start, low), min(stop, high)
            if first < last:
                flat[first:last] = self.files[number].array(name)[first - start : last - start]
        return whole


def part_names(listed: str, label: str) -> list[str]:
    """The names of the files of ranks, of the metadata PARTS of a file."""
    return _parts(listed, label)["files"]


def _parts(listed, label):
    found = parsed(listed, f"{label}: {PARTS}")
    good = isinstance(found, dict) and found.keys() == {"files", "tensors"} and isinstance(found["tensors"], dict)
    good = good and isinstance(found["files"], list) and all(isinstance(name, str) for name in found["files"])
    if not good or any(Path(name).name != name or not name.isprintable() for name in found["files"]):
        raise CheckpointError(f"`{label}: {PARTS}` must have the names of files beside it, and tensors")
    return found


def joined(checkpoint: Checkpoint, files: Sequence[Checkpoint]) -> Joined:
    """The checkpoint of which `checkpoint` says what is in the `files` of ranks."""
    label = checkpoint.label
    tensors = {
        name: _whole_tensor(entry, f"{label}: {PARTS}[{name[:80]!r}]")
        for name, entry in _parts(checkpoint.metadata[PARTS], label)["tensors"].items()
    }
    pieces: dict[str, list[tuple[int, int, int]]] = {}
    for number, file in enumerate(files):
        # A rank may keep nothing that is stored in some format.
        if file.manifest._replace(formats={}) != checkpoint.manifest._replace(formats={}):
            raise CheckpointError(f"`{file.label}` must be of the checkpoint {label!r}, got another manifest")
        ranges = parsed(file.metadata.get(RANGES, "{}"), f"{file.label}: {RANGES}")
        if not isinstance(ranges, dict) or ranges.keys() != file.tensors.keys():
            raise CheckpointError(f"`{file.label}: {RANGES}` must have a range for every tensor and no other")
        for name, span in ranges.items():
            tensor = file.tensors[name]
            if name not in tensors or tensor.dtype != tensors[name].dtype or not _is_range(span, tensor.shape):
                raise CheckpointError(f"`{file.label}[{name[:80]!r}]` must be a part of a tensor of {label!r}")
            pieces.setdefault(name, []).append((*span, number))
    for name, tensor in tensors.items():
        stop = 0
        for start, end, _ in sorted(pieces.get(name, [])):
            if start != stop:
                break
            stop = end
        if stop != prod(tensor.shape):
            raise CheckpointError(f"`{label}` must have all of {name[:80]!r} in the files of ranks, once")
    nbytes = checkpoint.nbytes + sum(file.nbytes for file in files)
    checksums = dict.fromkeys(tensors, 0)
    return Joined(
        label, checkpoint.manifest, tensors, checksums, checkpoint.data, nbytes, checkpoint.metadata, files, pieces
    )


def _whole_tensor(entry, label):
    good = isinstance(entry, list) and len(entry) == 2 and entry[0] in DTYPES and isinstance(entry[1], list)
    if not good or not all(type(length) is int and length >= 0 for length in entry[1]):
        raise CheckpointError(f"`{label}` must have a dtype and a shape")
    return Tensor(entry[0], tuple(entry[1]), 0, prod(entry[1]) * np.dtype(DTYPES[entry[0]]).itemsize)


def _is_range(span, shape):
    good = isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)
    return good and 0 <= span[0] <= span[1] and shape == (span[1] - span[0],)


@contextmanager
def opened(path: Path) -> Iterator[Checkpoint]:
    """The checkpoint at `path`, of which the header has been checked.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: it is no checkpoint, or its header is damaged.
    """
    with _opened(path) as checkpoint, ExitStack() as stack:
        listed = checkpoint.metadata.get(PARTS)
        if listed is None:
            yield checkpoint
        else:
            names = part_names(listed, checkpoint.label)
            yield joined(checkpoint, [stack.enter_context(_opened(path.with_name(name))) for name in names])


@contextmanager
def _opened(path):
    """One file."""
    label = str(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        tensors, metadata, start = read_header(file, size, label)
        manifest = read_manifest(metadata, label)
        checksums = _checksums(metadata, tensors, label)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_SEQUENTIAL)
        yield Checkpoint(label, manifest, tensors, checksums, np.frombuffer(mapped, np.uint8)[start:], size, metadata)


def _checksums(metadata, tensors, label):
    found = parsed(metadata.get(CHECKSUMS, "{}"), f"{label}: {CHECKSUMS}")
    if not isinstance(found, dict) or found.keys() != tensors.keys():
        raise CheckpointError(f"`{label}: {CHECKSUMS}` must have a checksum for every tensor and no other")
    for name, text in found.items():
        if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{8}", text):
            raise CheckpointError(f"`{label}: {CHECKSUMS}[{name[:80]!r}]` must have 8 hexadecimal digits")
    return {name: int(text, 16) for name, text in found.items()}
