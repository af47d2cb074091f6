"""`fastadam.Adam` and `AdamW`: how parameters are packed and re-bound, and what a step does with them."""

import collections
import copy
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from oracle import assert_same_bits, exact_adam

import fastadam
from fastadam.kernels import cpu
from fastadam.kernels.update import ADAM, ADAM_L2

LARGE = cpu.DIRECT_FROM  # from here on a gradient is read where it lies, and a buffer is stepped by threads
HYPER = {"lr": 3e-3, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.05}
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
sizes = pytest.mark.parametrize("size", [5, LARGE + 5], ids=["small", "large"])


def make(shapes, seed=0, dtype=np.float32):
    """Name -> random array."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def copies(arrays):
    return {name: np.array(array) for name, array in arrays.items()}


def pmv(opt):
    return opt.buffers.p, opt.buffers.m, opt.buffers.v


def by_mapping(opt, grads, **options):
    opt.step(grads, **options)


def by_flat_array(opt, grads, **options):
    flat = np.zeros_like(opt.buffers.p)
    for name, view in opt.buffers.views(flat).items():
        view[...] = grads[name]
    opt.step(flat, **options)


def by_assignment(opt, grads, **options):
    for name, gradient in grads.items():
        opt.grads[name] = gradient
    opt.step(**options)


def by_accumulation(opt, grads, **options):
    opt.zero_grad()
    for name, gradient in grads.items():
        opt.grads[name] += gradient
    opt.step(**options)


WAYS = [by_mapping, by_flat_array, by_assignment, by_accumulation]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


# --- packing and re-binding

SHAPES = {"w": (3, 5), "b": (), "none": (0, 4), "k": (2, 1, 3), "last": (17,)}


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
    opt = fastadam.Adam(params)
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


def test_caller_sees_the_training_through_the_mapping_and_writes_through_it():
    params = make(SHAPES)
    opt = fastadam.Adam(params, lr=0.5)
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
    opt = fastadam.Adam(params)
    assert list(opt.params) == [0, 1, 2, 3, 4]
    for position, array in enumerate(original):
        np.testing.assert_array_equal(params[position], array, strict=True)
        assert params[position] is not array
        assert array.size == 0 or np.shares_memory(params[position], opt.buffers.p)


def test_groups_of_dict_list_and_flat_array():
    named, listed, flat = make({"w": (2, 3), "b": ()}), [np.ones(3, np.float32), np.ones(4, np.float32)], np.ones(7)
    opt = fastadam.Adam([{"params": named}, {"params": listed, "lr": 0.1}, {"params": flat}], lr=0.5)
    assert [group["params"] for group in opt.param_groups] == [("w", "b"), (0, 1), (2,)]
    assert [group["lr"] for group in opt.param_groups] == [0.5, 0.1, 0.5]
    assert opt.params[2] is flat or np.shares_memory(opt.params[2], flat)
    opt.step({name: np.ones_like(view) for name, view in opt.params.items()})
    np.testing.assert_allclose(listed[0], np.full(3, 0.9), rtol=1e-6)
    np.testing.assert_allclose(flat, np.full(7, 0.5), rtol=1e-6)


@dtypes
@sizes
def test_flat_array_is_adopted_without_a_copy(dtype, size):
    whole = np.ones(size + 8, dtype)
    flat = whole[3 : size + 3]
    opt = fastadam.Adam(flat, lr=0.25)
    assert opt.buffers.p is flat
    opt.step(np.ones(size, dtype))
    np.testing.assert_allclose(flat, np.full(size, 0.75), rtol=1e-6)
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
    fastadam.Adam(params)
    np.testing.assert_array_equal(params["w"], array, strict=True)
    assert params["w"].flags.c_contiguous


@ways
@layouts
@pytest.mark.parametrize("shape", [(6, 7), (200, 203)], ids=["small", "large"])
def test_gradients_of_any_memory_layout_reach_their_elements(shape, layout, way):
    gradients = make({"w": shape, "b": (2, 2)}, seed=1)
    plain, other = (fastadam.Adam(make({"w": shape, "b": (2, 2)}), **HYPER) for _ in range(2))
    plain.step(gradients)
    way(other, {name: as_layout(gradient, layout) for name, gradient in gradients.items()})
    assert_same_bits(pmv(other), pmv(plain))


@dtypes
def test_every_segment_of_every_buffer_starts_on_64_bytes(dtype):
    opt = fastadam.Adam(make({size: size for size in (1, 3, 16, 17, 0, 5, 33)}, dtype=dtype))
    for flat in (opt.buffers.p, opt.buffers.g, opt.buffers.m, opt.buffers.v):
        addresses = [view.ctypes.data for view in opt.buffers.views(flat).values() if view.size]
        np.testing.assert_array_equal(np.mod(addresses, 64), 0)


@pytest.mark.parametrize("eps", [1e-8, 0.0])
@pytest.mark.parametrize("decoupled", [False, True])
def test_gaps_between_segments_stay_zero(eps, decoupled):
    opt = fastadam.Adam(
        make({"a": 3, "b": (), "c": 5}), eps=eps, weight_decay=0.1, decoupled_weight_decay=decoupled, maximize=True
    )
    for seed in range(3):
        opt.step(make({"a": 3, "b": (), "c": 5}, seed))
    for flat in (opt.buffers.p, opt.buffers.g, opt.buffers.m, opt.buffers.v):
        gaps = np.ones(flat.size, bool)
        for segment in opt.buffers.segments.values():
            gaps[segment.start : segment.stop] = False
        np.testing.assert_array_equal(flat[gaps], 0.0)


def test_numpy_scalar_is_a_0d_parameter():
    params = {"b": np.float32(2.0), "w": np.ones(3, np.float32)}
    opt = fastadam.Adam(params, lr=0.5)
    opt.step({"b": np.float32(7.0), "w": np.ones(3, np.float32)})
    assert params["b"].shape == ()
    np.testing.assert_allclose(params["b"], 1.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["", "a.b/c", 3, -1, None, ("layer", 0), frozenset({1}), 2.5], ids=repr)
def test_any_hashable_is_a_name(name):
    params = {name: np.ones(3), "other": np.zeros(2)}
    opt = fastadam.Adam(params, lr=0.5)
    opt.step({"other": np.zeros(2), name: np.ones(3)})
    np.testing.assert_allclose(params[name], np.full(3, 0.5), rtol=1e-6)


@pytest.mark.parametrize("params", [np.zeros(0), {"a": np.zeros(0), "b": np.zeros((3, 0))}], ids=["flat", "mapping"])
def test_nothing_but_empty_parameters(params):
    opt = fastadam.Adam(params)
    opt.step({name: np.zeros_like(view) for name, view in opt.params.items()})
    opt.step()
    assert opt.buffers.p.size == 0


def test_interleaved_parameters_are_not_taken_for_shared_ones():
    memory = np.arange(8.0)
    params = {"even": memory[::2], "odd": memory[1::2], "none": memory[3:3]}
    fastadam.Adam(params)
    np.testing.assert_array_equal(params["even"], [0, 2, 4, 6])
    np.testing.assert_array_equal(params["odd"], [1, 3, 5, 7])


def test_parameters_of_one_repeated_element_become_independent():
    repeated = np.lib.stride_tricks.as_strided(np.ones(1), (4,), (0,), writeable=True)
    params = {"w": repeated}
    fastadam.Adam(params, lr=0.5).step({"w": np.array([1.0, -1.0, 0.0, 1.0])})
    np.testing.assert_allclose(params["w"], [0.5, 1.5, 1.0, 0.5], rtol=1e-6)


# --- the mapping of views


def test_views_take_arrays_lists_and_scalars_and_keep_their_memory():
    opt = fastadam.Adam(make({"w": (2, 2), "b": ()}))
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


def test_views_cannot_gain_or_lose_names():
    opt = fastadam.Adam(make({"w": (2, 2)}))
    with pytest.raises(KeyError, match="unknown"):
        opt.grads["unknown"] = 1.0
    with pytest.raises(TypeError):
        del opt.grads["w"]
    assert "unknown" not in opt.grads
    assert len(opt.grads) == 1
    assert "w" in repr(opt.grads)


# --- gradients

MIXED = {"large": (LARGE,), "huge": (3, LARGE // 2), "small": (7,), "scalar": ()}


@pytest.mark.parametrize("order", list(itertools.permutations(MIXED)), ids="-".join)
def test_every_way_to_give_gradients_is_the_same_step(order):
    shapes = {name: MIXED[name] for name in order}
    optimizers = [fastadam.Adam(make(shapes), **HYPER) for _ in WAYS]
    for seed, grad_scale in ((1, 1.0), (2, 0.3)):
        for opt, way in zip(optimizers, WAYS, strict=True):
            way(opt, make(shapes, seed), grad_scale=grad_scale)
    for opt in optimizers[1:]:
        assert_same_bits(pmv(opt), pmv(optimizers[0]))


@pytest.mark.parametrize("order", list(itertools.permutations(MIXED)), ids="-".join)
def test_mixed_sizes_step_as_each_array_alone(order):
    params, grads = make(MIXED), make(MIXED, 1)
    expected = copies(params)
    opt = fastadam.Adam(params := {name: params[name] for name in order}, **HYPER)
    opt.step(grads)
    for name, p in expected.items():
        m, v = np.zeros_like(p), np.zeros_like(p)
        fastadam.adam_step(*(a.reshape(-1) for a in (p, grads[name], m, v)), step=1, **HYPER)
        state = opt.state_dict()["state"][name]
        assert_same_bits((params[name], state["exp_avg"], state["exp_avg_sq"]), (p, m, v))


def test_mapping_may_be_in_another_order_than_the_parameters():
    one, other = (fastadam.Adam(make(SHAPES), **HYPER) for _ in range(2))
    grads = make(SHAPES, 1)
    one.step(grads)
    other.step(dict(reversed(grads.items())))
    assert_same_bits(pmv(other), pmv(one))


@ways
@sizes
def test_step_returns_none_and_only_reads_gradients(size, way):
    opt = fastadam.Adam(make({"w": size, "b": (2, 3)}), maximize=True, **HYPER)
    grads = make({"w": size, "b": (2, 3)}, 1)
    before = copies(grads)
    assert way(opt, grads, grad_scale=0.1) is None
    for name, gradient in grads.items():
        np.testing.assert_array_equal(gradient, before[name])


def test_flat_gradient_is_only_read():
    opt = fastadam.Adam(np.ones(LARGE), maximize=True, **HYPER)
    gradient = make({"g": LARGE}, dtype=np.float64)["g"]
    before = gradient.copy()
    opt.step(gradient, grad_scale=0.1)
    np.testing.assert_array_equal(gradient, before)


def test_written_gradients_stay_for_the_next_step():
    opt = fastadam.Adam(np.zeros(3))
    opt.grads[0] = 2.0
    opt.step()
    opt.step()
    np.testing.assert_array_equal(opt.grads[0], [2.0, 2.0, 2.0])
    np.testing.assert_allclose(opt.buffers.p, np.full(3, -2e-3), rtol=1e-6)


@ways
@sizes
def test_read_only_gradients_are_accepted(size, way):
    plain, other = (fastadam.Adam(make({"w": size, "b": ()}), **HYPER) for _ in range(2))
    grads = make({"w": size, "b": ()}, 1)
    plain.step(copies(grads))
    for gradient in grads.values():
        gradient.flags.writeable = False
    way(other, grads)
    assert_same_bits(pmv(other), pmv(plain))


def test_read_only_flat_gradient_is_accepted():
    plain, other = (fastadam.Adam(np.ones(5, np.float32), **HYPER) for _ in range(2))
    gradient = make({"g": 5}, 1)["g"]
    plain.step(gradient)
    gradient.flags.writeable = False
    other.step(gradient)
    assert_same_bits(pmv(other), pmv(plain))


@sizes
def test_broadcast_gradient_of_the_right_shape_is_accepted(size):
    params = {"w": np.ones(size), "b": np.ones(2)}
    opt = fastadam.Adam(params, lr=0.5)
    opt.step({"w": np.broadcast_to(np.float64(3.0), size), "b": np.broadcast_to(np.float64(-3.0), 2)})
    np.testing.assert_allclose(params["w"], np.full(size, 0.5), rtol=1e-6)
    np.testing.assert_allclose(params["b"], [1.5, 1.5], rtol=1e-6)


def test_step_without_any_gradient_written_is_a_step_with_zeros():
    opt, zeros = (fastadam.AdamW(np.ones(4), lr=0.1) for _ in range(2))
    opt.step()
    zeros.step(np.zeros(4))
    assert_same_bits(pmv(opt), pmv(zeros))


# --- gradients that lie in the optimizer's own memory: a step must read all of them as they were when it was called


def step_with_aliases(shapes, aliases_of, grouped):
    """(optimizer stepped with aliases, one stepped with copies of them): both must be the same."""
    optimizers = []
    for take in (dict, copies):
        params = make(shapes)
        groups = [{"params": {name: array}} for name, array in params.items()] if grouped else params
        opt = fastadam.Adam(groups, lr=5.0)
        opt.step(make(shapes, 1))
        for name, view in opt.grads.items():
            view[...] = make(shapes, 2)[name]
        opt.step(take(aliases_of(opt)))
        optimizers.append(opt)
    return optimizers


def own_flat_slices(opt):
    return {name: opt.buffers.g[start : start + view.size] for start, (name, view) in enumerate(opt.params.items())}


ALIASES = {
    "the written gradients": lambda opt: opt.grads,
    "the written gradients swapped": lambda opt: dict(zip(opt.grads, reversed(list(opt.grads.values())), strict=True)),
    "one written gradient for all": lambda opt: dict.fromkeys(opt.grads, next(iter(opt.grads.values()))),
    "the written gradients reversed": lambda opt: {name: view[::-1] for name, view in opt.grads.items()},
    "shifted slices of the gradient buffer": own_flat_slices,
    "the parameters": lambda opt: opt.params,
    "the parameters swapped": lambda opt: dict(zip(opt.params, reversed(list(opt.params.values())), strict=True)),
    "the moments": lambda opt: opt.buffers.views(opt.buffers.m),
    "the moments swapped": lambda opt: dict(
        zip(opt.params, reversed(opt.buffers.views(opt.buffers.m).values()), strict=True)
    ),
}


@sizes
@pytest.mark.parametrize("grouped", [False, True], ids=["one group", "two groups"])
@pytest.mark.parametrize("aliases_of", ALIASES.values(), ids=ALIASES.keys())
def test_gradients_in_the_optimizers_own_memory_are_read_as_they_were(aliases_of, grouped, size):
    aliased, copied = step_with_aliases({"a": (size,), "b": (size,)}, aliases_of, grouped)
    assert_same_bits(pmv(aliased), pmv(copied))


def test_large_gradient_over_the_place_where_a_small_one_is_gathered():
    aliased, copied = step_with_aliases(
        {"small": (7,), "large": (LARGE,)},
        lambda opt: {"small": np.full(7, -50.0, np.float32), "large": opt.buffers.g[:LARGE]},
        grouped=False,
    )
    assert_same_bits(pmv(aliased), pmv(copied))


# --- hyperparameters


@sizes
@ways
def test_groups_equal_separate_optimizers(size, way):
    shapes = {"a": size, "b": (3, 3), "c": (), "d": 11}
    overrides = {
        "a": {"lr": 0.1, "weight_decay": 0.0},
        "b": {"betas": (0.5, 0.6), "maximize": True},
        "c": {"eps": 1e-2, "decoupled_weight_decay": True},
        "d": {},
    }
    params = make(shapes)
    opt = fastadam.Adam([{"params": {name: params[name]}, **overrides[name]} for name in shapes], **HYPER)
    alone = {name: fastadam.Adam({name: array}, **(HYPER | overrides[name])) for name, array in make(shapes).items()}
    for seed in range(1, 4):
        way(opt, make(shapes, seed))
        for name, gradient in make(shapes, seed).items():
            alone[name].step({name: gradient})
    for name, other in alone.items():
        actual, expected = opt.state_dict()["state"][name], other.state_dict()["state"][name]
        assert_same_bits(
            (opt.params[name], actual["exp_avg"], actual["exp_avg_sq"]),
            (other.params[name], expected["exp_avg"], expected["exp_avg_sq"]),
        )


def test_added_group_has_its_own_step_count_settings_and_memory():
    first, second = make({"a": (3, 2)}), make({"b": 5}, 1)
    alone = [fastadam.Adam(copies(first), **HYPER), fastadam.Adam(copies(second), **(HYPER | {"lr": 0.5}))]
    opt = fastadam.Adam(first, **HYPER)
    view, gradient_view, p = first["a"], opt.grads["a"], opt.buffers.p
    opt.step({"a": np.ones((3, 2), np.float32)})
    opt.add_param_group({"params": second, "lr": 0.5})
    grads = make({"a": (3, 2), "b": 5}, 2)
    opt.step(grads)
    alone[0].step({"a": np.ones((3, 2), np.float32)})
    alone[0].step({"a": grads["a"]})
    alone[1].step({"b": grads["b"]})

    assert first["a"] is view
    assert np.shares_memory(view, p)
    np.testing.assert_array_equal(first["a"], alone[0].params["a"])
    np.testing.assert_array_equal(second["b"], alone[1].params["b"])
    assert [entry["step"] for entry in opt.state_dict()["state"].values()] == [2, 1]
    assert opt.all_buffers[0].p is p
    assert len(opt.all_buffers) == 2
    opt.grads["a"] = 3.0
    np.testing.assert_array_equal(gradient_view, np.full((3, 2), 3.0))


def test_added_groups_train_by_written_gradients_too():
    params, added, flat = make({"a": 3}), [np.ones(2, np.float32)], np.ones(4)
    opt = fastadam.Adam(params, lr=0.5)
    opt.grads["a"] = 1.0
    opt.add_param_group({"params": added})
    opt.add_param_group({"params": flat, "lr": 0.25})
    assert list(opt.params) == list(opt.grads) == ["a", 0, 1]
    assert len(opt.param_groups) == 3
    opt.grads[0], opt.grads[1] = 1.0, 1.0
    opt.step()
    np.testing.assert_allclose(params["a"], make({"a": 3})["a"] - 0.5, rtol=1e-5)
    np.testing.assert_allclose(added[0], [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(flat, np.full(4, 0.75), rtol=1e-6)


def signatures():
    return sum(len(twin.signatures) for update in (ADAM, ADAM_L2) for twin in cpu.twins(update))


NUMBERS = [0, 1, 0.25, np.float32(0.25), np.float64(0.25), np.array(0.25), np.array(0.25, np.float32), np.int8(1)]


@sizes
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: f"{type(number).__name__}-{number}")
@pytest.mark.parametrize("key", ["lr", "eps", "weight_decay"])
def test_changed_number_takes_effect_without_compiling(size, number, key):
    opt, other = (fastadam.Adam({"w": np.full(size, 2, np.float32)}, **HYPER) for _ in range(2))
    grads = make({"w": size}, 1)
    opt.step(grads)
    other.step(grads)
    fastadam.Adam({"w": np.ones(size, np.float32)}).step(grads)  # compiles what weight_decay = 0 needs
    compiled = signatures()
    opt.param_groups[0][key] = number
    other.param_groups[0][key] = float(number)
    opt.step(grads)
    assert signatures() == compiled
    other.step(grads)
    assert_same_bits(pmv(opt), pmv(other))
    assert opt.param_groups[0][key] == float(number)


@pytest.mark.parametrize("number", [*NUMBERS, np.float32(1.0), np.array(1.0, np.float32)], ids=repr)
def test_gradient_scale_of_any_number_type_compiles_nothing(number):
    opt, other = (fastadam.Adam(np.ones(5, np.float32), **HYPER) for _ in range(2))
    gradient = make({"g": 5}, 1)["g"]
    other.step(gradient, grad_scale=float(number))
    compiled = signatures()
    opt.step(gradient, grad_scale=number)
    assert signatures() == compiled
    assert_same_bits(pmv(opt), pmv(other))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 0.7),
        ("betas", (0.1, 0.2)),
        ("betas", [0, 0.5]),
        ("betas", np.array([0.3, 0.4])),
        ("eps", 0.5),
        ("weight_decay", 0.0),
        ("weight_decay", 3.0),
        ("maximize", True),
        ("decoupled_weight_decay", np.True_),
    ],
)
def test_every_setting_can_change_between_steps(key, value):
    params, grads = make({"w": 9}), make({"w": 9}, 1)
    p, m, v = params["w"].copy(), np.zeros(9, np.float32), np.zeros(9, np.float32)
    opt = fastadam.Adam(params, **HYPER)
    opt.step(grads)
    opt.param_groups[0][key] = value
    opt.step(grads)
    fastadam.adam_step(p, grads["w"], m, v, step=1, **HYPER)
    fastadam.adam_step(p, grads["w"], m, v, step=2, **(HYPER | {key: value}))
    assert_same_bits(pmv(opt), (p, m, v))


def test_group_keeps_further_keys_and_guards_its_own():
    opt = fastadam.Adam([{"params": np.ones(3), "initial_lr": 0.5}])
    group = opt.param_groups[0]
    group["label"] = "decoder"
    assert (group["initial_lr"], group["label"]) == (0.5, "decoder")
    del group["label"]
    assert "label" not in group
    with pytest.raises(TypeError, match="`lr`"):
        del group["lr"]
    with pytest.raises(TypeError, match="`params`"):
        group["params"] = ()
    assert "initial_lr" in repr(group)


@dtypes
@sizes
@pytest.mark.parametrize("decoupled", [False, True])
def test_maximize_is_the_negated_gradient(decoupled, size, dtype):
    up, down = (
        fastadam.Adam(make({"w": size}, dtype=dtype), maximize=up, decoupled_weight_decay=decoupled, **HYPER)
        for up in (True, False)
    )
    for seed in range(1, 4):
        gradient = make({"w": size}, seed, dtype)["w"]
        up.step({"w": gradient})
        down.step({"w": -gradient})
    assert_same_bits(pmv(up), pmv(down))


DECAYS = {
    "no decay": (fastadam.Adam, {"weight_decay": 0.0}, {}),
    "L2": (fastadam.Adam, {"weight_decay": 0.1}, {"l2": 0.1}),
    "decoupled": (fastadam.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}, {"decoupled": 0.1}),
    "AdamW": (fastadam.AdamW, {"weight_decay": 0.1}, {"decoupled": 0.1}),
    "AdamW by default": (fastadam.AdamW, {}, {"decoupled": 0.01}),
    "Adam by default": (fastadam.Adam, {}, {}),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float64, 1e-13)])
@pytest.mark.parametrize(("kind", "settings_", "decay"), DECAYS.values(), ids=DECAYS.keys())
@pytest.mark.parametrize("maximize", [False, True])
def test_both_decays_against_exact_adam(kind, settings_, decay, dtype, tolerance, maximize):
    hyper = {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-3}
    flat = make({"p": 101}, dtype=dtype)["p"]
    p, m, v = flat.astype(np.float64), np.zeros(101), np.zeros(101)
    opt = kind(flat, **hyper, **settings_, maximize=maximize)
    for step in range(1, 11):
        gradient = make({"g": 101}, step, dtype)["g"]
        opt.step(gradient, grad_scale=0.75)
        p, m, v = exact_adam(p, -gradient if maximize else gradient, m, v, step=step, grad_scale=0.75, **hyper, **decay)
    np.testing.assert_allclose(flat, p, atol=tolerance)
    np.testing.assert_allclose(opt.buffers.m, m, atol=tolerance)
    np.testing.assert_allclose(opt.buffers.v, v, atol=tolerance)


def test_adamw_is_adam_with_decoupled_decay_of_one_hundredth():
    adamw, adam = fastadam.AdamW(np.ones(5)), fastadam.Adam(np.ones(5), weight_decay=1e-2, decoupled_weight_decay=True)
    assert isinstance(adamw, fastadam.Adam)
    assert dict(adamw.param_groups[0]) == dict(adam.param_groups[0])
    for opt in (adamw, adam):
        opt.step(np.arange(5.0))
    assert_same_bits(pmv(adamw), pmv(adam))


@dtypes
@sizes
@pytest.mark.parametrize("decoupled", [False, True])
def test_infinite_mask_with_zero_gradient_survives(dtype, size, decoupled):
    mask = np.zeros(size, dtype)
    mask[1::2] = -np.inf
    opt = fastadam.Adam({"mask": mask.copy()}, weight_decay=0.0, decoupled_weight_decay=decoupled)
    for _ in range(3):
        opt.step({"mask": np.zeros(size, dtype)})
    np.testing.assert_array_equal(opt.params["mask"], mask)
    np.testing.assert_array_equal(opt.buffers.m, 0.0)
    np.testing.assert_array_equal(opt.buffers.v, 0.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_gradient_stays_in_its_element(value):
    opt, clean = (fastadam.Adam(np.ones(65, np.float32), **HYPER) for _ in range(2))
    gradient = make({"g": 65})["g"]
    clean.step(gradient)
    gradient[17] = value
    opt.step(gradient)
    for actual, expected in zip(pmv(opt), pmv(clean), strict=True):
        np.testing.assert_array_equal(np.delete(actual, 17), np.delete(expected, 17))
        assert not np.isfinite(actual[17])


@ways
@dtypes
@pytest.mark.parametrize("exponent", [-16, -1, 0, 3])
def test_gradient_scale_of_a_power_of_two_is_a_scaled_gradient(exponent, dtype, way):
    shapes = {"w": (4, 3), "large": LARGE}
    scaled, plain = (fastadam.Adam(make(shapes, dtype=dtype), **HYPER) for _ in range(2))
    for seed in (1, 2):
        grads = make(shapes, seed, dtype)
        way(scaled, grads, grad_scale=2.0**exponent)
        plain.step({name: gradient * dtype(2.0**exponent) for name, gradient in grads.items()})
    assert_same_bits(pmv(scaled), pmv(plain))


def test_gradient_scale_of_zero_is_a_zero_gradient():
    scaled, plain = (fastadam.Adam(make({"w": 9}), **HYPER) for _ in range(2))
    for scale in (1.0, 0.0):
        scaled.step(make({"w": 9}, 1), grad_scale=scale)
        plain.step({"w": make({"w": 9}, 1)["w"] * np.float32(scale)})
    assert_same_bits(pmv(scaled), pmv(plain))


def test_learning_rate_of_zero_moves_only_the_moments():
    opt = fastadam.Adam(make({"w": 9}), lr=0.0, weight_decay=0.5, decoupled_weight_decay=True)
    opt.step(make({"w": 9}, 1))
    np.testing.assert_array_equal(opt.params["w"], make({"w": 9})["w"])
    assert opt.buffers.m.all()


# --- what a step refuses


def drop(container, key):
    del container[key]


def replace_by_equal_values(container, key):
    container[key] = container[key].copy()


def replace_by_another_view(container, key):
    container[key] = container[key][...]


@pytest.mark.parametrize("spoil", [drop, replace_by_equal_values, replace_by_another_view], ids=lambda f: f.__name__)
@pytest.mark.parametrize("key", ["b", 1], ids=["dict", "list"])
@pytest.mark.parametrize("gradient", ["mapping", "flat", "written"])
def test_step_after_an_entry_was_replaced_raises_and_writes_nothing(key, spoil, gradient):
    arrays = make({"a": 3, "b": 4})
    params = arrays if key == "b" else list(arrays.values())
    opt = fastadam.Adam(params)
    opt.step({name: np.ones_like(view) for name, view in opt.params.items()})
    before = [buffer.copy() for buffer in pmv(opt)]
    mapping = {name: np.full_like(view, 2.0) for name, view in opt.params.items()}
    grads = {"mapping": mapping, "flat": np.ones_like(opt.buffers.p), "written": None}[gradient]
    kept = params.copy()
    spoil(params, key)
    with pytest.raises(ValueError, match=rf"`params\[{key!r}\]` must stay the view"):
        opt.step(grads)
    assert_same_bits(pmv(opt), before)
    if isinstance(params, dict):
        params.update(kept)
    else:
        params[:] = kept
    opt.step(grads)
    assert opt.state_dict()["state"][key]["step"] == 2


def test_step_of_an_optimizer_whose_mapping_was_taken_over_raises():
    params = make({"a": 3})
    first, second = fastadam.Adam(params), fastadam.Adam(params)
    with pytest.raises(ValueError, match=r"`params\['a'\]`"):
        first.step({"a": np.ones(3, np.float32)})
    second.step({"a": np.ones(3, np.float32)})


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("kind", [fastadam.Adam, fastadam.AdamW])
def test_optimizer_cannot_be_copied(kind, duplicate):
    with pytest.raises(TypeError, match=rf"{kind.__name__} must not be copied or pickled.*state_dict"):
        duplicate(kind(np.ones(3)))


# --- the rest of the surface


@pytest.mark.parametrize("used_before", [False, True])
def test_zero_grad_fills_every_gradient_in_place(used_before):
    opt = fastadam.Adam(make(SHAPES))
    opt.add_param_group({"params": {"added": np.ones(3)}})
    views = dict(opt.grads) if used_before else None
    for view in (views or {}).values():
        view[...] = 7.0
    assert opt.zero_grad() is None
    for name, view in opt.grads.items():
        np.testing.assert_array_equal(view, np.zeros_like(opt.params[name]))
        assert views is None or np.shares_memory(view, views[name]) or view.size == 0


def test_repr_shows_the_class_and_each_group():
    text = repr(fastadam.AdamW([{"params": make({"w": 3}), "lr": 0.125}, {"params": np.ones(2)}], weight_decay=0.375))
    assert text.startswith("AdamW(")
    assert text.count("0.375") == 2
    assert text.count("0.125") == 1
    assert "'w'" in text


def test_optimizers_in_one_process_do_not_meet():
    together = [fastadam.Adam(make({"w": size}, size), **HYPER) for size in (5, 6, LARGE)]
    alone = [fastadam.Adam(make({"w": size}, size), **HYPER) for size in (5, 6, LARGE)]
    for seed in range(3):
        for opt in together:
            opt.step(make({"w": opt.buffers.p.size}, seed))
    for opt in alone:
        for seed in range(3):
            opt.step(make({"w": opt.buffers.p.size}, seed))
    for left, right in zip(together, alone, strict=True):
        assert_same_bits(pmv(left), pmv(right))


# --- arrays of other libraries


@sizes
def test_torch_tensors_become_tensors_over_the_flat_buffer(size):
    torch = pytest.importorskip("torch")
    shapes = {"w": (2, size), "b": (), "none": (0,)}
    params = {name: torch.tensor(array) for name, array in make(shapes).items()}
    numpy = fastadam.Adam(make(shapes), **HYPER)
    opt = fastadam.Adam(params, **HYPER)
    assert all(isinstance(tensor, torch.Tensor) for tensor in params.values())
    for name in ("w", "b"):
        assert params[name].data_ptr() == opt.params[name].ctypes.data
    for seed in (1, 2):
        opt.step({name: torch.tensor(array) for name, array in make(shapes, seed).items()})
        numpy.step(make(shapes, seed))
    assert_same_bits(pmv(opt), pmv(numpy))
    np.testing.assert_array_equal(params["w"].numpy(), numpy.params["w"])
    params["b"].fill_(4.0)
    assert opt.params["b"] == 4.0


@pytest.mark.parametrize("make_layout", [lambda x: x.T.contiguous().T, lambda x: x.repeat_interleave(2, 1)[:, ::2]])
def test_torch_tensors_of_any_layout_keep_their_values(make_layout):
    torch = pytest.importorskip("torch")
    array = make({"w": (3, 4)})["w"]
    params = {"w": make_layout(torch.tensor(array))}
    opt = fastadam.Adam(params, lr=0.0)
    opt.step({"w": make_layout(torch.tensor(array))})
    np.testing.assert_array_equal(params["w"].numpy(), array)
    np.testing.assert_allclose(opt.buffers.views(opt.buffers.m)["w"], 0.1 * array, rtol=1e-5)


def test_flat_torch_tensor_is_adopted():
    torch = pytest.importorskip("torch")
    flat = torch.ones(5)
    opt = fastadam.Adam(flat, lr=0.5)
    assert opt.buffers.p.ctypes.data == flat.data_ptr()
    opt.step(torch.ones(5))
    opt.grads[0] = torch.ones(5)
    opt.step()
    np.testing.assert_allclose(flat.numpy(), np.zeros(5), atol=1e-6)


def test_torch_and_numpy_parameters_share_one_buffer():
    torch = pytest.importorskip("torch")
    params = {"torch": torch.ones(3), "numpy": np.ones(3, np.float32)}
    opt = fastadam.Adam(params, lr=0.5)
    opt.step({"torch": np.ones(3, np.float32), "numpy": torch.ones(3)})
    assert isinstance(params["torch"], torch.Tensor)
    assert isinstance(params["numpy"], np.ndarray)
    np.testing.assert_allclose(opt.params["torch"], opt.params["numpy"])
    np.testing.assert_allclose(params["torch"].numpy(), [0.5, 0.5, 0.5], rtol=1e-6)


class SpeaksDLPack:
    """An array of a library that fastadam has never heard of."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_arrays_of_an_unknown_library_are_adopted_and_read():
    flat = np.ones(3)
    opt = fastadam.Adam(SpeaksDLPack(flat), lr=0.5)
    opt.step(SpeaksDLPack(np.ones(3)))
    opt.step({0: SpeaksDLPack(np.ones(3))})
    np.testing.assert_allclose(flat, [0.0, 0.0, 0.0], atol=1e-6)


