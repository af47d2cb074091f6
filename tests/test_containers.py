"""Containers of parameters: arrays that are put in the place of those that train, and arrays that stay behind."""

import gc
import warnings
from collections import ChainMap, OrderedDict, UserDict, UserList
from types import MappingProxyType

import numpy as np
import pytest
from ml_dtypes import bfloat16
from refusal import F4, refuses
from training import both, make

import fastadam

# --- an entry that is replaced between steps is found out


def as_list(arrays):
    return list(arrays.values())


KINDS = {"dict": dict, "OrderedDict": OrderedDict, "UserDict": UserDict, "ChainMap": ChainMap, "list": as_list}
KINDS |= {"UserList": lambda arrays: UserList(arrays.values())}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def key_of(params, name):
    return name if hasattr(params, "keys") else "abc".index(name)


def container_of(kind):
    """A container of three arrays that nobody else holds."""
    return kind(make({"a": 3, "b": (2, 2), "c": ()}))


def step(opt):
    opt.step({name: np.ones_like(view) for name, view in opt.params.items()})


def with_copy(array):
    return array.copy()


def with_view(array):
    return array[...]


def with_other_shape(array):
    return np.zeros(7, F4)


def with_none(array):
    return None


@both
@kinds
@pytest.mark.parametrize("replace", [with_copy, with_view, with_other_shape, with_none], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_replaced_entry_is_found_out(kind, replace, name, flat):
    params = container_of(kind)
    key = key_of(params, name)
    opt = fastadam.Adam(params, flat=flat)
    step(opt)
    kept = params[key]
    params[key] = replace(kept)
    message = rf"`params\[{key!r}\]` must stay the array that this optimizer trains, got another object or none"
    for grads in (None, {each: np.ones_like(view) for each, view in opt.params.items()}):
        with pytest.raises(ValueError, match=message):
            opt.step(grads)
    params[key] = kept
    refuses(lambda: opt.step({}), ValueError, "entry for every parameter", opt)  # which steps in the end


@both
@kinds
def test_entry_that_is_gone_is_found_out(kind, flat):
    params = container_of(kind)
    opt, key = fastadam.Adam(params, flat=flat), key_of(params, "c")
    kept = params.pop(key)
    with pytest.raises(ValueError, match=rf"`params\[{key!r}\]` must stay"):
        step(opt)
    if hasattr(params, "keys"):
        params[key] = kept
    else:
        params.append(kept)
    step(opt)


@both
def test_entries_that_are_swapped_are_found_out(flat):
    listed, named = make({"a": 3, "b": 3}), make({"c": 3, "d": 3})
    listed = list(listed.values())
    opt = fastadam.Adam([{"params": listed}, {"params": named}], flat=flat)
    listed.reverse()
    with pytest.raises(ValueError, match=r"`params\[0\]` must stay"):
        step(opt)
    listed.reverse()
    named["c"], named["d"] = named["d"], named["c"]
    with pytest.raises(ValueError, match=r"`params\['c'\]` must stay"):
        step(opt)
    named["c"], named["d"] = named["d"], named["c"]
    step(opt)


@both
def test_entries_of_an_added_group_are_watched(flat):
    first, added = make({"a": 3}), make({"b": 4})
    opt = fastadam.Adam(first, flat=flat)
    opt.add_param_group({"params": added})
    step(opt)
    added["b"] = added["b"] + 1
    with pytest.raises(ValueError, match=r"`params\['b'\]` must stay"):
        step(opt)


def test_array_that_hides_another_one_of_a_chain_is_found_out():
    behind = make({"a": 3, "b": 4})
    params = ChainMap({}, behind)
    opt = fastadam.Adam(params)
    step(opt)
    params["a"] = np.zeros(3, F4)
    with pytest.raises(ValueError, match=r"`params\['a'\]` must stay"):
        step(opt)
    del params["a"]
    step(opt)


def test_array_behind_a_read_only_mapping_is_watched():
    behind = make({"a": 3})
    opt = fastadam.Adam(MappingProxyType(behind))
    step(opt)
    behind["a"] = behind["a"].copy()
    with pytest.raises(ValueError, match=r"`params\['a'\]` must stay"):
        step(opt)


@both
@kinds
def test_order_and_further_entries_make_no_difference(kind, flat):
    params = container_of(kind)
    opt = fastadam.Adam(params, flat=flat)
    if hasattr(params, "keys"):
        params["a"] = params.pop("a")
        params["epoch"] = 7
    else:
        params.append("epoch")
    step(opt)


def test_tensor_that_is_replaced_is_found_out():
    torch = pytest.importorskip("torch")
    params = {"w": torch.ones(3)}
    opt = fastadam.Adam(params, lr=0.5)
    opt.step({"w": torch.ones(3)})
    params["w"] = params["w"] - 0.1
    with pytest.raises(ValueError, match=r"`params\['w'\]` must stay"):
        opt.step({"w": torch.ones(3)})


# --- arrays that stay behind when others are packed


def held_elsewhere(labels):
    return pytest.warns(UserWarning, match=rf"^{labels}: the array is still held elsewhere, and will not train")


def test_array_that_somebody_else_holds_is_named_once():
    W, params = np.ones((2, 2)), {"b": np.ones(2)}
    params["W"] = W
    with held_elsewhere(r"`params\['W'\]`") as caught:
        opt = fastadam.Adam(params, lr=0.5, flat=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "Leave out `flat=True` to train arrays where they lie" in str(caught[0].message)
    opt.step([np.ones(2), np.ones((2, 2))])
    opt.add_param_group({"params": [np.ones(3)]})
    step(opt)
    np.testing.assert_array_equal(W, 1.0)


def test_many_arrays_are_named_by_three():
    kept = make(dict.fromkeys("abcde", 2))
    with held_elsewhere(r"`params\['a'\]`, `params\['b'\]`, `params\['c'\]`, ..."):
        fastadam.Adam(dict(kept), flat=True)


def test_label_of_a_group():
    W = np.ones(3)
    with held_elsewhere(r"`params\[1\]\['params'\]\[0\]`"):
        fastadam.Adam([{"params": [np.ones(2)]}, {"params": [W]}], flat=True)
    opt = fastadam.Adam({"a": np.ones(2)}, flat=True)
    with held_elsewhere(r"`param_group\['params'\]\['W'\]`"):
        opt.add_param_group({"params": {"W": W}})


@pytest.mark.parametrize("holder", [lambda array: [array], lambda array: array[:1], lambda array: lambda: array])
def test_any_reference_counts(holder):
    params = {"W": np.ones(3)}
    kept = holder(params["W"])
    with held_elsewhere(r"`params\['W'\]`"):
        fastadam.Adam(params, flat=True)
    assert kept is not None


def nobody_else_holds():
    """Name -> function that makes a container whose arrays nobody else holds."""
    rng = np.random.default_rng(0)
    return {
        "dict": lambda: {name: rng.random(3) for name in "ab"},
        "list": lambda: [rng.random(3), rng.random((2, 2))],
        "groups": lambda: [{"params": [rng.random(3)]}, {"params": {"w": rng.random(2)}}, {"params": rng.random(4)}],
        "UserDict": lambda: UserDict(a=rng.random(3)),
        "views of one array": lambda: dict(enumerate(np.split(rng.random(12), 3))),
        "rows": lambda: list(rng.random((3, 4))),
        "transposed": lambda: {"w": rng.random((3, 4)).T},
        "strided": lambda: {"w": rng.random((3, 4))[:, ::2]},
        "bfloat16": lambda: [rng.random(3).astype(bfloat16)],
        "scalars": lambda: {"b": np.float64(2.0), "w": rng.random(3)},
        "empty": lambda: [np.zeros(0), np.zeros((2, 0))],
    }


@pytest.mark.parametrize("name", nobody_else_holds())
def test_no_warning_where_nobody_else_holds_an_array(name):
    params = nobody_else_holds()[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt = fastadam.Adam(params, flat=True)
        opt.add_param_group({"params": {"added": np.ones(3)}})
    gc.collect()
    step(opt)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_tensors_are_named_where_somebody_else_holds_them_and_only_there(dtype):
    torch = pytest.importorskip("torch")
    params = {name: torch.ones(3, dtype=getattr(torch, dtype)) for name in "ab"}
    held = params["b"]
    with held_elsewhere(r"`params\['b'\]`") as caught:
        fastadam.Adam(params, flat=True)
    assert len(caught) == 1
    assert held.sum() == 3


def test_no_warning_of_memory_maps_that_nobody_else_holds(tmp_path):
    np.save(tmp_path / "w.npy", np.ones(5))
    params = {"w": np.load(tmp_path / "w.npy", mmap_mode="r+")}
    fastadam.Adam(params, flat=True)
    params["w"] = kept = np.load(tmp_path / "w.npy", mmap_mode="r+")
    with held_elsewhere(r"`params\['w'\]`"):
        fastadam.Adam(params, flat=True)
    assert kept is not params["w"]


def test_no_warning_of_arrays_where_they_lie_or_that_are_adopted():
    W, adopted = np.ones(3), np.ones(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastadam.Adam([W, np.ones(2)])
        fastadam.Adam(adopted, flat=True)
        fastadam.Adam([{"params": adopted}], flat=True).add_param_group({"params": W})
