"""Gradients on a GPU that are as they are expected to be: one look at each says where it lies.

All that can be asked of all of them at once is: with hundreds of small parameters, a step takes longer on the host than
on the device. On an H200's host the checks of :mod:`gradients <fastadam.step.gradients>` took 13 us an array of CuPy,
and 38 us a tensor of torch, which came through DLPack.
"""

import sys
from collections.abc import Sequence
from itertools import repeat
from operator import is_
from typing import Any, NamedTuple
from weakref import ref

import cupy
import numpy as np

from fastadam.memory.layout import Layout
from fastadam.memory.owners import Owners
from fastadam.memory.parameters import Parameter
from fastadam.step.gather import UNKNOWN, Gradients

# CuPy has bfloat16 as its bits.
_OF_TORCH = {"float32": "float32", "float64": "float64", "float16": "float16", "uint16": "bfloat16"}


class Form(NamedTuple):
    """What the gradient of a parameter is compared with.

    Attributes:
        shape: Its shape.
        dtype: Its dtype, as NumPy and CuPy have it.
        strides: Those of the parameter, in bytes.
        plain: Whether any other strides will do that are C-contiguous.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]
    plain: bool


class Direct:
    """Finds out where gradients lie that need no copy."""

    def __init__(
        self, parameters: Sequence[Parameter], dtypes: Sequence[np.dtype], owners: Owners, device: int, *, zeroed: bool
    ):
        self._owners, self._device, self._zeroed = owners, device, zeroed
        self._forms = [
            Form(each.shape, dtype, strides_of(each.layout, dtype.itemsize), each.layout.plain)
            for each, dtype in zip(parameters, dtypes, strict=True)
        ]
        self._itemsizes = np.array([dtype.itemsize for dtype in dtypes], np.int64)
        self._sizes = self._itemsizes * [each.size for each in parameters]
        # How far below the first element the lowest one lies, where an axis runs backwards.
        self._below = np.array([_below(form) for form in self._forms], np.int64)
        self._of_tensors: list[tuple] = []
        self._found: Gradients | None = None
        self._seen: list[Any] = []
        self._looked: list[int] = []
        self._count = -1

    def again(self, given: Sequence[Any]) -> Gradients | None:
        """Where the gradients `given` lie, if they are the arrays of CuPy of the step before: those never move."""
        arrays = [array() for array in self._seen]
        if self._found is None or not arrays or not all(map(is_, given, arrays)) or any(map(is_, arrays, repeat(None))):
            return None
        return self._found._replace(held=given)

    def places(self, given: Sequence[Any]) -> np.ndarray:
        """Where each of the gradients `given` begins: 0 where there is none, UNKNOWN where the short way does not do.

        If they are to be zeroed, all are UNKNOWN unless none shares memory with another one.
        """
        looked, is_of_cupy = self._look(given)
        if looked == self._looked and self._owners.count == self._count and self._found is not None:
            return self._found.addresses
        addresses = self._apart(np.array(looked, np.int64))
        self._found, self._seen = None, []
        if addresses.all() and (addresses != UNKNOWN).all():
            self._looked, self._count = looked, self._owners.count
            self._found = Gradients(addresses, {}, ())
            self._seen = [ref(array) for array in given] if is_of_cupy else []
        return addresses

    def _look(self, given):
        """The address of the first element of each, and whether all are arrays of CuPy."""
        torch = sys.modules.get("torch")
        if torch is None or not any(type(each) is torch.Tensor for each in given):
            return [self._of_cupy(each, form) for each, form in zip(given, self._forms, strict=True)], True
        forms, tensor, current = self._forms_of_tensors(torch), torch.Tensor, same_stream(torch, self._device)
        looked = [
            (self._of_torch(each, other) if current else UNKNOWN) if type(each) is tensor else self._of_cupy(each, form)
            for each, form, other in zip(given, self._forms, forms, strict=True)
        ]
        return looked, False

    def _of_cupy(self, array, form):
        if array is None:
            return 0
        if type(array) is not cupy.ndarray or array.dtype is not form.dtype or array.shape != form.shape:
            return UNKNOWN
        data = array.data
        if data.device_id != self._device:
            return UNKNOWN
        if array.strides != form.strides and not (form.plain and array.flags.c_contiguous):
            return UNKNOWN
        # That of an empty array may be 0, which would be no gradient.
        return data.ptr or 1

    def _forms_of_tensors(self, torch):
        """(shape, dtype, strides, plain) in the words of torch, whose strides count elements."""
        if not self._of_tensors:
            self._of_tensors = [
                (
                    form.shape,
                    getattr(torch, _OF_TORCH[form.dtype.name]),
                    tuple(stride // form.dtype.itemsize for stride in form.strides),
                    form.plain,
                )
                for form in self._forms
            ]
        return self._of_tensors

    def _of_torch(self, tensor, form):
        shape, dtype, strides, plain = form
        if tensor.dtype is not dtype or tensor.shape != shape or tensor.get_device() != self._device:
            return UNKNOWN
        # What DLPack refuses goes its way, and so does what is negated when it is read.
        if tensor.requires_grad or tensor.layout is not sys.modules["torch"].strided or tensor.is_neg():
            return UNKNOWN
        if tensor.stride() != strides and not (plain and tensor.is_contiguous()):
            return UNKNOWN
        try:
            return tensor.data_ptr() or 1
        except RuntimeError:  # a tensor without memory of its own, of a transformation of functions
            return UNKNOWN

    def _apart(self, addresses):
        """The lowest address of each; UNKNOWN where that is not aligned, or what begins there shares memory."""
        known = addresses > 1
        addresses = np.where(known, addresses - self._below, addresses)
        lows = np.where(known, addresses, 0)
        highs = np.where(known, addresses + self._sizes, 0)
        odd = known & (lows % self._itemsizes != 0) | self._owners.touched(lows, highs)
        if self._zeroed:
            order = np.argsort(lows, kind="stable")
            if odd.any() or (addresses == UNKNOWN).any() or (highs[order][:-1] > lows[order][1:]).any():
                odd = addresses != 0
        return np.where(odd, UNKNOWN, addresses)


def same_stream(torch: Any, device: int) -> bool:
    """Whether torch and CuPy work on the same stream; DLPack puts those of two in order."""
    return torch.cuda.current_stream(device).cuda_stream == cupy.cuda.get_current_stream(device).ptr


def strides_of(layout: Layout, itemsize: int) -> tuple[int, ...]:
    """The strides of an array of this layout, in bytes."""
    strides, stride = [0] * len(layout.shape), itemsize
    for axis in reversed(layout.order):
        strides[axis] = -stride if axis in layout.backwards else stride
        stride *= layout.shape[axis]
    return tuple(strides)


def _below(form):
    return -sum(stride * (length - 1) for stride, length in zip(form.strides, form.shape, strict=True) if stride < 0)
