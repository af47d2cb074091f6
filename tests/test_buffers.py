"""How parameters are packed into flat buffers and re-bound, and the mappings of views."""

import collections

import numpy as np
import pytest
from oracle import assert_same_bits
from training import HYPER, SHAPES, both, copies, dtypes, make, pmv, sizes, ways

import fastadam

# --- packing and re-binding


def as_layout(array, layout):
    """A copy of `array` with the same values in another memory layout."""
    match layout:
        case "fortran":
            return np.asfortranarray(array)
        case "transposed":
            return np.ascontiguousarray(array.T).T
        case "strided":
            wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), 9, array.dtype)
            wide[..., ::2] = array
            return wide[..., ::2]
        case "reversed":
            return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
        case "unaligned":
            memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
            memory[:] = np.frombuffer(array.tobytes(), np.uint8)
            return memory.view(array.dtype).reshape(array.shape)
        case _:
            return array.copy()


layouts = pytest.mark.parametrize("layout", ["fortran", "transposed", "strided", "reversed", "unaligned"])


@dtypes
@pytest.mark.parametrize("kind", [dict, collections.OrderedDict, collections.UserDict, collections.ChainMap])
def test_mapping_is_rebound_to_views_of_one_buffer_with_the_same_values(kind, dtype):
    original = make(SHAPES, dtype=dtype)
    params = kind(original.copy())
    with pytest.warns(UserWarning, match="still held elsewhere"):
        opt = fastadam.Adam(params, flat=True)
    assert list(params) == list(opt.params) == list(opt.grads) == list(SHAPES)
    for name, array in original.items():
        np.testing.assert_array_equal(params[name], array, strict=True)
        np.testing.assert_array_equal(opt.params[name], array, strict=True)
        np.testing.assert_array_equal(opt.grads[name], np.zeros_like(array), strict=True)
        assert params[name] is not array
        assert array.size == 0 or np.shares_memory(params[name], opt.buffers.p)
        assert array.size == 0 or np.shares_memory(params[name], opt.params[name])
        assert array.size == 0 or np.shares_memory(opt.grads[name], opt.buffers.g)
        assert not np.shares_memory(params[name], array)


@both
def test_caller_sees_the_training_through_the_mapping_and_writes_through_it(flat):
    params = make(SHAPES)
    opt = fastadam.Adam(params, lr=0.5, flat=flat)
    before = copies(params)
    opt.step({name: np.ones_like(array) for name, array in params.items()})
    for name, array in params.items():
        np.testing.assert_allclose(array, before[name] - 0.5, atol=1e-6)
    params["w"][...] = 3.0
    np.testing.assert_array_equal(opt.params["w"], np.full((3, 5), 3.0, np.float32))
    opt.params["b"] = 4.0
    assert params["b"] == 4.0


def test_list_is_rebound_and_named_by_position():
    original = list(make(SHAPES).values())
    params = original.copy()
    with pytest.warns(UserWarning, match="still held elsewhere"):
        opt = fastadam.Adam(params, flat=True)
    assert list(opt.params) == [0, 1, 2, 3, 4]
    for position, array in enumerate(original):
        np.testing.assert_array_equal(params[position], array, strict=True)
        assert params[position] is not array
        assert array.size == 0 or np.shares_memory(params[position], opt.buffers.p)


@both
def test_groups_of_dict_list_and_flat_array(flat):
    named, listed, alone = make({"w": (2, 3), "b": ()}), [np.ones(3, np.float32), np.ones(4, np.float32)], np.ones(7)
    groups = [{"params": named}, {"params": listed, "lr": 0.1}, {"params": alone}]
    opt = fastadam.Adam(groups, lr=0.5, flat=flat)
    assert [group["params"] for group in opt.param_groups] == [("w", "b"), (0, 1), (2,)]
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.1, 0.5]
    assert opt.params[2] is alone or np.shares_memory(opt.params[2], alone)
    opt.step({name: np.ones_like(view) for name, view in opt.params.items()})
    np.testing.assert_allclose(listed[0], np.full(3, 0.9), rtol=1e-6)
    np.testing.assert_allclose(alone, np.full(7, 0.5), rtol=1e-6)


