"""The header of a safetensors file: written, and read strictly before anything in it is believed."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from fastadam.checkpoints.errors import CheckpointError
from fastadam.checkpoints.strict_json import parsed

# Safetensors' name of a dtype -> that of NumPy. bfloat16 is read as its 16 bits, which need no package.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "V2", "U16": "<u2", "U8": "u1"}
METADATA = "__metadata__"
# A model of 100,000 tensors has a header of about 25 MB.
LARGEST_HEADER = 2**25
_CHECKSUM = "header_crc32"
_NO_CHECKSUM = b'"header_crc32":"00000000"'


class Tensor(NamedTuple):
    """Where an array lies in a file: dtype (in the words of safetensors), shape, first byte, and the one after it."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return self.stop - self.start


def laid_out(arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Where arrays of (dtype, shape) lie in the data of a file: widest dtypes first, so that each is aligned."""
    tensors, stop = {}, 0
    for name, (dtype, shape) in sorted(arrays.items(), key=lambda each: -np.dtype(DTYPES[each[1][0]]).itemsize):
        start, stop = stop, stop + _nbytes(dtype, shape)
        tensors[name] = Tensor(dtype, shape, start, stop)
    return tensors


def header_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file: the length of its header, and the header, with a checksum of both in the metadata."""
    header: dict[str, Any] = {METADATA: {**metadata, _CHECKSUM: "0" * 8}}
    for name, tensor in tensors.items():
        offsets = [tensor.start, tensor.stop]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text
    return whole.replace(_NO_CHECKSUM, b'"header_crc32":"%08x"' % crc32(whole), 1)


def read_header(file: Any, size: int, label: str) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """The tensors, the metadata and the first byte of the data of an open file of `size` bytes.

    Raises:
        CheckpointError: the header is damaged, is none, or says what the file cannot be.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, LARGEST_HEADER):
        raise CheckpointError(
            f"`{label}` must begin with the length of its header, at most {LARGEST_HEADER} and within the file of "
            f"{size} bytes, got {length}: it is no safetensors file, or it is damaged"
        )
    raw = file.read(length)
    if len(raw) != length:
        raise CheckpointError(f"`{label}` must have a header of {length} bytes, got {len(raw)}")
    _check_checksum(length.to_bytes(8, "little") + raw, label)
    try:
        header = parsed(raw.decode("ascii"), f"{label}: header")
    except UnicodeDecodeError:
        raise CheckpointError(f"`{label}: header` must be ASCII, as fastadam writes it") from None
    if not isinstance(header, dict) or not isinstance(header.get(METADATA), dict):
        raise CheckpointError(f"`{label}: header` must be a JSON object with {METADATA!r}")
    metadata = header.pop(METADATA)
    if not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"`{label}: {METADATA}` must have strings only")
    tensors = {name: _tensor(entry, f"{label}[{name[:80]!r}]") for name, entry in header.items()}
    _check_covers(tensors, size - 8 - length, label)
    return tensors, metadata, 8 + length


def _check_checksum(whole, label):
    found = re.findall(rb'"header_crc32":"([0-9a-f]{8})"', whole)
    if len(found) != 1:
        raise CheckpointError(
            f"`{label}` must have one checksum of its header, got {len(found)}: it is no checkpoint of fastadam, or it "
            "is damaged"
        )
    blank = whole.replace(b'"header_crc32":"%s"' % found[0], _NO_CHECKSUM)
    if b"%08x" % crc32(blank) != found[0]:
        raise CheckpointError(f"`{label}` is damaged: its header does not have the checksum that was saved with it")


def _tensor(entry, label):
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"`{label}` must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"`{label}` must have a dtype of {', '.join(DTYPES)}, got {str(dtype)[:80]!r}")
    for key, numbers in (("shape", shape), ("data_offsets", offsets)):
        # Booleans are integers too. NumPy has at most 64 axes.
        if not isinstance(numbers, list) or len(numbers) > 64 or not all(type(n) is int and n >= 0 for n in numbers):
            raise CheckpointError(f"`{label}` must have a {key} of integers >= 0, got {str(numbers)[:80]}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != _nbytes(dtype, shape):
        raise CheckpointError(
            f"`{label}` must have as many bytes as {dtype} of shape {str(shape)[:80]} has, got those of {offsets[:4]}"
        )
    if _nbytes(dtype, [length for length in shape if length]) >= 2**63:
        raise CheckpointError(f"`{label}` must have a shape that an array can have, got {str(shape)[:80]}")
    return Tensor(dtype, tuple(shape), *offsets)


def _check_covers(tensors, size, label):
    """Raise unless the tensors take every byte of the data once."""
    stop = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != stop:
            raise CheckpointError(
                f"`{label}` must have its tensors one after the other, got one from byte {tensor.start} after one to "
                f"byte {stop}"
            )
        stop = tensor.stop
    if stop != size:
        raise CheckpointError(f"`{label}` must have {stop} bytes of data, got {size}: it was cut off, or written on")


def _nbytes(dtype, shape):
    count = np.dtype(DTYPES[dtype]).itemsize
    for length in shape:
        count *= length
    return count
