"""Arrays of every library as NumPy or CuPy arrays over the same memory, and the checks on them."""

import importlib
import sys
from types import ModuleType
from typing import Any

import numpy as np

from fastadam.memory.advice import cast_clause, clause_of, name_of, shared_tensor_problem, writable_clause

DTYPES = ("float32", "float64", "bfloat16", "float16")
_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_CUDA_HOST, _DLPACK_CUDA_MANAGED = 1, 2, 3, 13


def as_array(value: Any, label: str) -> Any:
    """`value` as a NumPy or CuPy array over the same memory; `label` is its name in error messages."""
    if type(value) is np.ndarray:
        return value
    if type(value) is np.memmap or (isinstance(value, np.generic) and type(value) is value.dtype.type):
        return np.asarray(value)
    cupy = sys.modules.get("cupy")
    if cupy is not None and type(value) is cupy.ndarray:
        # Some versions of CuPy have bfloat16, but not in kernels of every version of CUDA.
        return value.view(np.uint16) if value.dtype.name == "bfloat16" else value
    if isinstance(value, (np.ndarray, np.generic)) or (cupy is not None and isinstance(value, cupy.ndarray)):
        raise TypeError(
            f"`{label}` must be a plain array, got {name_of(value)}, which may mean more than its numbers"
            f"{clause_of(value)}"
        )
    if speaks_dlpack(value):
        return _from_dlpack(value, label)
    raise TypeError(
        f"`{label}` must be a NumPy or CuPy array, or an array that speaks DLPack, got {name_of(value)}"
        f"{clause_of(value)}"
    )


def speaks_dlpack(value: Any) -> bool:
    """Whether the type of `value` does: an object that answers for the array inside of it may mean more than that."""
    return hasattr(type(value), "__dlpack__") and hasattr(type(value), "__dlpack_device__")


def _from_dlpack(value, label):
    if is_of_torch(value):
        problem = shared_tensor_problem(value)
        if problem is not None:
            raise TypeError(f"`{label}` {problem}")
    try:
        kind = value.__dlpack_device__()[0]
    except Exception as error:  # an array of JAX that was deleted, say
        raise TypeError(f"`{label}` must be in CPU or CUDA memory: {error}") from error
    if kind in (_DLPACK_CPU, _DLPACK_CUDA_HOST):
        library = np
    elif kind in (_DLPACK_CUDA, _DLPACK_CUDA_MANAGED):
        library = require_cupy(label)
    else:
        raise TypeError(f"`{label}` must be in CPU or CUDA memory, got DLPack device type {int(kind)}")
    try:
        if _is_bfloat16(value):
            uint16 = sys.modules["torch"].uint16 if is_of_torch(value) else np.uint16
            bits = library.from_dlpack(value.view(uint16))
            return bits.view(array_dtype("bfloat16", bits))
        return library.from_dlpack(value)
    except Exception as error:
        raise TypeError(f"`{label}` cannot be shared through DLPack: {error}") from error


def _is_bfloat16(value):
    # Neither NumPy nor CuPy takes bfloat16 through DLPack, but its bits.
    return str(getattr(value, "dtype", "")) in ("torch.bfloat16", "bfloat16")


def rebound(view: Any, original: Any, label: str) -> Any:
    """`view` as an array of the library of `original`, over the same memory."""
    if isinstance(original, (np.ndarray, np.generic)):
        return view
    if type(view) is type(original):
        return view.view(original.dtype) if original.dtype.name == "bfloat16" else view
    package = "torch" if is_of_torch(original) else type(original).__module__.partition(".")[0]
    library = importlib.import_module(package)
    if not hasattr(library, "from_dlpack"):
        raise TypeError(
            f"`{label}` cannot be re-bound: {library.__name__} has no from_dlpack. Pass NumPy or CuPy arrays"
        )
    if _is_bfloat16(original):
        return library.from_dlpack(view.view(np.uint16)).view(library.bfloat16)
    return library.from_dlpack(view)