@both
@dtypes
@sizes
def test_flat_array_is_adopted_without_a_copy(dtype, size, flat):
    whole = np.ones(size + 8, dtype)
    array = whole[3 : size + 3]
    opt = fastadam.Adam(array, lr=0.25, flat=flat)
    assert opt.buffers.p is array
    opt.step(np.ones(size, dtype))
    np.testing.assert_allclose(array, np.full(size, 0.75), rtol=1e-6)
    np.testing.assert_array_equal(np.delete(whole, np.s_[3 : size + 3]), np.ones(8))


def test_memory_map_is_trained_in_its_file(tmp_path):
    path = tmp_path / "flat.npy"
    np.save(path, np.ones(5, np.float32))
    opt = fastadam.Adam(np.load(path, mmap_mode="r+"), lr=0.5)
    opt.step(np.ones(5, np.float32))
    np.testing.assert_allclose(np.load(path), np.full(5, 0.5), rtol=1e-6)


@dtypes
@layouts
def test_parameters_of_any_memory_layout_keep_their_values_in_place(layout, dtype):
    array = make({"w": (6, 7)}, dtype=dtype)["w"]
    params = {"before": np.zeros(3, dtype), "w": as_layout(array, layout)}
    fastadam.Adam(params, flat=True)
    np.testing.assert_array_equal(params["w"], array, strict=True)
    assert params["w"].flags.c_contiguous


@both
@ways
@layouts
@pytest.mark.parametrize("shape", [(6, 7), (200, 203)], ids=["small", "large"])
def test_gradients_of_any_memory_layout_reach_their_elements(shape, layout, way, flat):
    gradients = make({"w": shape, "b": (2, 2)}, seed=1)
    plain, other = (fastadam.Adam(make({"w": shape, "b": (2, 2)}), **HYPER, flat=flat) for _ in range(2))
    plain.step(gradients)
    way(other, {name: as_layout(gradient, layout) for name, gradient in gradients.items()})
    assert_same_bits(pmv(other), pmv(plain))


@dtypes
def test_every_segment_of_every_buffer_starts_on_64_bytes(dtype):
    opt = fastadam.Adam(make({size: size for size in (1, 3, 16, 17, 0, 5, 33)}, dtype=dtype), flat=True)
    for flat in (opt.buffers.p, opt.buffers.g, opt.buffers.m, opt.buffers.v):
        addresses = [view.ctypes.data for view in opt.buffers.views(flat).values() if view.size]
        np.testing.assert_array_equal(np.mod(addresses, 64), 0)


@pytest.mark.parametrize("eps", [1e-8, 0.0])
@pytest.mark.parametrize("decoupled", [False, True])
def test_gaps_between_segments_stay_zero(eps, decoupled):
    hyper = {"eps": eps, "weight_decay": 0.1, "decoupled_weight_decay": decoupled, "maximize": True}
    opt = fastadam.Adam(make({"a": 3, "b": (), "c": 5}), **hyper, flat=True)
    for seed in range(3):
        opt.step(make({"a": 3, "b": (), "c": 5}, seed))
    for flat in (opt.buffers.p, opt.buffers.g, opt.buffers.m, opt.buffers.v):
        gaps = np.ones(flat.size, bool)
        for segment in opt.buffers.segments.values():
            gaps[segment.start : segment.stop] = False
        np.testing.assert_array_equal(flat[gaps], 0.0)


def test_numpy_scalar_is_a_0d_parameter():
    params = {"b": np.float32(2.0), "w": np.ones(3, np.float32)}
    opt = fastadam.Adam(params, lr=0.5, flat=True)
    opt.step({"b": np.float32(7.0), "w": np.ones(3, np.float32)})
    assert params["b"].shape == ()
    np.testing.assert_allclose(params["b"], 1.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["", "a.b/c", 3, -1, None, ("layer", 0), frozenset({1}), 2.5], ids=repr)
