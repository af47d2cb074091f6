"""A checkpoint is mapped into memory, checked as a whole, and only then copied into the buffers that are there."""

import mmap
import os
import re
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
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
    """

    label: str
    manifest: Manifest
    tensors: dict[str, Tensor]
    checksums: dict[str, int]
    data: np.ndarray
    nbytes: int

    def damaged(self) -> list[str]:
        """The tensors whose bytes are not those that were saved: this reads the file once."""

        def is_damaged(name):
            tensor = self.tensors[name]
            return checksum(self.data[tensor.start : tensor.stop]) != self.checksums[name]

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            found = pool.map(is_damaged, self.tensors)
            return [name for name, damaged in zip(self.tensors, found, strict=True) if damaged]

    def verify(self) -> None:
        """Raise unless every byte is as it was saved."""
        damaged = self.damaged()
        if damaged:
            raise CheckpointError(
                f"`{self.label}` is damaged: {', '.join(map(repr, damaged[:3]))} must have the checksum that was saved"
            )

    def array(self, name: str) -> np.ndarray:
        """A tensor, over the memory of the file; bfloat16 as void of two bytes."""
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

    def state_dict(self, names: Sequence[Hashable], unbounded: Sequence[str]) -> dict[str, Any]:
        """The state as `Optimizer.state_dict` has it, for an optimizer with these `names`."""
        listed = [name for group in self.manifest.param_groups for name in group["params"]]
        known: dict[str, Hashable] = {name: Unknown(name) for name in (*self.manifest.state, *listed)}
        known.update({called: name for called, name in ((encoded(name), name) for name in names) if called in known})
        state = {
            known[name]: {**self.manifest.state[name], **{key: self.array(each) for key, each in tensors.items()}}
            for name, tensors in self.owners().items()
        }
        return {"state": state, "param_groups": groups_with_names(self.manifest, known, unbounded)}


@contextmanager
def opened(path: Path) -> Iterator[Checkpoint]:
    """The checkpoint at `path`, of which the header has been checked.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: it is no checkpoint, or its header is damaged.
    """
    label = str(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        tensors, metadata, start = read_header(file, size, label)
        manifest = read_manifest(metadata, label)
        checksums = _checksums(metadata, tensors, label)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_SEQUENTIAL)
        yield Checkpoint(label, manifest, tensors, checksums, np.frombuffer(mapped, np.uint8)[start:], size)


def _checksums(metadata, tensors, label):
    found = parsed(metadata.get(CHECKSUMS, "{}"), f"{label}: {CHECKSUMS}")
    if not isinstance(found, dict) or found.keys() != tensors.keys():
        raise CheckpointError(f"`{label}: {CHECKSUMS}` must have a checksum for every tensor and no other")
    for name, text in found.items():
        if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{8}", text):
            raise CheckpointError(f"`{label}: {CHECKSUMS}[{name[:80]!r}]` must have 8 hexadecimal digits")
    return {name: int(text, 16) for name, text in found.items()}
