"""Every way to give a step its gradients, wherever they lie."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from oracle import assert_same_bits, bits
from refusal import refuses
from training import HYPER, LARGE, SHAPES, WAYS, both, copies, make, pmv, sizes, ways

import fastadam

# --- gradients

MIXED = {"large": (LARGE,), "huge": (3, LARGE // 2), "small": (7,), "scalar": ()}


@pytest.mark.parametrize("order", list(itertools.permutations(MIXED)), ids="-".join)
def test_every_way_to_hold_parameters_and_to_give_gradients_is_the_same_step(order):
    shapes = {name: MIXED[name] for name in order}
    optimizers = [fastadam.Adam(make(shapes), **HYPER, flat=flat) for flat in (True, False) for _ in WAYS]
    for seed, grad_scale in ((1, 1.0), (2, 0.3)):
        for opt, way in zip(optimizers, [*WAYS, *WAYS], strict=True):
            way(opt, make(shapes, seed), grad_scale=grad_scale)
    for opt in optimizers[1:]:
        assert_same_bits(pmv(opt), pmv(optimizers[0]))


@pytest.mark.parametrize("order", list(itertools.permutations(MIXED)), ids="-".join)
@both
def test_mixed_sizes_step_as_each_array_alone(order, flat):
    params, grads = make({name: MIXED[name] for name in order}), make(MIXED, 1)
    expected = copies(params)
    opt = fastadam.Adam(params, **HYPER, flat=flat)
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


@both
@ways
@sizes
def test_step_returns_none_and_only_reads_gradients(size, way, flat):
    opt = fastadam.Adam(make({"w": size, "b": (2, 3)}), maximize=True, **HYPER, flat=flat)
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


@both
@ways
@sizes
def test_read_only_gradients_are_accepted(size, way, flat):
    plain, other = (fastadam.Adam(make({"w": size, "b": ()}), **HYPER, flat=flat) for _ in range(2))
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


@both
def test_step_without_any_gradient_written_is_refused(flat):
    opt = fastadam.AdamW([np.ones(4)], lr=0.1, flat=flat)
    message = r"`grads` must be given, or gradients must be written into `opt.grads` before, got neither"
    refuses(opt.step, ValueError, message, opt)
    opt = fastadam.AdamW([np.ones(4)], lr=0.1, flat=flat)
    opt.step([np.ones(4)])
    opt.zero_grad()
    refuses(opt.step, ValueError, message)


@pytest.mark.parametrize("written", [lambda opt: opt.grads, lambda opt: opt.buffers.g], ids=["grads", "buffers.g"])
def test_step_with_gradients_that_may_have_been_written(written):
    opt, zeros = (fastadam.AdamW(np.ones(4), lr=0.1) for _ in range(2))
    written(opt)
    opt.step()
    zeros.step(np.zeros(4))
    assert_same_bits(pmv(opt), pmv(zeros))
    opt.add_param_group({"params": [np.ones(3)]})
    opt.step()


# --- gradients that lie in the optimizer's own memory: a step must read all of them as they were when it was called


def stepped_once(shapes, *, grouped, flat):
    """An optimizer that has taken a step, with gradients written for another one."""
    params = make(shapes)
    groups = [{"params": {name: array}} for name, array in params.items()] if grouped else params
    del params
    opt = fastadam.Adam(groups, lr=5.0, flat=flat)
    opt.step(make(shapes, 1))
    for name, view in opt.grads.items():
        view[...] = make(shapes, 2)[name]
    return opt


def step_with_aliases(shapes, aliases_of, **how):
    """(optimizer stepped with aliases, one stepped with copies of them): both must be the same."""
    optimizers = []
    for take in (dict, copies):
        opt = stepped_once(shapes, **how)
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
    "the moments": lambda opt: opt.buffers.views(opt.buffers.m),
    "the moments swapped": lambda opt: dict(
        zip(opt.params, reversed(opt.buffers.views(opt.buffers.m).values()), strict=True)
    ),
}


INSIDE_PARAMETERS = {
    "the parameters": lambda opt: opt.params,
    "the parameters swapped": lambda opt: dict(zip(opt.params, reversed(list(opt.params.values())), strict=True)),
    "one of the parameters": lambda opt: {**dict(opt.grads), "b": opt.params["b"]},
    "a view of a parameter": lambda opt: {**dict(opt.grads), "b": opt.params["a"][::-1]},
}
grouped = pytest.mark.parametrize("grouped", [False, True], ids=["one group", "two groups"])


@both
@sizes
@grouped
@pytest.mark.parametrize("aliases_of", ALIASES.values(), ids=ALIASES.keys())
def test_gradients_in_the_optimizers_own_memory_are_read_as_they_were(aliases_of, grouped, size, flat):
    aliased, copied = step_with_aliases({"a": (size,), "b": (size,)}, aliases_of, grouped=grouped, flat=flat)
    assert_same_bits(pmv(aliased), pmv(copied))


@both
@sizes
@grouped
@pytest.mark.parametrize("inside", INSIDE_PARAMETERS.values(), ids=INSIDE_PARAMETERS.keys())
def test_gradient_inside_of_a_parameter_is_refused(inside, grouped, size, flat):
    shapes = {"a": (size,), "b": (size,)}
    opt, other = (stepped_once(shapes, grouped=grouped, flat=flat) for _ in range(2))
    before, written = pmv(opt), bits(opt.grads)
    with pytest.raises(ValueError, match=r"`grads\['[ab]'\]` must not share memory with a parameter"):
        opt.step(inside(opt))
    assert_same_bits(pmv(opt), before)
    assert bits(opt.grads) == written
    for each in (opt, other):
        each.step(make(shapes, 3))
    assert_same_bits(pmv(opt), pmv(other))


@both
def test_large_gradient_over_the_place_where_a_small_one_is_gathered(flat):
    aliased, copied = step_with_aliases(
        {"small": (7,), "large": (LARGE,)},
        lambda opt: {"small": np.full(7, -50.0, np.float32), "large": opt.buffers.g[:LARGE]},
        grouped=False,
        flat=flat,
    )
    assert_same_bits(pmv(aliased), pmv(copied))


# --- gradients in a list, and on demand


@both
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_gradients_is_a_mapping_of_them(kind, flat):
    listed, named = (fastadam.Adam(make(SHAPES), **HYPER, flat=flat) for _ in range(2))
    for seed in (1, 2):
        grads = make(SHAPES, seed)
        listed.step(kind(grads.values()), grad_scale=0.5)
        named.step(grads, grad_scale=0.5)
    assert_same_bits(pmv(listed), pmv(named))


@both
def test_none_in_a_list_leaves_a_parameter_and_its_count_alone(flat):
    opt = fastadam.Adam(make({"a": 3, "b": 4}), flat=flat)
    before = copies(opt.params)
    for _ in range(2):
        opt.step([None, np.ones(4, np.float32)])
    np.testing.assert_array_equal(opt.params["a"], before["a"])
    assert [entry["step"] for entry in opt.state_dict()["state"].values()] == [0, 2]


@both
def test_lists_follow_the_order_of_groups(flat):
    opt = fastadam.Adam([{"params": make({"a": 3})}, {"params": [np.ones(2, np.float32)]}], lr=0.5, flat=flat)
    opt.add_param_group({"params": {"z": np.ones(1, np.float32)}})
    opt.step([np.ones(3, np.float32), np.ones(2, np.float32), np.ones(1, np.float32)])
    np.testing.assert_allclose(opt.params["z"], [0.5], rtol=1e-6)
    assert list(opt.params) == ["a", 0, "z"]


def test_gradient_views_are_made_once_and_anew_for_an_added_group():
    opt = fastadam.Adam(make({"a": 3}))
    views = opt.grads
    assert opt.grads is views
    opt.grads["a"] = 2.0
    opt.add_param_group({"params": make({"b": 2})})
    assert list(opt.grads) == ["a", "b"]
    np.testing.assert_array_equal(opt.grads["a"], [2.0, 2.0, 2.0])
    assert np.shares_memory(opt.grads["a"], views["a"])


# --- any set of shapes


@settings(max_examples=60, deadline=None, database=None)
@given(
    shapes=st.lists(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6), min_size=1, max_size=7),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 3),
    way=st.sampled_from(WAYS),
    decoupled=st.booleans(),
    flat=st.booleans(),
)
def test_any_shapes_round_trip_and_step_as_each_array_alone(shapes, dtype, seed, groups, way, decoupled, flat):
    shapes = dict(enumerate(shapes))
    original, grads = make(shapes, seed, dtype), make(shapes, seed + 1, dtype)
    parts = [
        {name: array for name, array in make(shapes, seed, dtype).items() if name % groups == part}
        for part in range(groups)
    ]
    given_groups = [{"params": part} for part in parts if part]
    opt = fastadam.Adam(given_groups, decoupled_weight_decay=decoupled, **HYPER, flat=flat)
    for name, array in original.items():
        np.testing.assert_array_equal(opt.params[name], array, strict=True)
    way(opt, grads)
    for part in parts:
        for name, view in part.items():
            p, m, v = original[name], np.zeros_like(view), np.zeros_like(view)
            flats = [array.reshape(-1) for array in (p, grads[name], m, v)]
            fastadam.adam_step(*flats, step=1, decoupled_weight_decay=decoupled, **HYPER)
            state = opt.state_dict()["state"][name]
            assert_same_bits((view, state["exp_avg"], state["exp_avg_sq"]), (p, m, v))
