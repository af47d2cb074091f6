"""Each kind of array that people hold: it is stepped to the bits of a plain array, or refused with what to pass."""

import array
import ctypes
import mmap
import multiprocessing
import re
from multiprocessing import shared_memory

import numpy as np
import pytest
import scipy.sparse
from ml_dtypes import bfloat16
from refusal import F4, cupy_array_without_a_gpu, read_only, refuses
from training import both

import fastadam

HERE = __name__.partition(".")[0]
VALUES = np.array([1.0, -2.0, 3.0, 0.5], F4)
GRADIENT = np.array([0.5, -1.0, 2.0, -0.25], F4)
NO_ARRAY = "must be a NumPy or CuPy array, or an array that speaks DLPack, got {}"
SUBCLASS = "must be a plain array, got {}, which may mean more than its numbers: pass {}"


class OfUnits(np.ndarray):
    """Numbers with a unit."""


class OfUnitsInAFile(np.memmap):
    """The same in a file."""


class Float(np.float32):
    """A number with a unit."""


class Holds:
    """An object with an array inside."""

    def __init__(self, values):
        self.values = values


class HasArray(Holds):
    def __array__(self, dtype=None, copy=None):
        return self.values


class HasInterface(Holds):
    @property
    def __array_interface__(self):
        return self.values.__array_interface__


class OnGpu(Holds):
    __cuda_array_interface__ = {"shape": (4,), "typestr": "<f4", "data": (4096, False), "version": 3}  # noqa: RUF012


class AnswersForWhatIsInside(Holds):
    """As quantities of pint do."""

    def __getattr__(self, name):
        return getattr(self.values, name)


class Speaks(Holds):
    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class SpeaksOfCopies(Speaks):
    def __dlpack__(self, **options):
        return self.values.copy().__dlpack__(**options)


def file_of(values, tmp_path):
    path = tmp_path / "values"
    values.tofile(path)
    return path


def mapped(mode):
    return lambda values, tmp_path: np.memmap(file_of(values, tmp_path), F4, mode)


def in_shared_memory(values, tmp_path):
    memory = shared_memory.SharedMemory(create=True, size=values.nbytes)
    made = np.ndarray(values.shape, F4, memory.buf)
    made[...] = values
    memory.unlink()
    KEPT.append(memory)
    return made


KEPT: list = []


def in_anonymous_map(values, tmp_path):
    made = np.frombuffer(mmap.mmap(-1, values.nbytes), F4)
    made[...] = values
    return made


def in_fortran_order(values, tmp_path):
    return np.asfortranarray(values.reshape(2, 2))


def reversed_in_memory(values, tmp_path):
    return values[::-1].copy()[::-1]


def field(values, tmp_path):
    made = np.zeros(len(values), [("w", F4), ("b", F4)])
    made["w"] = values
    return made["w"]


def of_torch(values, tmp_path):
    return pytest.importorskip("torch").tensor(values)


def of_torch_in_inference(values, tmp_path):
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        return torch.tensor(values)


def of_torch_with_gaps(values, tmp_path):
    return pytest.importorskip("torch").tensor(values).repeat_interleave(2)[::2]


def of_jax(values, tmp_path):
    return pytest.importorskip("jax.numpy").array(values)


def plain(make):
    return lambda values, tmp_path: make(values)


BOTH = {
    "array": plain(np.array),
    "0-d array": plain(lambda values: np.array(values[0])),
    "memory map r+": mapped("r+"),
    "memory map c": mapped("c"),
    "shared memory": in_shared_memory,
    "mmap": in_anonymous_map,
    "bytearray by frombuffer": plain(lambda values: np.frombuffer(bytearray(values.tobytes()), F4)),
    "Fortran order": in_fortran_order,
    "negative strides": reversed_in_memory,
    "torch": of_torch,
    "torch, inference": of_torch_in_inference,
    "DLPack of any type": plain(lambda values: Speaks(values.copy())),
}
GRADIENTS_ALONE = {
    "NumPy scalar": plain(lambda values: values[0]),
    "memory map r": mapped("r"),
    "bytes by frombuffer": plain(lambda values: np.frombuffer(values.tobytes(), F4)),
    "read-only": plain(lambda values: read_only(values.copy())),
    "broadcast": plain(lambda values: np.broadcast_to(values[:1], 4)),
    "every second element": plain(lambda values: values.repeat(2)[::2]),
    "field of a structured array": field,
    "torch with gaps": of_torch_with_gaps,
    "JAX": of_jax,
    "DLPack of copies": plain(SpeaksOfCopies),
}


