"""Tensors as kernels see them: their dtypes, the order of their elements in memory, and that memory as an array."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from math import isfinite
from operator import mul
from typing import Any

import numpy as np
import torch

from fastadam.memory.advice import tensor_problem
from fastadam.memory.layout import Layout, plain
from fastadam.settings.checks import real

# Those of parameters and moments.
NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


def arithmetic_of(tensor: Any) -> Any:
    """The dtype of the arithmetic on a parameter: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor, of which this process has a part."""
    return hasattr(tensor, "_local_tensor")


def local(tensor: Any) -> Any:
    """The part of a DTensor that this process has, waited for; any other tensor as it is."""
    part = tensor._local_tensor if is_sharded(tensor) else tensor
    return part.wait() if hasattr(part, "wait") else part


def check_new_tensors() -> None:
    """Raise if torch makes anything but tensors with memory here, as in FakeTensorMode."""
    problem = tensor_problem(torch.empty(1, device="cpu"))
    if problem is not None:
        raise TypeError(f"what torch makes in `step` {problem}")


def check_part(tensor: Any, like: Any, label: str) -> None:
    """Raise unless the part of a DTensor in this process is what the whole says, in the shape of the part `like`.

    Nothing holds the two together: the part is an attribute that anyone may set.
    """
    part, label = local(tensor), f"{label}._local_tensor"
    if part.dtype is not tensor.dtype:
        raise TypeError(f"`{label}` must be {tensor.dtype} like its DTensor, got {part.dtype}")
    if part.device != tensor.device:
        raise ValueError(f"`{label}` must be on {tensor.device} like its DTensor, got {part.device}")
    if part.shape != like.shape:
        raise ValueError(
            f"`{label}` must have shape {tuple(like.shape)} like that of its parameter, got {tuple(part.shape)}"
        )


def placed(tensor: Any) -> Any:
    """How a DTensor is split over which processes; None for any other tensor."""
    return (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None


def number_of(value: Any, label: str) -> float:
    """A number, or a tensor of one element, as a float; raise unless it is real and finite."""
    number = item_of(value, label)
    return number if type(number) is float and isfinite(number) else real(number, label)


def item_of(value: Any, label: str) -> Any:
    """The Python value of a tensor of one element; whatever is no tensor, as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    try:
        return value.item()
    except (RuntimeError, TypeError) as error:  # it has more elements, or no memory
        found = f"{type(value).__name__} of shape {tuple(value.shape)} on {value.device}"
        raise TypeError(f"`{label}` must be a number or a tensor of one element in memory, got {found}") from error


def first_element(tensor: Any) -> int:
    """The position in the whole tensor of the first element that this process has."""
    chunks = tensor.__create_chunk_list__() if is_sharded(tensor) else []
    return sum(map(mul, chunks[0].offsets, tensor.stride())) if chunks else 0


def layout_of(tensor: Any) -> Layout | None:
    """How a dense tensor lies; None if there are gaps between its elements, or elements that share memory."""
    shape, strides = tuple(tensor.shape), tensor.stride()
    if tensor.is_contiguous() or 0 in shape:
        return plain(shape)
    # An axis of one element has no place of its own: it stays where it is in the order.
    order = tuple(sorted(range(len(shape)), key=lambda axis: -strides[axis] if shape[axis] > 1 else 0))
    size = 1
    for axis in reversed(order):
        if shape[axis] > 1 and strides[axis] != size:
            return None
        size *= shape[axis]
    return Layout(shape, order)


def laid_like(value: Any, tensor: Any) -> Any:
    """A copy of `value`, in its own dtype, whose elements lie in the order of those of `tensor`."""
    return torch.empty_like(tensor, dtype=value.dtype, requires_grad=False).copy_(value)


def array_over(tensor: Any) -> Any:
    """The memory of a dense tensor as a 1-D NumPy or CuPy array; floats of 16 bits as those bits."""
    tensor = tensor.detach()
    tensor = tensor.as_strided((tensor.numel(),), (1,))
    if tensor.element_size() == 2:
        tensor = tensor.view(torch.int16)
    if tensor.device.type == "cpu":
        array = tensor.numpy()
    else:
        import cupy

        array = cupy.from_dlpack(tensor)
    return array.view(np.uint16) if array.dtype == np.int16 else array


def tensor_over(array: Any) -> Any:
    """The memory of a NumPy or CuPy array as a tensor."""
    return torch.from_dlpack(array)


def zero(gradient: Any) -> None:
    """Zero a gradient in place, also a leaf of a graph, one made in inference mode, or one that is expanded."""
    with torch.inference_mode(gradient.is_inference()), torch.no_grad():
        if gradient.layout is torch.strided and 0 in gradient.stride():
            gradient = gradient[tuple(slice(None if stride else 1) for stride in gradient.stride())]
        gradient.zero_()


def is_on_device(tensor: Any) -> bool:
    """Whether a tensor is on a GPU, for which the host would have to wait to read it."""
    return tensor.device.type == "cuda"


def on_device_of(number: Any, tensor: Any, label: str) -> Any:
    """A number, float32, on the device of a tensor, without waiting for either."""
    if not isinstance(number, torch.Tensor):
        number = torch.tensor(number_of(number, label), device="cpu")
    if number.numel() != 1 or number.is_complex() or number.is_meta:
        found = f"{number.dtype} of shape {tuple(number.shape)} on {number.device}"
        raise TypeError(f"`{label}` must be a real number or a tensor of one in memory, got {found}")
    return number.detach().to(tensor.device, torch.float32, non_blocking=True)


def on_stream(tensor: Any) -> AbstractContextManager:
    """Where CuPy launches on torch's current stream of the device of `tensor`; nothing on the CPU."""
    if not tensor.is_cuda:
        return _HERE
    index = tensor.device.index
    return _stream(torch.cuda.current_stream(index).cuda_stream, index)


_HERE = nullcontext()


@lru_cache(maxsize=64)
def _stream(pointer, index):
    """A stream of torch as one of CuPy."""
    import cupy

    with warnings.catch_warnings():
        # What is to take its place, `Stream.from_external`, does not say to which device a stream belongs.
        warnings.simplefilter("ignore", DeprecationWarning)
        return cupy.cuda.ExternalStream(pointer, index)