def is_of_torch(value: Any) -> bool:
    """Whether `value` is a tensor of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_torch(array: Any, *, bits: bool = False) -> Any:
    """`array` as a tensor of torch over the same memory; `bits` are no bfloat16, even in CuPy."""
    torch = importlib.import_module("torch")
    if dtype_name(array) == "bfloat16" and not bits:
        return torch.from_dlpack(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def require_cupy(label: str) -> ModuleType:
    """CuPy with a working CUDA device, which `label` needs."""
    try:
        cuda = importlib.import_module("fastadam.kernels.cuda")
    except ImportError as error:
        raise RuntimeError(
            f"`{label}` is in CUDA memory, which needs CuPy: {error}. Install `fastadam[cuda12]` or `fastadam[cuda13]`"
        ) from error
    problem = cuda.device_problem()
    if problem is not None:
        raise RuntimeError(f"`{label}` is in CUDA memory, which needs a working GPU: {problem}")
    return sys.modules["cupy"]


def namespace(array: Any) -> ModuleType:
    """The library of `array`: `numpy` or `cupy`."""
    return np if isinstance(array, (np.ndarray, np.generic)) else sys.modules["cupy"]


def device(array: Any) -> str:
    """`"cpu"` or `"cuda:<index>"`, in torch's words."""
    return "cpu" if isinstance(array, np.ndarray) else f"cuda:{array.device.id}"


# Every flat array starts on a cache line, so that two threads or two vector loops never share one.
ALIGNMENT = 64


def zeros(size: int, dtype: Any, device_of: Any) -> Any:
    """`size` zeros on the device of `device_of`, aligned."""
    dtype = np.dtype(dtype)
    if not isinstance(device_of, np.ndarray):
        with device_of.device:
            return namespace(device_of).zeros(size, dtype)
    # The operating system hands out zeros page by page at the first touch, which is that of the kernel's own threads.
    memory = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory[offset : offset + size * dtype.itemsize].view(dtype)


def assign(array: Any, value: Any) -> None:
    """`array[...] = value`, on the device of `array`."""
    if isinstance(array, np.ndarray):
        array[...] = value
        return
    with array.device:
        array[...] = value


def on_host(array: Any) -> np.ndarray:
    """`array` as a NumPy array: itself where it is one, else a copy."""
    return array if isinstance(array, np.ndarray) else array.get()


def moved(array: Any, other: Any) -> Any:
    """`array` on the device of `other`: itself where it is there already, else a copy."""
    if device(array) == device(other):
        return array
    if isinstance(other, np.ndarray):
        return on_host(array)
    with other.device:
        return namespace(other).asarray(array)


def backend_of(array: Any, label: str) -> Any:
    """The `fastadam.kernels.Backend` for the device of `array`."""
    if isinstance(array, np.ndarray):
        # With NUMBA_DISABLE_JIT=1 nothing is compiled.
        is_off = importlib.import_module("numba").config.DISABLE_JIT
        return importlib.import_module("fastadam.kernels.reference" if is_off else "fastadam.kernels.cpu")
    require_cupy(label)
    return importlib.import_module("fastadam.kernels.cuda")


def dtype_name(array: Any) -> str:
    """The name of the dtype of `array`. In CuPy, bfloat16 is handled as its bits, uint16."""
    name = array.dtype.name
    return "bfloat16" if name == "uint16" and not isinstance(array, np.ndarray) else name


def saved_dtype_name(array: Any) -> str:
    """The same of an array in a saved state, where bfloat16 may also be void of two bytes: that needs no ml_dtypes."""
    return "bfloat16" if array.dtype == "V2" else dtype_name(array)


def check_dtype(array: Any, label: str) -> None:
    """Raise unless `array` is of one of `DTYPES` in native byte order."""
    if dtype_name(array) not in DTYPES or not array.dtype.isnative:
        wanted = f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"
        clause = cast_clause(array)
        raise TypeError(f"`{label}` must be {wanted} in native byte order, got {array.dtype!r}{clause}")


def widened(array: Any) -> Any:
    """`array` in a dtype that its library computes with: float32 for those of 16 bits."""
    if array.dtype == np.uint16:  # bfloat16, in CuPy
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def as_bits(array: Any) -> Any:
    """`array` as kernels take it: 16-bit floats as uint16."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def bfloat16() -> np.dtype:
    """NumPy's dtype of bfloat16, which the package ml_dtypes has."""
    try:
        from ml_dtypes import bfloat16 as scalar
    except ImportError as error:
        raise RuntimeError(
            "bfloat16 in NumPy arrays needs the package ml_dtypes: install `fastadam[bfloat16]`"
        ) from error
    return np.dtype(scalar)