def numbers(held):
    held = held.values if isinstance(held, Holds) else held
    return np.array(held.numpy() if hasattr(held, "numpy") else held)


def kinds(table):
    return pytest.mark.parametrize("kind", table.values(), ids=table)


@both
@kinds(BOTH)
def test_parameters_step_to_the_bits_of_plain_arrays(kind, flat, tmp_path):
    held = kind(VALUES, tmp_path)
    if flat and isinstance(held, Speaks):
        return  # its library has no from_dlpack, which test_dlpack.py has
    w, params = numbers(held), {"w": held}
    g = np.resize(GRADIENT, w.shape)
    del held
    kept = None if flat else params["w"]
    opt, other = fastadam.Adam(params, lr=0.1, flat=flat), fastadam.Adam({"w": w}, lr=0.1)
    for _ in range(2):
        opt.step({"w": g})
        other.step({"w": g})
    assert numbers(params["w"]).tobytes() == w.tobytes()
    assert flat or params["w"] is kept
    on_disk = tmp_path / "values"
    if on_disk.exists():
        written = kind is BOTH["memory map r+"] and not flat
        assert on_disk.read_bytes() == (w if written else VALUES).tobytes()


@both
@kinds(BOTH | GRADIENTS_ALONE)
def test_gradients_step_to_the_bits_of_plain_arrays(kind, flat, tmp_path):
    gradient = kind(GRADIENT, tmp_path)
    g = numbers(gradient)
    w, twin = np.resize(VALUES, g.shape), np.resize(VALUES, g.shape)
    params = {"w": w}
    del w
    opt, other = fastadam.Adam(params, lr=0.1, flat=flat), fastadam.Adam({"w": twin}, lr=0.1)
    for _ in range(2):
        opt.step({"w": gradient})
        other.step({"w": g})
    opt.grads["w"] = gradient
    opt.step()
    other.step({"w": g})
    assert params["w"].tobytes() == twin.tobytes()
    assert numbers(gradient).tobytes() == g.tobytes()


def test_bfloat16_gradients_of_jax():
    jax = pytest.importorskip("jax")
    w, twin, g = np.ones(4, bfloat16), np.ones(4, bfloat16), GRADIENT.astype(bfloat16)
    fastadam.Adam([w], lr=0.1).step([jax.numpy.array(g)])
    fastadam.Adam([twin], lr=0.1).step([g])
    assert w.tobytes() == twin.tobytes()
    assert w[0] != 1


# --- refused, and nothing written: as parameter and as gradient, in adam_step, and by assignment to `opt.grads`


