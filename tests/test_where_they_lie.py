"""Parameters that are stepped where they lie: whoever holds them sees them train, to the bits of a packed run."""

import itertools
import tracemalloc
from collections import ChainMap, OrderedDict, UserDict
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_same_bits
from refusal import refuses
from training import HYPER, LARGE, WAYS, both, dtypes, make, pmv, ways

import fastadam

SHAPES = {"w": (3, 5), "b": (), "none": (0, 4), "k": (2, 3, 4), "last": (17,)}

# --- any iterable or mapping

KINDS = {
    "dict": lambda arrays: arrays,
    "OrderedDict": OrderedDict,
    "UserDict": UserDict,
    "ChainMap": ChainMap,
    "read-only mapping": MappingProxyType,
    "pairs": lambda arrays: list(arrays.items()),
    "items": lambda arrays: arrays.items(),
    "generator of pairs": lambda arrays: ((name, array) for name, array in arrays.items()),
    "list": lambda arrays: list(arrays.values()),
    "tuple": lambda arrays: tuple(arrays.values()),
    "values": lambda arrays: arrays.values(),
    "generator": lambda arrays: (array for array in arrays.values()),
    "group of a tuple": lambda arrays: [{"params": tuple(arrays.values())}],
    "generator of groups": lambda arrays: ({"params": iter([array])} for array in arrays.values()),
}


@dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_any_iterable_or_mapping_trains_its_arrays(kind, dtype):
    arrays = make(SHAPES, dtype=dtype)
    packed = fastadam.Adam(make(SHAPES, dtype=dtype), **HYPER, flat=True)
    opt = fastadam.Adam(KINDS[kind](dict(arrays)), **HYPER)
    assert len(opt.params) == len(arrays)
    for view, array in zip(opt.params.values(), arrays.values(), strict=True):
        assert view is array
    names = list(opt.params)
    assert names in (list(arrays), list(range(len(arrays))))
    for seed in (1, 2):
        grads = make(SHAPES, seed, dtype)
        packed.step(grads)
        opt.step(dict(zip(names, grads.values(), strict=True)))
    assert_same_bits(pmv(opt), pmv(packed))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, packed.params[name], strict=True)


def test_arrays_in_a_list_train():
    # With fastadam 0.1 copies of them trained, and these stayed as they were.
    W, b = np.ones((2, 3)), np.zeros(3)
    params = [W, b]
    opt = fastadam.Adam(params, lr=0.5)
    opt.step([np.ones((2, 3)), -np.ones(3)])
    np.testing.assert_allclose(W, np.full((2, 3), 0.5), rtol=1e-6)
    np.testing.assert_allclose(b, np.full(3, 0.5), rtol=1e-6)
    assert params[0] is W
    assert params[1] is b
    assert fastadam.Adam([W, b]).params[0] is W


def test_nothing_is_rebound_and_no_array_is_packed():
    params = make(SHAPES)
    before = dict(params)
    opt = fastadam.Adam(params)
    opt.step(make(SHAPES, 1))
    assert all(params[name] is array for name, array in before.items())
    with pytest.raises(AttributeError, match="no `p`: the parameters lie where they are"):
        opt.buffers.p  # noqa: B018
    assert {"m", "v"} <= opt.buffers.flats.keys()
    assert "p" not in opt.buffers.flats
    opt.params["w"] = 3.0
    np.testing.assert_array_equal(before["w"], np.full((3, 5), 3.0))


def test_parts_of_one_array_train_in_it():
    whole = np.ones((4, 6))
    opt = fastadam.Adam({"first": whole[:2], "last": whole[3]}, lr=0.5)
    opt.step({"first": np.ones((2, 6)), "last": np.ones(6)})
    np.testing.assert_allclose(whole[:, 0], [0.5, 0.5, 1.0, 0.5], rtol=1e-6)


