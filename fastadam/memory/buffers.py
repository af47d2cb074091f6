"""Flat buffers: how named arrays are packed into one, and the views by which they are still reached."""

from collections.abc import Hashable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fastadam.kernels import stored
from fastadam.kernels.texts.formats import EXPONENT_BLOCK, NATIVE, Storage
from fastadam.memory.arrays import array_dtype, as_bits, moved, namespace, on_host

# Every segment starts on a cache line, so that two threads or two vector loops never share one.
ALIGNMENT = 64


class Segment(NamedTuple):
    """Where one parameter lies in the flat buffers: elements `start` to `stop`, in C order of `shape`."""

    start: int
    stop: int
    shape: tuple[int, ...]

    def of(self, flat: Any) -> Any:
        """The view of this segment in `flat`."""
        return flat[self.start : self.stop].reshape(self.shape)


class Buffers:
    """The flat buffers of a set of parameters, all 1-D, of one size and device.

    They are of the dtype of the parameters, but for what is said to be stored otherwise: moments of float16 and
    bfloat16 parameters are float32 unless `moment_dtype` says more.

    Attributes:
        p: the parameters. With several parameters, each starts on a multiple of 64 bytes; the gaps are zero.
        g: the gradients, allocated (as zeros) when first used. With `grad_dtype`, of that dtype.
        m: the first moment (torch: `exp_avg`). With `moment_dtype`, of that dtype; "float8" are codes, uint8.
        v: the second moment (torch: `exp_avg_sq`; for Adamax `exp_inf`), likewise.
        v_max: with `amsgrad`, the largest second moment so far (torch: `max_exp_avg_sq`).
        ema: with `ema_decay`, the exponential moving average of the parameters.
        low: with `copy_dtype`, the bits of the 16-bit copy of the parameters, as uint16.
        remainder: with `master_weights`, what the parameters lack of float32, uint16.
        m_exponent, v_exponent: with `moment_dtype` "float8", the exponent of each block of 128 codes, uint8.
        storage: the format of each buffer.
        segments: name -> `Segment`.
    """

    p: Any
    segments: dict[Hashable, Segment]
    storage: Storage

    def __init__(self, p: Any, segments: dict[Hashable, Segment], storage: Storage = NATIVE):
        vars(self).update(p=p, segments=segments, storage=storage)
        self.allocate(*(flat for name in ("p", "m", "v") for flat in storage.flats(name)))
        self.dtype("g")  # raises where bfloat16 is asked for and ml_dtypes is not there

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not getattr(self, name, None):  # what `buffers.g *= 2` assigns
            raise AttributeError(f"`buffers.{name}` cannot be replaced: write into it, `buffers.{name}[...] = x`")

    @cached_property
    def g(self) -> Any:  # noqa: D102 (described above)
        return _zeros(self.p.size, self.p, self.dtype("g"))

    @cached_property
    def m(self) -> Any:  # noqa: D102 (described above)
        return _zeros(self.p.size, self.p, self.dtype("m"))

    @cached_property
    def v(self) -> Any:  # noqa: D102 (described above)
        return _zeros(self.p.size, self.p, self.dtype("v"))

    @cached_property
    def m_exponent(self) -> Any:  # noqa: D102 (described above)
        return _zeros(-(-self.p.size // EXPONENT_BLOCK), self.p, np.uint8)

    @cached_property
    def v_exponent(self) -> Any:  # noqa: D102 (described above)
        return _zeros(-(-self.p.size // EXPONENT_BLOCK), self.p, np.uint8)

    @cached_property
    def remainder(self) -> Any:  # noqa: D102 (described above)
        return _zeros(self.p.size, self.p, np.uint16)

    @cached_property
    def v_max(self) -> Any:  # noqa: D102 (described above)
        return _zeros(self.p.size, self.p, self.dtype("v_max"))

    @cached_property
    def ema(self) -> Any:  # noqa: D102 (described above)
        average = _zeros(self.p.size, self.p, self.dtype("ema"))
        average[...] = moved(self.values("p"), average)
        return average

    @cached_property
    def low(self) -> Any:  # noqa: D102 (described above)
        return _zeros(self.p.size, self.p, np.uint16)

    def dtype(self, buffer: str) -> np.dtype:
        """Of the flat array of a buffer."""
        stored_as = getattr(self.storage, buffer)
        if stored_as == "native":
            return self.arithmetic
        names = {"dithered": "bfloat16", "split": "bfloat16", "float8": "uint8"}
        return array_dtype(names.get(stored_as, stored_as), self.p)

    @property
    def arithmetic(self) -> np.dtype:
        """The dtype of the arithmetic: that of the parameters, but float32 for those of 16 bits."""
        return self.storage.arithmetic(self.p)

    def flat(self, name: str) -> Any:
        """A flat array as kernels take it: 16-bit floats as uint16."""
        return as_bits(getattr(self, name))

    def values(self, buffer: str) -> np.ndarray:
        """What is stored for a buffer, in the dtype of the arithmetic, flat and on the host."""
        flats = {name: on_host(self.flat(name)) for name in self.storage.flats(buffer)}
        with np.errstate(all="ignore"):
            return stored.load(self.storage, buffer, flats)

    def part(self, name: Hashable, flat: str) -> Any:
        """Where parameter `name` lies in a flat array: in its shape, but for exponents, of which a block has one."""
        segment = self.segments[name]
        if flat.endswith("_exponent"):
            return getattr(self, flat)[segment.start // EXPONENT_BLOCK : -(-segment.stop // EXPONENT_BLOCK)]
        return segment.of(getattr(self, flat))

    def allocate(self, *names: str) -> None:
        """Allocate buffers that are there only where they are needed."""
        for name in names:
            getattr(self, name)

    def arrays(self) -> list[Any]:
        """All flat arrays that have been allocated."""
        return [value for name, value in vars(self).items() if name not in ("segments", "storage")]

    def views(self, flat: Any) -> dict[Hashable, Any]:
        """Name -> view of its segment in `flat`, which is one of the buffers."""
        return {name: segment.of(flat) for name, segment in self.segments.items()}


def adopt(name: Hashable, array: Any, storage: Storage = NATIVE) -> Buffers:
    """Buffers around a flat array: it becomes `p` itself, without a copy."""
    return Buffers(array, {name: Segment(0, array.size, array.shape)}, storage)


def pack(arrays: Mapping[Hashable, Any], storage: Storage = NATIVE) -> Buffers:
    """Buffers that hold a copy of each of `arrays`, which must be of one dtype and device."""
    first = next(iter(arrays.values()))
    # No two parameters share a block of codes, or a cache line in any flat array.
    plain = storage == NATIVE
    gap = EXPONENT_BLOCK if storage.blocked else ALIGNMENT // (first.itemsize if plain else 2)
    segments, stop = {}, 0
    for name, array in arrays.items():
        start = -(-stop // gap) * gap
        stop = start + array.size
        segments[name] = Segment(start, stop, array.shape)
    buffers = Buffers(_zeros(stop, first), segments, storage)
    for name, view in buffers.views(buffers.p).items():
        view[...] = arrays[name]
    return buffers


def _zeros(size, like, dtype=None):
    """Zeros on the device of `like`, aligned, of its dtype unless another is given."""
    dtype = np.dtype(dtype or like.dtype)
    if not isinstance(like, np.ndarray):
        with like.device:
            return namespace(like).zeros(size, dtype)
    # The operating system hands out zeros page by page at the first touch, which is that of the kernel's own threads.
    memory = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory[offset : offset + size * dtype.itemsize].view(dtype)


def as_16_bit(bits: Any, dtype: str) -> Any:
    """The uint16 array `bits` as float16, or as bfloat16 of the package ml_dtypes, over the same memory.

    CuPy has no bfloat16 of its own, so such bits stay uint16 on a GPU: `torch.from_dlpack(bits).view(torch.bfloat16)`.
    """
    return bits.view(array_dtype(dtype, bits))


class Views(Mapping):
    """Name -> view of a flat buffer. Assigning to a name writes into the view; names cannot be added or removed.

    Values may be anything that NumPy or CuPy can assign and that has the shape of the view, or is a scalar.
    """

    def __init__(self, views: dict[Hashable, Any]):
        self._views = views

    def __getitem__(self, name: Hashable) -> Any:
        return self._views[name]

    def __setitem__(self, name: Hashable, value: Any) -> None:
        view = self._views[name]
        if value is view:  # what `views[name] += x` assigns
            return
        if view.dtype == np.uint16 and getattr(value, "dtype", None) != np.uint16:
            raise TypeError(f"`{name}` must be written as the bits of bfloat16, uint16, got {type(value).__name__}")
        shape = np.shape(value)
        if shape not in ((), view.shape):
            raise ValueError(f"`{name}` must have shape {view.shape}, got {shape}")
        if np.iscomplexobj(value):
            raise TypeError(f"`{name}` must be real, got complex numbers: the imaginary part would be lost")
        view[...] = value

    def __delitem__(self, name: Hashable) -> None:
        raise TypeError(f"`{name}` is a view of a flat buffer and cannot be deleted")

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Views({self._views!r})"