REFUSED = {
    "list": (list, NO_ARRAY.format("list: pass `np.array(x, np.float32)`")),
    "tuple": (lambda values: (1.0, 2.0, 3.0), NO_ARRAY.format("tuple: pass `np.array(x, np.float32)`")),
    "range": (lambda values: range(4), NO_ARRAY.format("range: pass `np.array(x, np.float32)`")),
    "float": (lambda values: 1.0, NO_ARRAY.format("float: pass `np.array(x, np.float32)`")),
    "integer": (lambda values: 1, NO_ARRAY.format("int: pass `np.array(x, np.float32)`")),
    "string": (lambda values: "w", NO_ARRAY.format("str")),
    "array.array": (
        lambda values: array.array("f", values),
        NO_ARRAY.format("array.array: pass `np.frombuffer(x, np.float32)`"),
    ),
    "memoryview": (memoryview, NO_ARRAY.format("memoryview: pass `np.frombuffer(x, np.float32)`")),
    "bytearray": (bytearray, NO_ARRAY.format("bytearray: pass `np.frombuffer(x, np.float32)`")),
    "bytes": (bytes, NO_ARRAY.format("bytes: pass `np.frombuffer(bytearray(x), np.float32)`")),
    "ctypes": (
        lambda values: (ctypes.c_float * 4)(*values),
        NO_ARRAY.format(HERE + ".c_float_Array_4: pass `np.frombuffer(x, np.float32)`"),
    ),
    "multiprocessing.Array": (
        lambda values: multiprocessing.Array("f", 4),
        NO_ARRAY.format("multiprocessing.SynchronizedArray: pass `np.frombuffer(x.get_obj(), np.float32)`"),
    ),
    "__array__": (HasArray, NO_ARRAY.format(HERE + ".HasArray: pass `np.array(x)`")),
    "__array_interface__": (HasInterface, NO_ARRAY.format(HERE + ".HasInterface: pass `np.array(x)`")),
    "__cuda_array_interface__": (OnGpu, NO_ARRAY.format(HERE + ".OnGpu: pass `cupy.asarray(x)`")),
    "answers for what is inside": (AnswersForWhatIsInside, NO_ARRAY.format(HERE + ".AnswersForWhatIsInside")),
    "scipy.sparse": (
        lambda values: scipy.sparse.csr_array(values[np.newaxis]),
        NO_ARRAY.format("scipy.csr_array: pass `x.toarray()`, or as a gradient of few rows `fastadam.SparseRows`"),
    ),
    "scipy.sparse matrix": (
        lambda values: scipy.sparse.coo_matrix(values),
        NO_ARRAY.format("scipy.coo_matrix: pass `x.toarray()`, or as a gradient of few rows `fastadam.SparseRows`"),
    ),
    "masked": (
        np.ma.array,
        SUBCLASS.format("numpy.MaskedArray", "`x.filled(0)`, or `x.data` without its mask"),
    ),
    "numpy.matrix": (
        lambda values: values[np.newaxis].view(np.matrix),
        SUBCLASS.format("numpy.matrix", "`np.asarray(x)`"),
    ),
    "record array": (
        lambda values: np.rec.array([(1.0, 2.0)] * 4, dtype="f4,f4"),
        SUBCLASS.format("numpy.recarray", "`np.asarray(x)`"),
    ),
    "subclass": (
        lambda values: values.view(OfUnits),
        SUBCLASS.format(HERE + ".OfUnits", "`np.asarray(x)`"),
    ),
    "subclass of a scalar": (lambda values: Float(1.0), SUBCLASS.format(HERE + ".Float", "`np.array(x)`")),
    "CuPy subclass": (
        lambda values: of_cupy_subclass(),
        SUBCLASS.format(HERE + ".OfCupy", "`cupy.asarray(x)`"),
    ),
}
# What `opt.grads[name] = x` takes: lists of numbers, and what NumPy makes of buffers of numbers.
ASSIGNED = {"list", "tuple", "range", "float", "integer", "array.array", "memoryview", "bytearray", "ctypes"}
ASSIGNED |= {"multiprocessing.Array"}
OF_DTYPE = {
    "structured": (
        lambda values: np.zeros(4, "f4,f4"),
        "pass `numpy.lib.recfunctions.structured_to_unstructured(x)`",
    ),
    "np.void": (
        lambda values: np.zeros(1, "f4,f4")[0],
        "pass `numpy.lib.recfunctions.structured_to_unstructured(x)`",
    ),
    "object": (lambda values: values.astype(object), "pass `x.astype(np.float32)`"),
    "strings": (lambda values: values.astype(str), "pass `x.astype(np.float32)`"),
    "dates": (lambda values: np.zeros(4, "M8[s]"), "dates and times have no gradient"),
    "durations": (lambda values: np.zeros(4, "m8[s]"), "dates and times have no gradient"),
    "complex": (
        lambda values: values.astype(np.complex64),
        "pass `x.view(np.float32)`, its real and imaginary parts",
    ),
    "booleans": (lambda values: values > 0, "pass `x.astype(np.float32)`"),
    "integers": (lambda values: values.astype(int), "pass `x.astype(np.float32)`"),
    "long double": (lambda values: values.astype(np.longdouble), "pass `x.astype(np.float32)`"),
    "other byte order": (
        lambda values: values.astype(values.dtype.newbyteorder()),
        "pass `x.astype(x.dtype.newbyteorder('='))`",
    ),
}


def of_cupy_subclass():
    plain = cupy_array_without_a_gpu()
    kind = type("OfCupy", (type(plain),), {"__module__": __name__})
    return kind((4,), F4, plain.data)