@both
def test_any_hashable_is_a_name(name, flat):
    params = {name: np.ones(3), "other": np.zeros(2)}
    opt = fastadam.Adam(params, lr=0.5, flat=flat)
    opt.step({"other": np.zeros(2), name: np.ones(3)})
    np.testing.assert_allclose(params[name], np.full(3, 0.5), rtol=1e-6)


@both
@pytest.mark.parametrize(
    "empty", [lambda: np.zeros(0), lambda: {"a": np.zeros(0), "b": np.zeros((3, 0))}], ids=["array", "mapping"]
)
def test_nothing_but_empty_parameters(empty, flat):
    opt = fastadam.Adam(empty(), flat=flat)
    opt.step({name: np.zeros_like(view) for name, view in opt.params.items()})
    opt.step()
    assert opt.buffers.size == 0


def test_interleaved_parameters_are_not_taken_for_shared_ones():
    memory = np.arange(8.0)
    params = {"even": memory[::2], "odd": memory[1::2], "none": memory[3:3]}
    fastadam.Adam(params, flat=True)
    np.testing.assert_array_equal(params["even"], [0, 2, 4, 6])
    np.testing.assert_array_equal(params["odd"], [1, 3, 5, 7])


def test_parameters_of_one_repeated_element_become_independent():
    params = {"w": np.lib.stride_tricks.as_strided(np.ones(1), (4,), (0,), writeable=True)}
    fastadam.Adam(params, lr=0.5, flat=True).step({"w": np.array([1.0, -1.0, 0.0, 1.0])})
    np.testing.assert_allclose(params["w"], [0.5, 1.5, 1.0, 0.5], rtol=1e-6)


# --- the mapping of views


@both
def test_views_take_arrays_lists_and_scalars_and_keep_their_memory(flat):
    opt = fastadam.Adam(make({"w": (2, 2), "b": ()}), flat=flat)
    views = dict(opt.grads)
    opt.grads["w"] = [[1, 2], [3, 4]]
    opt.grads["w"] += 1
    opt.grads["w"] *= np.array([1.0, 2.0])
    opt.grads["b"] = 5
    opt.grads["b"] -= np.float64(0.5)
    np.testing.assert_array_equal(views["w"], [[2, 6], [4, 10]])
    np.testing.assert_array_equal(views["b"], 4.5)
    assert views["w"] is opt.grads["w"]
    assert views["b"] is opt.grads["b"]


@pytest.mark.parametrize("name", ["p", "g", "m", "v"])
def test_flat_buffers_are_written_and_not_replaced(name):
    opt = fastadam.Adam(make({"w": (2, 2)}), flat=True)
    buffer = getattr(opt.buffers, name)
    with pytest.raises(AttributeError, match=rf"`buffers.{name}` cannot be replaced"):
        setattr(opt.buffers, name, np.ones(4, np.float32))
    assert getattr(opt.buffers, name) is buffer
    setattr(opt.buffers, name, buffer)  # as `opt.buffers.g *= 2` does
    buffer += 1
    assert getattr(opt.buffers, name) is buffer


@pytest.mark.parametrize("name", ["params", "grads", "buffers", "all_buffers", "param_groups"])
def test_what_trains_cannot_be_exchanged(name):
    opt = fastadam.Adam(make({"w": (2, 2)}))
    with pytest.raises(AttributeError):
        setattr(opt, name, getattr(opt, name))
    with pytest.raises(TypeError):
        opt.param_groups[0] = {}


def test_views_cannot_gain_or_lose_names():
    opt = fastadam.Adam(make({"w": (2, 2)}))
    with pytest.raises(KeyError, match="unknown"):
        opt.grads["unknown"] = 1.0
    with pytest.raises(TypeError):
        del opt.grads["w"]
    assert "unknown" not in opt.grads
    assert len(opt.grads) == 1
    assert "w" in repr(opt.grads)
