"""Flat buffers: one array for the first moments of many parameters, one for the second, and so on, with views."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from typing import Any, NamedTuple

import numpy as np

from fastadam.kernels.texts.formats import EXPONENT_GROUP, FORMATS, Formats
from fastadam.memory.arrays import ALIGNMENT, array_dtype, as_torch, as_values, assign, zeros
from fastadam.memory.layout import Layout
from fastadam.sharding.ranges import placed

# What every rank has whole.
WHOLE = ("p", "g", "copy")


class Segment(NamedTuple):
    """Elements `start` to `stop` of the flat buffers belong to one parameter, in the order of its `layout`."""

    start: int
    stop: int
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter."""
        return self.layout.shape

    def of(self, flat: Any) -> Any:
        """The view of this segment in `flat`, in the shape of the parameter."""
        return self.layout.view(flat[self.start : self.stop])

    def view(self, name: str, array: Any) -> Any:
        """The same in the whole flat array called `name`; exponents are 1-D, one for each group of codes."""
        if name.endswith("_exponent"):
            return array[self.start // EXPONENT_GROUP : -(-self.stop // EXPONENT_GROUP)]
        return self.of(array)


class Buffers:
    """The flat buffers of parameters that are stored alike, all 1-D, of one size and device.

    Each is allocated, as zeros, when it is first needed. All arrays have the dtype of the parameters unless an option
    says otherwise. Moments of float16 and bfloat16 parameters are float32 unless `moment_dtype` says otherwise.

    Attributes:
        p: the parameters, if they are packed (`flat=True`) or if one flat array was adopted. Parameters that are
            stepped where they lie are in no buffer.
        g: the gradients; they have the dtype `grad_dtype` if that is given.
        m: the first moment (torch: `exp_avg`); it has the dtype `moment_dtype` if that is given. "float8" are codes,
            uint8.
        v: the second moment (torch: `exp_avg_sq`; for Adamax `exp_inf`), likewise. Lion has none.
        m_slow: the slow first moment of AdEMAMix.
        v_max: with `amsgrad`, the largest second moment so far (torch: `max_exp_avg_sq`).
        ema: with `ema_decay`, the exponential moving average of the parameters.
        copy: with `copy_dtype`, the bits of the 16-bit copy of the parameters, as uint16.
        remainder: with `master_weights`, the 16 bits that make a float32 of a bfloat16 parameter, uint16.
        m_exponent, v_exponent, m_slow_exponent: with `moment_dtype` "float8", the exponent of each group of 128 codes,
            uint8.
        formats: the format of each buffer.
        segments: name -> `Segment`. Each starts on a multiple of 64 bytes of every buffer; gaps are zero.
        size: elements of the buffers of parameters and gradients, gaps included; and of all others, without `shard`.
        kept: (start, stop), the elements that all other buffers have: with `shard`, the share of this rank.
        g_was_asked_for: Whether somebody has had `g`, and may have written gradients there.
    """

    formats: Formats
    segments: dict[Hashable, Segment]
    size: int
    kept: tuple[int, int]
    g_was_asked_for: bool

    def __init__(
        self,
        layouts: Mapping[Hashable, Layout],
        formats: Formats,
        arithmetic: np.dtype,
        device_of: Any,
        rank: int = 0,
        ranks: int = 1,
        zeros: Callable[[str, int, np.dtype, Any], Any] = lambda _, *of: zeros(*of),
    ):
        # No two parameters share an exponent group, or a cache line in any flat array.
        narrowest = 2 if formats.named else arithmetic.itemsize
        gap = EXPONENT_GROUP if formats.blocked else ALIGNMENT // narrowest
        sizes = [int(np.prod(layout.shape, dtype=np.int64)) for layout in layouts.values()]
        starts, width = placed(sizes, gap, ranks)
        each = zip(layouts.items(), starts, sizes, strict=True)
        segments = {name: Segment(start, start + size, layout) for (name, layout), start, size in each}
        vars(self).update(formats=formats, segments=segments, flats={}, arithmetic=arithmetic)
        vars(self).update(size=ranks * width, kept=(rank * width, (rank + 1) * width))
        vars(self).update(_device_of=device_of, _zeros=zeros, g_was_asked_for=False)
        self.dtype("g")  # raises if bfloat16 is asked for without ml_dtypes

    def __getattr__(self, name: str) -> Any:
        if name != "g" and name in vars(self).get("flats", ()):
            return self.flats[name]
        if name == "g":
            vars(self)["g_was_asked_for"] = True
            return self.allocate("g")
        raise AttributeError(
            f"these buffers have no `{name}`" + (": the parameters lie where they are, in `params`" * (name == "p"))
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.flats or value is not self.flats[name]:  # but what `buffers.g *= 2` assigns
            raise AttributeError(f"`buffers.{name}` cannot be replaced: write into it, `buffers.{name}[...] = x`")

    def __dir__(self):
        return [*super().__dir__(), *self.flats]

    def dtype(self, flat: str) -> np.dtype:
        """The dtype of a flat array."""
        if flat == "copy" or flat == "remainder":
            return np.dtype(np.uint16)
        if flat.endswith("_exponent"):
            return np.dtype(np.uint8)
        return stored_dtype(self.formats[flat], self.arithmetic, self._device_of)

    def allocate(self, flat: str) -> Any:
        """The flat array of this name; it is allocated if it is not there yet."""
        if flat not in self.flats:
            self.flats[flat] = self._zeros(flat, self.length(flat), self.dtype(flat), self._device_of)
        return self.flats[flat]

    def length(self, flat: str) -> int:
        """How many elements a flat array has."""
        start, stop = (0, self.size) if flat in WHOLE else self.kept
        return -(-(stop - start) // EXPONENT_GROUP) if flat.endswith("_exponent") else stop - start

    def adopt(self, p: Any) -> None:
        """Take `p`, a flat array of the right size, as the parameters."""
        self.flats["p"] = p

    def cut(self, name: Hashable, flat: str) -> Any:
        """The part of a flat array that belongs to parameter `name`, 1-D."""
        segment, array = self.segments[name], self.allocate(flat)
        if flat in WHOLE:
            return array[segment.start : segment.stop]
        first, (start, stop) = segment.start - self.kept[0], self.kept_of(name)
        if flat.endswith("_exponent"):
            return array[(first + start) // EXPONENT_GROUP : -(-(first + stop) // EXPONENT_GROUP)]
        return array[first + start : first + stop]

    def kept_of(self, name: Hashable, kept: tuple[int, int] | None = None) -> tuple[int, int]:
        """Which elements of parameter `name` are `kept`, which is `self.kept` if it isn't given: (start, stop)."""
        segment, (low, high) = self.segments[name], self.kept if kept is None else kept
        start = min(max(low, segment.start), segment.stop)
        return start - segment.start, max(start, min(high, segment.stop)) - segment.start

    def views(self, flat: Any) -> dict[Hashable, Any]:
        """Name -> view of its segment in `flat`, which is one of the buffers or an array like them."""
        return {name: segment.of(flat) for name, segment in self.segments.items()}


def stored_dtype(format: str, arithmetic: np.dtype, device_of: Any) -> np.dtype:
    """The dtype of arrays that are stored in `format`, on the device of `device_of`."""
    kind = FORMATS[format].dtypes[0]
    if kind == "native":
        return arithmetic
    if kind == "uint16":
        return array_dtype("float16" if format == "float16" else "bfloat16", device_of)
    return np.dtype(kind)


def as_16_bit(bits: Any, dtype: str) -> Any:
    """The uint16 array `bits` as float16, or as bfloat16 of the package ml_dtypes, over the same memory.

    CuPy has no bfloat16 of its own, so such bits stay uint16 on a GPU: `torch.from_dlpack(bits).view(torch.bfloat16)`.
    """
    return bits.view(array_dtype(dtype, bits))


class Views(Mapping):
    """Name -> array. Assigning to a name writes into the array; names cannot be added or removed.

    Values may be numbers, lists of them, and arrays that a step takes, of any real dtype; they have the shape of the
    array or are scalars.

    Attributes:
        arrays: Name -> NumPy or CuPy array. What is handed out is this array, or for the names `of_torch` a tensor of
            torch over the same memory.
    """

    def __init__(self, arrays: dict[Hashable, Any], of_torch: Set[Hashable] = frozenset()):
        self.arrays = arrays
        self._views = {name: as_torch(array) if name in of_torch else array for name, array in arrays.items()}

    def __getitem__(self, name: Hashable) -> Any:
        return self._views[name]

    def __setitem__(self, name: Hashable, value: Any) -> None:
        if value is self._views[name]:  # what `views[name] += x` assigns
            return
        view = self.arrays[name]
        value = as_values(value, name)
        dtype = getattr(value, "dtype", None)
        if view.dtype == np.uint16 and dtype != np.uint16:
            raise TypeError(f"`{name}` must be written as the bits of bfloat16, uint16, got {type(value).__name__}")
        shape = np.shape(value)
        if shape not in ((), view.shape):
            raise ValueError(f"`{name}` must have shape {view.shape}, got {shape}")
        assign(view, value)

    def __delitem__(self, name: Hashable) -> None:
        raise TypeError(f"`{name}` is one of the arrays of this optimizer and cannot be deleted")

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Views({self._views!r})"