def refused_everywhere(held, sentence, *, assigned=False, dtype_alone=False):
    """Parameters, gradients and arguments of `adam_step` that are `held` raise with the sentence."""
    sentence = re.escape(sentence)
    for flat in (False, True):
        params = {"first": np.ones(2, F4), "w": held}
        refuses(lambda: fastadam.Adam(params, flat=flat), TypeError, rf"`params\['w'\]` .*{sentence}$", params)  # noqa: B023
    opt = fastadam.Adam({"w": VALUES.copy()})
    refuses(lambda: opt.step({"w": held}), TypeError, rf"`grads\['w'\]` .*{sentence}$", opt)
    arrays = [np.full(4, number, F4) for number in range(4)]
    for place, name in enumerate("pgmv"):
        given = [held if number == place else each for number, each in enumerate(arrays)]
        message = f"`{name}` " if dtype_alone else rf"`{name}` .*{sentence}$"
        refuses(lambda: fastadam.adam_step(*given, step=1), (TypeError, ValueError), message, *arrays)  # noqa: B023
    if not assigned:
        refuses(lambda: opt.grads.__setitem__("w", held), TypeError, "`w` ", opt)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_array_is_refused_with_what_to_pass(name):
    make, sentence = REFUSED[name]
    refused_everywhere(make(VALUES.copy()), sentence, assigned=name in ASSIGNED)


@pytest.mark.parametrize("name", OF_DTYPE)
def test_other_dtypes_are_refused_with_what_to_pass(name):
    make, sentence = OF_DTYPE[name]
    is_real = name in ("booleans", "integers", "long double", "other byte order")
    refused_everywhere(make(VALUES.copy()), sentence, assigned=is_real, dtype_alone=True)


def test_hdf5_dataset(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "file.h5", "w") as file:
        held = file.create_dataset("w", data=VALUES)
        refused_everywhere(held, NO_ARRAY.format("h5py.Dataset: pass `x[...]`, a copy"))
        assert held[...].tobytes() == VALUES.tobytes()


def test_subclass_of_a_memory_map(tmp_path):
    held = np.memmap(file_of(VALUES, tmp_path), F4, "r+").view(OfUnitsInAFile)
    refused_everywhere(held, SUBCLASS.format(HERE + ".OfUnitsInAFile", "`np.asarray(x)`"))


READ_ONLY = {
    "memory map r": (mapped("r"), "open the memory map with mode 'r+', which writes the file, or 'c', which does not"),
    "bytes by frombuffer": (GRADIENTS_ALONE["bytes by frombuffer"], "pass `np.array(x)`, a copy"),
    "broadcast": (GRADIENTS_ALONE["broadcast"], "pass `np.array(x)`, a copy"),
    "JAX": (of_jax, "pass `np.array(x)`, a copy"),
}


@both
@pytest.mark.parametrize(("make", "sentence"), READ_ONLY.values(), ids=READ_ONLY)
def test_read_only_parameters_are_refused_with_what_to_pass(make, sentence, flat, tmp_path):
    params = {"first": np.ones(2, F4), "w": make(VALUES, tmp_path)}
    before = numbers(params["w"]).tobytes()
    message = rf"`params\['w'\]` must be writable, got a read-only array: {re.escape(sentence)}$"
    with pytest.raises(ValueError, match=message):
        fastadam.Adam(params, flat=flat)
    opt = fastadam.Adam({"w": VALUES.copy()}, zero_grad=True)
    message = rf"`grads\['w'\]` must be a writable array with `zero_grad`, got a read-only one: {re.escape(sentence)}$"
    refuses(lambda: opt.step({"w": params["w"]}), ValueError, message, opt)
    assert numbers(params["w"]).tobytes() == before


def test_dlpack_of_a_copy_is_no_parameter():
    message = r"`params\[0\]` must give its own memory through DLPack, got a copy of SpeaksOfCopies"
    with pytest.raises(TypeError, match=message):
        fastadam.Adam([SpeaksOfCopies(VALUES.copy())])


def test_tracers_of_jax():
    jax = pytest.importorskip("jax")
    opt = fastadam.Adam({"w": VALUES.copy()})
    message = "Tracer: step outside of `jax.jit`, `jax.grad` and `jax.vmap`, with what they return"
    act = jax.jit(lambda x: opt.step({"w": x}))
    refuses(lambda: act(jax.numpy.ones(4)), TypeError, message, opt)