def array_dtype(name: str, device_of: Any) -> np.dtype:
    """The dtype `name` of arrays on the device of `device_of`: bfloat16 is uint16 for CuPy."""
    if name == "bfloat16":
        return bfloat16() if isinstance(device_of, np.ndarray) else np.dtype(np.uint16)
    return np.dtype(name)


def as_gradient(value: Any, shape: tuple[int, ...], dtype: np.dtype, device_of: Any, label: str, wanted: str) -> Any:
    """`value` as an array of this shape and dtype, on the device of an array; `wanted` says what for."""
    array = as_array(value, label)
    if array.dtype != dtype:
        raise TypeError(f"`{label}` must be {dtype} like {wanted}, got {array.dtype}{cast_clause(array, dtype)}")
    check_native(array, label)
    if array.shape != shape:
        raise ValueError(f"`{label}` must have shape {shape} like {wanted}, got {array.shape}")
    check_device(array, device_of, label, "the parameters")
    if not isinstance(array, np.ndarray):
        check_aligned(array, label)
    return array


def as_values(value: Any, name: Any) -> Any:
    """`value`, which is to be assigned to `name`: an array that a step takes, of any real dtype, or numbers."""
    if any(hasattr(value, each) for each in ("__array__", "__array_interface__", "__dlpack__")):
        value = found = as_array(value, str(name))
    else:
        found = np.asarray(value)
    if found.dtype.kind == "c":
        raise TypeError(f"`{name}` must be real, got complex numbers: the imaginary part would be lost")
    if found.dtype.kind in "MmOSU" or found.dtype.names:
        as_array(value, str(name))  # what is no array is named as such
        raise TypeError(f"`{name}` must be numbers, got {found.dtype}{cast_clause(found)}")
    return value


def as_indices(value: Any, label: str) -> np.ndarray:
    """`value` as 1-D integers, int64, on the host."""
    array = on_host(as_array(value if speaks_dlpack(value) else np.asarray(value), label))
    if array.size == 0 and array.dtype == np.float64:  # an empty list
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"`{label}` must be integers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"`{label}` must be 1-D, got shape {array.shape}")
    return array.astype(np.int64, copy=False)


def contiguous(array: Any) -> Any:
    """`array`, or a copy of it that is C-contiguous and aligned."""
    array = namespace(array).ascontiguousarray(array)
    return array.copy() if isinstance(array, np.ndarray) and not array.flags.aligned else array


def check_flat(array: Any, label: str, *, written: bool = True) -> None:
    """Raise unless `array` is a 1-D, contiguous, aligned and, if it is to be `written`, writable array."""
    if array.ndim != 1:
        raise ValueError(f"`{label}` must be 1-D, got shape {array.shape}")
    if not array.flags.c_contiguous:
        raise ValueError(f"`{label}` must be contiguous, got strides {array.strides} of {array.dtype}")
    if written:
        check_writable(array, label)
    check_aligned(array, label)


def check_writable(array: Any, label: str) -> None:
    """Raise if `array`, which is to be updated in place, is read-only."""
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        raise ValueError(f"`{label}` must be writable, got a read-only array{writable_clause(array)}")


def check_aligned(array: Any, label: str, purpose: str = "", remedy: str = "") -> None:
    """Raise unless `array` begins at a multiple of the size of its elements.

    On a GPU the first access of an element that does not ends all work of the process there.
    """
    if not (array.flags.aligned if isinstance(array, np.ndarray) else array.data.ptr % array.itemsize == 0):
        raise ValueError(
            f"`{label}` must be aligned to {array.itemsize} bytes{purpose}, got an unaligned array{remedy}"
        )


def check_place(array: Any, other: Any, label: str, other_label: str) -> None:
    """Raise unless `array` has the shape and device of `other`."""
    if array.shape != other.shape:
        raise ValueError(f"`{label}` must have shape {other.shape} like {other_label}, got {array.shape}")
    check_device(array, other, label, other_label)


def check_native(array: Any, label: str) -> None:
    """Raise unless `array` is in native byte order."""
    if not array.dtype.isnative:
        raise TypeError(f"`{label}` must be in native byte order, got {array.dtype!r}")


def check_device(array: Any, other: Any, label: str, other_label: str) -> None:
    """Raise unless `array` is on the device of `other`."""
    if type(array) is not type(other) or device(array) != device(other):
        raise ValueError(f"`{label}` must be on {device(other)} like {other_label}, got {device(array)}")