def test_the_optimizer_keeps_arrays_alive():
    opt = fastadam.Adam((np.ones(LARGE) for _ in range(3)), lr=0.25)
    junk = [np.full(LARGE, 7.0) for _ in range(5)]
    opt.step([np.ones(LARGE)] * 3)
    for array in opt.params.values():
        np.testing.assert_allclose(array, np.full(LARGE, 0.75), rtol=1e-6)
    assert all((array == 7.0).all() for array in junk)


@pytest.mark.parametrize("shape", [(3, 5), (200, 300)], ids=["small", "large"])
def test_memory_maps_train_in_their_files(tmp_path, shape):
    for name, array in make({"w": shape, "b": 7}).items():
        np.save(tmp_path / f"{name}.npy", array)
    maps = {name: np.load(tmp_path / f"{name}.npy", mmap_mode="r+") for name in "wb"}
    before = dict(maps)
    opt, other = fastadam.Adam(maps, **HYPER), fastadam.Adam(make({"w": shape, "b": 7}), **HYPER)
    for seed in (1, 2):
        opt.step(make({"w": shape, "b": 7}, seed))
        other.step(make({"w": shape, "b": 7}, seed))
    assert all(maps[name] is before[name] for name in maps)
    for name in "wb":
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), other.params[name], strict=True)


# --- any dense order of the elements


def laid_out(array, order, backwards=(), shift=0):
    """A copy of `array` whose axes lie in memory in this `order`, some of them `backwards`, `shift` elements in."""
    memory = np.full(array.size + shift + 3, 9, array.dtype)
    inverse = np.argsort(order)
    copy = memory[shift : shift + array.size].reshape([array.shape[axis] for axis in order]).transpose(inverse)
    copy = copy[(..., *(slice(None, None, -1 if axis in backwards else 1) for axis in range(array.ndim)))]
    copy[...] = array
    return copy


ORDERS = list(itertools.permutations(range(3)))
REVERSED = [(), (0,), (1, 2), (0, 1, 2)]


@ways
@pytest.mark.parametrize("shape", [(3, 4, 5), (31, 40, 33)], ids=["small", "large"])
@pytest.mark.parametrize(("order", "backwards"), list(itertools.product(ORDERS, REVERSED)), ids=str)
def test_any_dense_order_is_stepped_as_its_packed_copy(order, backwards, shape, way):
    arrays = {"w": laid_out(make({"w": shape})["w"], order, backwards, shift=1), "b": make({"b": 3})["b"]}
    assert arrays["w"].flags.c_contiguous == (order == (0, 1, 2) and not backwards)
    w = arrays["w"]
    opt = fastadam.Adam(arrays, **HYPER)
    packed = fastadam.Adam({"w": make({"w": shape})["w"], "b": make({"b": 3})["b"]}, **HYPER, flat=True)
    for seed, other in ((1, (0, 1, 2)), (2, order), (3, (1, 0, 2))):
        plain = make({"w": shape, "b": 3}, seed)
        grads = {"w": laid_out(plain["w"], other, backwards), "b": plain["b"]}
        for _ in range(2):  # small arrays that come again are read where they lie
            packed.step(plain)
            way(opt, grads)
    assert opt.params["w"] is w
    assert_same_bits(pmv(opt), pmv(packed))
    assert (w.base if w.base.ndim == 1 else w.base.base)[[0, -1, -2]].tolist() == [9, 9, 9]


@settings(max_examples=80, deadline=None, database=None)
@given(data=st.data(), way=st.sampled_from(WAYS), dtype=st.sampled_from([np.float32, np.float64, np.float16]))
def test_any_order_of_any_shape(data, way, dtype):
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=4)))

    def drawn(array):
        order = data.draw(st.permutations(range(len(shape))))
        return laid_out(array, order, data.draw(st.sets(st.sampled_from(range(len(shape))))) if shape else ())

    array = make({"w": shape}, dtype=dtype)["w"]
    opt = fastadam.Adam([drawn(array)], **HYPER)
    packed = fastadam.Adam([array.copy()], **HYPER, flat=True)
    for seed in (1, 2):
        gradient = make({"w": shape}, seed, dtype)["w"]
        packed.step([gradient])
        way(opt, {0: drawn(gradient)})
    assert_same_bits(pmv(opt), pmv(packed))