ELSEWHERE = {
    "astropy": (np.ndarray, "astropy.units.quantity", "Quantity", ": pass `x.value`"),
    "astropy, derived": (np.ndarray, "astropy.table.column", "Column", ": pass `np.asarray(x)`"),
    "cupyx": (object, "cupyx.scipy.sparse._csr", "csr_matrix", ": pass `x.toarray()`"),
    "keras": (object, "keras.src.backend", "Variable", ": `fastadam.keras` steps variables of Keras"),
    "torchao": (object, "torchao.quantization", "Float8Tensor", ": pass `x.dequantize()`"),
    "unknown": (object, "unknown.arrays", "Quantity", ""),
}


@pytest.mark.parametrize(("base", "module", "name", "clause"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_types_are_known_by_package_and_name(base, module, name, clause):
    kind = type(name, (base,), {"__module__": module})
    for made in (kind, type("Derived", (kind,), {"__module__": "user"})):
        held = VALUES.view(made) if base is np.ndarray else made()
        package = made.__module__.partition(".")[0]
        with pytest.raises(TypeError, match=rf"got {package}\.{made.__name__}.*{re.escape(clause)}$"):
            fastadam.Adam({"w": held})


# --- tensors of torch


def masked(torch):
    return torch.masked.masked_tensor(torch.ones(4), torch.tensor([True, False, True, True]))


def fake(torch):
    with torch._subclasses.fake_tensor.FakeTensorMode():
        return torch.empty(4)


def quantized(torch):
    return torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)


def of_subclass(torch):
    class Metres(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return super().__torch_function__(function, types, args, kwargs)

    return torch.ones(4).as_subclass(Metres)


MEMORY = "must be a tensor with memory of its own, got {}"
TRANSFORMS = MEMORY.format("Tensor: pass one that has, and step outside of transforms such as `torch.func.grad`")
DENSE = "must be a strided tensor, got torch.{}: pass `x.to_dense()`"
TENSORS = {
    "masked": (masked, MEMORY.format("MaskedTensor: pass `x.to_tensor(0)`, or `x.get_data()` without its mask")),
    "nested": (
        lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]),
        "must be one tensor, got a nested one: pass its parts, `x.unbind()`",
    ),
    "jagged": (
        lambda torch: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)], layout=torch.jagged),
        "must be one tensor, got a nested one: pass its parts, `x.unbind()`",
    ),
    "COO": (lambda torch: torch.ones(4).to_sparse(), DENSE.format("sparse_coo")),
    "CSR": (lambda torch: torch.ones(2, 2).to_sparse_csr(), DENSE.format("sparse_csr")),
    "MKL-DNN": (lambda torch: torch.ones(4).to_mkldnn(), DENSE.format("_mkldnn")),
    "fake": (fake, MEMORY.format("FakeTensor: step outside of `FakeTensorMode`")),
    "functional": (lambda torch: torch._to_functional_tensor(torch.ones(4)), TRANSFORMS),
    "zeros without memory": (
        lambda torch: torch._efficientzerotensor(4),
        MEMORY.format("Tensor: pass `x.clone()`"),
    ),
    "negated": (lambda torch: torch._neg_view(torch.ones(4)), "got a negated view: pass `resolve_neg()` of it"),
    "without a shape": (
        lambda torch: torch.nn.UninitializedParameter(),
        "must have a shape, got UninitializedParameter: call the module once before",
    ),
}
THROUGH_DLPACK = {
    "quantized": (quantized, "must be real numbers, got torch.qint8: pass `x.dequantize()`"),
    "meta": (
        lambda torch: torch.ones(4, device="meta"),
        "must be in CPU or CUDA memory, got a tensor on meta: `to_empty(device='cpu')` gives a module memory",
    ),
    "requires a gradient": (
        lambda torch: torch.ones(4, requires_grad=True)[:],
        "must not require a gradient: pass `x.detach()`, which has the same memory, or use `fastadam.torch`",
    ),
    "complex": (
        lambda torch: torch.ones(4, dtype=torch.complex64),
        "must be real, got torch.complex64: pass `torch.view_as_real(x)`",
    ),
    "conjugated": (
        lambda torch: torch.ones(4, dtype=torch.complex64).conj(),
        "must be real, got torch.complex64: pass `torch.view_as_real(x.resolve_conj())`",
    ),
    "8-bit floats": (lambda torch: torch.ones(4).to(torch.float8_e5m2), "got torch.float8_e5m2: pass `x.float()`"),
    "subclass": (of_subclass, "Metres, which may mean more than its numbers: pass `x.as_subclass(torch.Tensor)`"),
}
ROWS = ", or as a gradient `SparseRows(x.indices()[0], x.values())` of `x.coalesce()`"


