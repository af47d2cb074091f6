"""What to pass in the place of an object whose memory is not, or not all of, its numbers: one clause for each kind."""

import sys
from numbers import Number
from typing import Any

import numpy as np

# Package and type, or package alone: a type is looked up, then those that it inherits from. `x` is the object.
_CLAUSES = {
    "astropy.Quantity": "pass `x.value`",
    "awkward": "pass `ak.to_numpy(x)`",
    "cupy.ndarray": "pass `cupy.asarray(x)`",
    "cupyx": "pass `x.toarray()`",
    "dask": "pass `x.compute()`",
    "h5py": "pass `x[...]`, a copy",
    "jax.Tracer": "step outside of `jax.jit`, `jax.grad` and `jax.vmap`, with what they return",
    "keras": "`fastadam.keras` steps variables of Keras",
    "multiprocessing": "pass `np.frombuffer(x.get_obj(), np.float32)`",
    "numpy.MaskedArray": "pass `x.filled(0)`, or `x.data` without its mask",
    "numpy.generic": "pass `np.array(x)`",
    "numpy.ndarray": "pass `np.asarray(x)`",
    "pandas": "pass `x.to_numpy(copy=True)`",
    "pint": "pass `x.magnitude`",
    "polars": "pass `x.to_numpy(writable=True)`",
    "scipy": "pass `x.toarray()`, or as a gradient of few rows `fastadam.SparseRows`",
    "sparse": "pass `x.todense()`",
    "torch.DTensor": "pass `x.to_local()`",
    "torch.FakeTensor": "step outside of `FakeTensorMode`",
    "torch.MaskedTensor": "pass `x.to_tensor(0)`, or `x.get_data()` without its mask",
    "torch.UninitializedTensorMixin": "call the module once before",
    "torchao": "pass `x.dequantize()`",
    "xarray": "pass `x.values`",
}


def name_of(value: Any) -> str:
    """What error messages call the type of `value`: its name, with its package unless everybody has that."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package in ("builtins", "__main__") else f"{package}.{kind.__name__}"


def clause_of(value: Any) -> str:
    """What to pass in the place of `value`, after a colon; empty if that is not known."""
    clause = _known(value) or _by_protocol(value)
    return f": {clause}" if clause else ""


def _known(value):
    for kind in type(value).__mro__:
        package = kind.__module__.partition(".")[0]
        clause = _CLAUSES.get(f"{package}.{kind.__name__}") or _CLAUSES.get(package)
        if clause:
            return clause
    return None


def _by_protocol(value):
    kind = type(value)
    try:
        is_read_only = memoryview(value).readonly
    except TypeError:
        pass
    else:
        return f"pass `np.frombuffer({'bytearray(x)' if is_read_only else 'x'}, np.float32)`"
    if hasattr(kind, "__cuda_array_interface__"):
        return "pass `cupy.asarray(x)`"
    if hasattr(kind, "__array__") or hasattr(kind, "__array_interface__"):
        return "pass `np.array(x)`"
    if isinstance(value, (Number, list, tuple, range)):
        return "pass `np.array(x, np.float32)`"
    return None


def cast_clause(array: Any, dtype: Any = None) -> str:
    """How `array`, of another dtype, becomes numbers of `dtype`, which is float32 if it does not matter; as above."""
    if array.dtype.names:
        return ": pass `numpy.lib.recfunctions.structured_to_unstructured(x)`"
    if not array.dtype.isnative and dtype in (None, array.dtype.newbyteorder("=")):
        return ": pass `x.astype(x.dtype.newbyteorder('='))`"
    if array.dtype.kind == "c":
        return f": pass `x.view(np.float{4 * array.itemsize})`, its real and imaginary parts"
    if dtype == np.uint16:  # bits of bfloat16 in CuPy
        return ""
    if array.dtype.kind in "Mm":
        return ": dates and times have no gradient"
    return f": pass `x.astype(np.{np.dtype(dtype or np.float32).name})`".replace("np.bfloat16", "ml_dtypes.bfloat16")


def writable_clause(array: Any) -> str:
    """How the read-only `array` can be had writable; as above."""
    owner = array
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap) and owner.mode == "r":
            return ": open the memory map with mode 'r+', which writes the file, or 'c', which does not"
        owner = owner.base
    return ": pass `np.array(x)`, a copy"


def tensor_problem(tensor: Any) -> str | None:
    """Why the memory of a torch tensor is not its values, and what to pass; None if it is."""
    torch = sys.modules["torch"]
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        return f"must have a shape, got {type(tensor).__name__}: call the module once before"
    if tensor.is_nested:
        return "must be one tensor, got a nested one: pass its parts, `x.unbind()`"
    if tensor.layout is not torch.strided:
        return f"must be a strided tensor, got {tensor.layout}: pass `x.to_dense()`"
    if tensor.is_meta:
        return "must be in CPU or CUDA memory, got a tensor on meta: `to_empty(device='cpu')` gives a module memory"
    if tensor.is_quantized:
        return f"must be real numbers, got {tensor.dtype}: pass `x.dequantize()`"
    if not has_memory(tensor):
        clause = _known(tensor) or "pass one that has, and step outside of transforms such as `torch.func.grad`"
        if type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor._is_zerotensor():
            clause = "pass `x.clone()`"
        return f"must be a tensor with memory of its own, got {type(tensor).__name__}: {clause}"
    if tensor.is_neg():
        return "must hold its values in memory, got a negated view: pass `resolve_neg()` of it"
    return None


def has_memory(tensor: Any) -> bool:
    """Whether a torch tensor has its elements at its address; those that wrap others do not."""
    try:
        return tensor.numel() == 0 or tensor.data_ptr() != 0
    except RuntimeError:  # it has no storage
        return False


def shared_tensor_problem(tensor: Any) -> str | None:
    """The same for a tensor that is handed over through DLPack, where its type, dtype and graph are lost."""
    torch = sys.modules["torch"]
    problem = tensor_problem(tensor)
    if problem is not None:
        rows = ", or as a gradient `SparseRows(x.indices()[0], x.values())` of `x.coalesce()`"
        return problem + rows * (tensor.layout is torch.sparse_coo)
    if tensor.requires_grad:
        return "must not require a gradient: pass `x.detach()`, which has the same memory, or use `fastadam.torch`"
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return f"must be float32, float64, bfloat16 or float16, got {tensor.dtype}: pass `x.float()`"
    if tensor.is_complex():
        resolved = "x.resolve_conj()" if tensor.is_conj() else "x"
        return f"must be real, got {tensor.dtype}: pass `torch.view_as_real({resolved})`"
    plain, disabled = torch.Tensor.__torch_function__, torch._C._disabled_torch_function_impl
    function = type(tensor).__torch_function__
    if function is disabled or getattr(function, "__func__", function) is getattr(plain, "__func__", plain):
        return None
    return (
        f"must be a plain tensor, got {name_of(tensor)}, which may mean more than its numbers: pass "
        "`x.as_subclass(torch.Tensor)`"
    )
