"""Parameters that cannot be trained: nothing is re-bound, and no optimizer is as before."""

from types import MappingProxyType

import numpy as np
import pytest
from ml_dtypes import float8_e5m2
from refusal import DTYPES, F4, OnDevice, cupy_array_without_a_gpu, read_only, refuses, table, unaligned
from training import both

import fastadam


class Metres(np.ndarray):
    """Numbers with a unit."""


def listed_twice():
    array = np.ones(4, F4)
    return {"a": array, "b": array[1:3]}


def transposed_twin():
    array = np.ones((4, 3), F4)
    return {"a": array, "b": array.T}


def by_an_element():
    array = np.ones(9, F4)
    return [array[:5], array[4:]]


def in_two_groups():
    array = np.ones(9, F4)
    return [{"params": array}, {"params": {"w": array[2:].reshape(7, 1)}}]


# However parameters are held.
PARAMS = {
    "number": (lambda: 3, TypeError, "`params` must be a NumPy or CuPy array.*, got int"),
    "nothing": (lambda: None, TypeError, "`params` .*NoneType"),
    "string": (lambda: "params", TypeError, "`params` .*str"),
    "no entries": (dict, ValueError, "`params` must hold at least one parameter, got none"),
    "no entries in a generator": (lambda: iter(()), ValueError, "`params` must hold at least one parameter, got none"),
    "no groups": (list, ValueError, "`params` must hold at least one parameter, got none"),
    "empty group": (lambda: [{"params": []}], ValueError, r"`params\[0\]\['params'\]` must hold at least one"),
    "group without params": (lambda: [{"lr": 0.1}], TypeError, r"`params\[0\]` must be a dict with the key 'params'"),
    "group and array": (lambda: [{"params": [np.ones(2)]}, np.ones(2)], TypeError, r"`params\[1\]` must be a dict"),
    "list entry": (lambda: {"w": [1.0, 2.0]}, TypeError, r"`params\['w'\]` must be a NumPy or CuPy array.*got list"),
    "nested dicts": (  # optax#1007
        lambda: {"layer": {"w": np.ones(2)}},
        TypeError,
        r"`params\['layer'\]` must be an array, got a dict: dicts are not nested here. Pass a flat one",
    ),
    "float entry": (lambda: [np.ones(2), 1.5], TypeError, r"`params\[1\]` must be .*got float"),
    "float in a generator": (lambda: iter([np.ones(2), 1.5]), TypeError, r"`params\[1\]` must be .*got float"),
    "names alone": (lambda: {"w": np.ones(2)}.keys(), TypeError, r"`params\[0\]` must be .*got str"),
    "name and float": (lambda: [("w", 1.5)], TypeError, r"`params\[0\]\[1\]` must be .*got float"),
    "set": (lambda: {OnDevice(2)}, TypeError, "`params` must have an order, got a set: .* in the next run"),
    "frozen set": (lambda: frozenset({OnDevice(2)}), TypeError, "`params` must have an order, got a frozenset"),
    "set in a group": (
        lambda: [{"params": {OnDevice(2)}}],
        TypeError,
        r"`params\[0\]\['params'\]` must have an order, got a set: .*. Pass a list",  # pytorch#6031
    ),
    "pair of arrays": (lambda: [(np.ones(2), np.ones(2))], TypeError, r"`params\[0\]` must be .*got tuple"),
    "name given twice": (lambda: [("w", np.ones(2)), ("w", np.ones(2))], ValueError, "own, got 'w' twice"),
    "integers": (lambda: {"w": np.arange(3)}, TypeError, rf"`params\['w'\]` must be {DTYPES}.*int64"),
    "complex": (lambda: np.ones(3, complex), TypeError, f"`params` must be {DTYPES}.*complex128"),
    "booleans": (lambda: np.ones(3, bool), TypeError, f"`params` must be {DTYPES}.*bool"),
    "8-bit floats": (lambda: [np.ones(3, float8_e5m2)], TypeError, rf"`params\[0\]` must be {DTYPES}.*float8_e5m2"),
    "bits of bfloat16": (lambda: np.ones(3, np.uint16), TypeError, f"`params` must be {DTYPES}.*uint16"),
    "half, big-endian": (lambda: np.ones(3, ">f2"), TypeError, "`params` must be .*native byte order.*>f2"),
    "big-endian": (lambda: np.ones(3, ">f4"), TypeError, "`params` must be .*native byte order.*>f4"),
    "objects": (lambda: np.ones(3, object), TypeError, f"`params` must be {DTYPES}"),
    "objects in a list": (lambda: [np.ones(3), np.ones(3, object)], TypeError, rf"`params\[1\]` must be {DTYPES}"),
    "objects in a generator": (lambda: iter([np.ones(3, object)]), TypeError, rf"`params\[0\]` must be {DTYPES}"),
    "objects in a pair": (lambda: [("w", np.array([None]))], TypeError, rf"`params\[0\]\[1\]` must be {DTYPES}"),
    "strings": (lambda: [np.array(["1.0"])], TypeError, rf"`params\[0\]` must be {DTYPES}"),
    "masked in a list": (lambda: [np.ma.ones(3)], TypeError, r"`params\[0\]` must be a plain array, got numpy.Masked"),
    "masked": (lambda: np.ma.ones(3), TypeError, "`params` must be a plain array, got numpy.MaskedArray"),
    "numpy.matrix": (
        lambda: [np.ones((1, 1)).view(np.matrix)],
        TypeError,
        r"`params\[0\]` .* got numpy.matrix, which",
    ),
    "with a unit": (lambda: {"w": np.ones(3).view(Metres)}, TypeError, r"Metres, which may .*: pass `np.asarray\(x\)`"),
    "two axes": (
        lambda: np.ones((2, 3), F4),
        ValueError,
        r"`params` must be 1-D where it is one array, got shape \(2, 3\): .* in a list or a",
    ),
    "strided": (lambda: np.ones(8, F4)[::2], ValueError, r"`params` must be contiguous, got strides \(8,\)"),
    "reversed": (lambda: np.ones(8, F4)[::-1], ValueError, r"`params` must be contiguous, got strides \(-4,\)"),
    "unaligned": (lambda: unaligned(8), ValueError, "`params` must be aligned to 4 bytes"),
    "read-only": (lambda: read_only(np.ones(3)), ValueError, "`params` must be writable, got a read-only array"),
    "read-only entry": (lambda: {"w": read_only(np.ones(3))}, ValueError, r"`params\['w'\]` must be writable"),
    "read-only in a tuple": (lambda: (read_only(np.ones(3)),), ValueError, r"`params\[0\]` must be writable"),
    "broadcast": (lambda: [np.broadcast_to(np.ones(1), 3)], ValueError, r"`params\[0\]` must be writable"),
    "listed twice": (listed_twice, ValueError, r"`params\['b'\]` must not share memory with `params\['a'\]`"),
    "one array twice in a list": (
        lambda: [np.ones(3)] * 2,
        ValueError,
        r"`params\[1\]` must not share .*`params\[0\]`",
    ),
    "transposed twin": (transposed_twin, ValueError, r"`params\['b'\]` must not share memory with `params\['a'\]`"),
    "overlapping by an element": (by_an_element, ValueError, r"`params\[1\]` must not share memory with `params\[0\]`"),
    "in two groups": (
        in_two_groups,
        ValueError,
        r"`params\[1\].*` must not share memory with `params\[0\]\['params'\]`",
    ),
    "name in two groups": (
        lambda: [{"params": {"w": np.ones(2)}}, {"params": {"w": np.ones(2)}}],
        ValueError,
        r"`params\[1\]\['params'\]\['w'\]` must have a name of its own, got 'w' twice",
    ),
    "on another kind of device": (lambda: OnDevice(10), TypeError, "`params` must be in CPU or CUDA memory.*type 10"),
    "DLPack that fails": (lambda: OnDevice(1), TypeError, "`params` cannot be shared through DLPack"),
    "CUDA tensor": (
        lambda: {"w": OnDevice(2)},
        RuntimeError,
        r"`params\['w'\]` is in CUDA memory, which needs (a working GPU|CuPy): .",
    ),
    "CUDA array of CuPy": (
        lambda: {"w": cupy_array_without_a_gpu()},
        RuntimeError,
        r"`params\['w'\]` is in CUDA memory, which needs a working GPU",
    ),
    "flat CUDA array": (cupy_array_without_a_gpu, RuntimeError, "`params` is in CUDA memory"),
    "beside a CUDA array": (
        lambda: {"a": np.ones(4, F4), "b": cupy_array_without_a_gpu()},
        ValueError,
        r"`params\['b'\]` must be on cpu like `params\['a'\]`, got cuda:0",
    ),
}