# --- any set of shapes


@settings(max_examples=60, deadline=None, database=None)
@given(
    shapes=st.lists(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6), min_size=1, max_size=7),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 3),
    way=st.sampled_from(WAYS),
    decoupled=st.booleans(),
)
def test_any_shapes_round_trip_and_step_as_each_array_alone(shapes, dtype, seed, groups, way, decoupled):
    shapes = dict(enumerate(shapes))
    params, grads = make(shapes, seed, dtype), make(shapes, seed + 1, dtype)
    original = copies(params)
    parts = [{name: params[name] for name in params if name % groups == part} for part in range(groups)]
    opt = fastadam.Adam([{"params": part} for part in parts if part], decoupled_weight_decay=decoupled, **HYPER)
    for name, array in original.items():
        np.testing.assert_array_equal(opt.params[name], array, strict=True)
    way(opt, grads)
    for part in parts:
        for name, view in part.items():
            p, m, v = original[name], np.zeros_like(view), np.zeros_like(view)
            flat = [array.reshape(-1) for array in (p, grads[name], m, v)]
            fastadam.adam_step(*flat, step=1, decoupled_weight_decay=decoupled, **HYPER)
            state = opt.state_dict()["state"][name]
            assert_same_bits((view, state["exp_avg"], state["exp_avg_sq"]), (p, m, v))