of_prototypes = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of what is new or deprecated there


@of_prototypes
@pytest.mark.parametrize("name", TENSORS | THROUGH_DLPACK)
def test_tensors_that_are_not_their_memory_are_refused_with_what_to_pass(name):
    torch = pytest.importorskip("torch")
    make, sentence = (TENSORS | THROUGH_DLPACK)[name]
    refused_everywhere(make(torch), sentence + ROWS * (name == "COO"))


@pytest.mark.parametrize("transform", ["grad", "vmap", "functionalize"])
def test_steps_inside_of_transforms_are_refused(transform):
    torch = pytest.importorskip("torch")
    seen = []

    def inside(x):
        refused_everywhere(x, TRANSFORMS)
        seen.append(x)
        return x.sum()

    getattr(torch.func, transform)(inside)(torch.ones(4, 4) if transform == "vmap" else torch.ones(4))
    assert seen


@of_prototypes
@pytest.mark.parametrize("name", TENSORS)
def test_the_same_in_fastadam_torch(name):
    torch = pytest.importorskip("torch")
    make, sentence = TENSORS[name]
    assert steps_of_torch_are_refused(torch, lambda: make(torch), sentence, gradients=name != "negated")


def steps_of_torch_are_refused(torch, make, sentence, *, gradients=True):
    """How often a parameter, or a gradient of `adamw_step`, is refused; plain ones beside it stay as they are."""
    import fastadam.torch

    sentence, hyper = re.escape(sentence), {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0.0, "eps": 1e-8}
    p = torch.ones(4)
    p.grad = torch.ones(4)
    refused = 0
    opt = fastadam.torch.Adam([p])
    opt.param_groups[0]["params"].append(make())
    opt.state[opt.param_groups[0]["params"][1]]["step"] = torch.tensor(0.0)
    with pytest.raises(TypeError, match=rf"`param_groups\[0\]\['params'\]\[1\]` .*{sentence}$"):
        opt.step()
    for place, name in enumerate(("params", "grads", "exp_avgs", "exp_avg_sqs")):
        if name == "grads" and not gradients:
            continue
        held = make()
        lists = [[torch.ones(tuple(_shape(held)))] for _ in range(4)]
        lists[place] = [held]
        step = torch.tensor(0.0)
        with pytest.raises(TypeError, match=rf"`{name}\[0\]` .*{sentence}$"):
            fastadam.torch.adamw_step(*lists, [step], **hyper)
        assert not step
        assert all(torch.equal(each, torch.ones_like(each)) for index, (each,) in enumerate(lists) if index != place)
        refused += 1
    assert torch.equal(p, torch.ones(4))
    return refused


def _shape(tensor):
    try:
        return tensor.shape if all(isinstance(length, int) for length in tensor.shape) else (2,)
    except RuntimeError:
        return (2,)


@of_prototypes
@pytest.mark.parametrize("options", [{}, {"nonfinite": "raise"}], ids=str)
@pytest.mark.parametrize("name", ["masked", "fake", "functional", "zeros without memory"])
def test_gradients_without_memory_in_fastadam_torch(name, options):
    torch = pytest.importorskip("torch")
    import fastadam.torch

    p, other = torch.ones(4), torch.ones(4)
    opt = fastadam.torch.Adam([p, other], **options)
    p.grad, other.grad = torch.ones(4), torch.ones(4)
    opt.step()
    before = p.clone(), other.clone()
    make, sentence = TENSORS[name]
    other.grad = make(torch)
    with pytest.raises(TypeError, match=rf"`param_groups\[0\]\['params'\]\[1\].grad` {re.escape(sentence)}$"):
        opt.step()
    assert torch.equal(p, before[0])
    assert torch.equal(other, before[1])