def containers(params):
    """The containers among `params`, whose entries must stay."""
    if isinstance(params, dict):
        return [params]
    if not isinstance(params, (list, tuple)):
        return []
    return [params] + [part for group in params if isinstance(group, dict) for part in containers(group.get("params"))]


@both
@pytest.mark.parametrize(("make", "error", "message"), table(PARAMS))
def test_params(make, error, message, flat):
    params = make()
    refuses(lambda: fastadam.Adam(params, flat=flat), error, message, *containers(params))


REPEATED = np.lib.stride_tricks.as_strided(np.ones(1), (4,), (0,), writeable=True)
OVERLAPPING = np.lib.stride_tricks.as_strided(np.ones(5), (3, 3), (8, 8), writeable=True)
DENSE = "must be dense to be stepped where it lies, got strides"
IN_PLACE = {
    "NumPy scalar": (
        lambda: {"b": np.float32(2.0)},
        TypeError,
        r"`params\['b'\]` must be an array, got the NumPy scalar np.float32\(2.0\), .*: use `np.array\(x\)`; `flat=Tr",
    ),
    "every second element": (
        lambda: {"w": np.ones(8, F4)[::2]},
        ValueError,
        rf"`params\['w'\]` {DENSE} \(8,\) for shape \(4,\) of float32; `flat=True` packs a copy of it",
    ),
    "columns of a matrix": (lambda: [np.ones((4, 6))[:, :3]], ValueError, rf"`params\[0\]` {DENSE} \(48, 8\)"),
    "one element repeated": (lambda: [REPEATED], ValueError, rf"`params\[0\]` {DENSE} \(0,\)"),
    "rows that overlap": (lambda: (OVERLAPPING,), ValueError, rf"`params\[0\]` {DENSE} \(8, 8\)"),
    "unaligned": (
        lambda: [("w", unaligned(8))],
        ValueError,
        r"`params\[0\]\[1\]` must be aligned to 4 bytes .*where it lies, got an unaligned array; `flat=True` packs",
    ),
    "unaligned half": (lambda: [unaligned(8, np.float16)], ValueError, r"`params\[0\]` must be aligned to 2 bytes"),
}