def test_gradients_and_moments_lie_as_their_parameters_do():
    params = {"w": np.asfortranarray(make({"w": (4, 3)})["w"]), "r": make({"r": (5,)})["r"][::-1]}
    opt = fastadam.Adam(params)
    for views in (opt.grads, opt.buffers.views(opt.buffers.m), opt.buffers.views(opt.buffers.v)):
        assert {name: view.strides for name, view in views.items()} == {"w": (4, 16), "r": (-4,)}
    opt.grads["w"] = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(opt.grads["w"], np.arange(12).reshape(4, 3))
    state = opt.state_dict()["state"]
    assert {name: entry["exp_avg"].shape for name, entry in state.items()} == {"w": (4, 3), "r": (5,)}


def test_a_large_gradient_in_the_order_of_its_parameter_is_not_copied():
    shape = (300, 400)
    opt = fastadam.Adam({"w": np.asfortranarray(make({"w": shape})["w"])})
    gradient = np.asfortranarray(make({"w": shape}, 1)["w"])
    opt.step({"w": gradient})
    tracemalloc.start()
    try:
        opt.step({"w": gradient})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000
    assert "g" not in opt.buffers.flats
    opt.step({"w": gradient.copy("C")})
    assert "g" in opt.buffers.flats


# --- what may lie beside a parameter


def test_a_gradient_may_lie_between_the_elements_of_what_surrounds_a_parameter():
    def stepped(take):
        matrix = make({"matrix": (10, 8)})["matrix"]
        opt = fastadam.Adam({"row": matrix[3, 2:6], "w": np.ones(10, np.float32)}, **HYPER)
        opt.step({"row": take(matrix[:, 0][:4]), "w": take(matrix[:, 7])})
        return opt

    assert_same_bits(pmv(stepped(lambda view: view)), pmv(stepped(np.copy)))
    matrix = np.ones((10, 8), np.float32)
    opt = fastadam.Adam({"row": matrix[3, 2:6], "w": np.ones(10, np.float32)})
    message = r"`grads\['w'\]` must not share memory with a parameter"
    refuses(lambda: opt.step({"row": np.ones(4, np.float32), "w": matrix[:, 3]}), ValueError, message, opt, matrix)


@both
@pytest.mark.parametrize("size", [5, LARGE], ids=["small", "large"])
def test_an_adopted_array_is_no_gradient(size, flat):
    first, second = make({"first": size, "second": size}).values()
    opt = fastadam.Adam(
        [{"params": first}, {"params": second}, {"params": {"w": np.ones(size, np.float32)}}], flat=flat
    )
    ones = np.ones(size, np.float32)
    for grads in ({0: ones, 1: first, "w": ones}, {0: second, 1: ones, "w": ones}, {0: ones, 1: second, "w": ones}):
        refuses(lambda: opt.step(grads), ValueError, "must not share memory with a parameter", opt, first, second)  # noqa: B023


def test_a_parameter_or_the_owner_of_its_memory_is_no_gradient():
    owner = make({"w": (3, 5)})["w"]
    opt = fastadam.Adam({"w": owner[::-1], "v": np.ones((3, 5), np.float32)})
    for gradient in (owner, owner[::-1], opt.params["w"], owner.copy(order="F")):
        act = lambda: opt.step({"w": np.ones((3, 5), np.float32), "v": gradient})  # noqa: B023, E731
        if np.shares_memory(owner, gradient):
            refuses(act, ValueError, r"`grads\['v'\]` must not share memory with a parameter", opt, owner)
        else:
            act()