@pytest.mark.parametrize(("make", "error", "message"), table(IN_PLACE))
def test_params_where_they_lie(make, error, message):
    params = make()
    refuses(lambda: fastadam.Adam(params), error, message, params)
    opt = fastadam.Adam({"first": np.ones(3, F4)})
    group = {"params": params}
    message = message.replace(r"`params\[", r"`param_group\['params'\]\[")
    refuses(lambda: opt.add_param_group(group), error, message, opt, params)


MUTABLE = "must be in a dict or a list with `flat=True`: its entries are re-bound to views"
PACKED = {
    "tuple": (lambda: (np.ones(3),), r"`params\[0\]`"),
    "generator": (lambda: (array for array in [np.ones(3)]), r"`params\[0\]`"),
    "pairs": (lambda: [("w", np.ones(3))], r"`params\[0\]\[1\]`"),
    "items of a dict": (lambda: {"w": np.ones(3)}.items(), r"`params\[0\]\[1\]`"),
    "read-only mapping": (lambda: MappingProxyType({"w": np.ones(3)}), r"`params\['w'\]`"),
    "tuple in a group": (
        lambda: [{"params": [np.ones(2)]}, {"params": (np.ones(2),)}],
        r"`params\[1\]\['params'\]\[0\]`",
    ),
}


@pytest.mark.parametrize(("make", "label"), table(PACKED))
def test_containers_that_cannot_be_re_bound(make, label):
    params = make()
    refuses(lambda: fastadam.Adam(params, flat=True), TypeError, f"{label} {MUTABLE}", *containers(params))
    opt = fastadam.Adam(make())
    opt.step({name: np.ones_like(view) for name, view in opt.params.items()})


@pytest.mark.parametrize("value", [1, None, "yes"], ids=repr)
def test_flat_is_true_or_false(value):
    params = {"w": np.ones(3, F4)}
    refuses(lambda: fastadam.Adam(params, flat=value), TypeError, "`flat` must be True or False", params)


@both
@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_memory_map_must_be_of_a_file_that_is_open_for_writing(tmp_path, mode, flat):
    path = tmp_path / "w.npy"
    np.save(path, np.ones((2, 3), F4))
    before, params = path.read_bytes(), {"w": np.load(path, mmap_mode=mode)}
    if mode == "r":
        message = r"`params\['w'\]` must be writable, got a read-only array"
        refuses(lambda: fastadam.Adam(params, flat=flat), ValueError, message, params)
        return
    opt = fastadam.Adam(params, lr=0.5, flat=flat)
    opt.step({"w": np.ones((2, 3), F4)})
    np.testing.assert_allclose(params["w"], np.full((2, 3), 0.5), rtol=1e-6)
    assert (path.read_bytes() == before) == (flat or mode == "c")
