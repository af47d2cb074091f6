"""`fastadam.Adam` and `AdamW`: hyperparameters and groups, what a step refuses, and the rest of the surface."""

import copy
import pickle

import numpy as np
import pytest
from oracle import assert_same_bits, exact_adam
from training import HYPER, LARGE, SHAPES, both, copies, dtypes, make, pmv, sizes, ways

import fastadam
from fastadam.kernels.cpu.driver import driver
from fastadam.kernels.cpu.launch import leaves_of

# --- hyperparameters


@both
@sizes
@ways
def test_groups_equal_separate_optimizers(size, way, flat):
    shapes = {"a": size, "b": (3, 3), "c": (), "d": 11}
    overrides = {
        "a": {"lr": 0.1, "weight_decay": 0.0},
        "b": {"betas": (0.5, 0.6), "maximize": True},
        "c": {"eps": 1e-2, "decoupled_weight_decay": True},
        "d": {},
    }
    groups = [{"params": {name: array}, **overrides[name]} for name, array in make(shapes).items()]
    opt = fastadam.Adam(groups, **HYPER, flat=flat)
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


@both
def test_added_group_has_its_own_step_count_settings_and_memory(flat):
    first, second = make({"a": (3, 2)}), make({"b": 5}, 1)
    alone = [fastadam.Adam(copies(first), **HYPER), fastadam.Adam(copies(second), **(HYPER | {"lr": 0.5}))]
    opt = fastadam.Adam(first, **HYPER, flat=flat)
    view, gradient_view, m = first["a"], opt.grads["a"], opt.buffers.m
    opt.step({"a": np.ones((3, 2), np.float32)})
    opt.add_param_group({"params": second, "lr": 0.5})
    grads = make({"a": (3, 2), "b": 5}, 2)
    opt.step(grads)
    alone[0].step({"a": np.ones((3, 2), np.float32)})
    alone[0].step({"a": grads["a"]})
    alone[1].step({"b": grads["b"]})

    assert first["a"] is view
    np.testing.assert_array_equal(first["a"], alone[0].params["a"])
    np.testing.assert_array_equal(second["b"], alone[1].params["b"])
    assert [entry["step"] for entry in opt.state_dict()["state"].values()] == [2, 1]
    assert opt.all_buffers[0].m is m
    assert not flat or np.shares_memory(view, opt.all_buffers[0].p)
    assert len(opt.all_buffers) == 2
    opt.grads["a"] = 3.0
    np.testing.assert_array_equal(gradient_view, np.full((3, 2), 3.0))


@both
def test_added_groups_train_by_written_gradients_too(flat):
    params, added, adopted = make({"a": 3}), [np.ones(2, np.float32)], np.ones(4)
    opt = fastadam.Adam(params, lr=0.5, flat=flat)
    opt.grads["a"] = 1.0
    opt.add_param_group({"params": added})
    opt.add_param_group({"params": adopted, "lr": 0.25})
    assert list(opt.params) == list(opt.grads) == ["a", 0, 1]
    assert len(opt.param_groups) == 3
    opt.grads[0], opt.grads[1] = 1.0, 1.0
    opt.step()
    np.testing.assert_allclose(params["a"], make({"a": 3})["a"] - 0.5, rtol=1e-5)
    np.testing.assert_allclose(added[0], [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(adopted, np.full(4, 0.75), rtol=1e-6)


def compiled():
    """How many update texts and drivers have been compiled."""
    return leaves_of.cache_info().currsize, driver.cache_info().currsize


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
    before = compiled()
    opt.param_groups[0][key] = number
    other.param_groups[0][key] = float(number)
    opt.step(grads)
    assert compiled() == before
    other.step(grads)
    assert_same_bits(pmv(opt), pmv(other))
    assert opt.param_groups[0][key] == float(number)


@pytest.mark.parametrize("number", [*NUMBERS, np.float32(1.0), np.array(1.0, np.float32)], ids=repr)
def test_gradient_scale_of_any_number_type_compiles_nothing(number):
    opt, other = (fastadam.Adam(np.ones(5, np.float32), **HYPER) for _ in range(2))
    gradient = make({"g": 5}, 1)["g"]
    other.step(gradient, grad_scale=float(number))
    before = compiled()
    opt.step(gradient, grad_scale=number)
    assert compiled() == before
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


@both
@ways
@dtypes
@pytest.mark.parametrize("exponent", [-16, -1, 0, 3])
def test_gradient_scale_of_a_power_of_two_is_a_scaled_gradient(exponent, dtype, way, flat):
    shapes = {"w": (4, 3), "large": LARGE}
    scaled, plain = (fastadam.Adam(make(shapes, dtype=dtype), **HYPER, flat=flat) for _ in range(2))
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
@pytest.mark.parametrize("gradient", ["mapping", "list", "flat", "written"])
@both
def test_step_after_an_entry_was_replaced_raises_and_writes_nothing(key, spoil, gradient, flat):
    params = make({"a": 3, "b": 4})
    if key == 1:
        params = list(params.values())
    opt = fastadam.Adam(params, flat=flat)
    opt.step({name: np.ones_like(view) for name, view in opt.params.items()})
    before = pmv(opt)
    opt.grads[key] = 1.0
    mapping = {name: np.full_like(view, 2.0) for name, view in opt.params.items()}
    given = {"mapping": mapping, "list": list(mapping.values()), "flat": np.ones(opt.buffers.size, np.float32)}
    grads = given.get(gradient)
    kept = params.copy()
    spoil(params, key)
    with pytest.raises(ValueError, match=rf"`params\[{key!r}\]` must stay the array that this optimizer trains"):
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
    first = fastadam.Adam(params)
    with pytest.warns(UserWarning, match=r"`params\['a'\]`: the array is still held elsewhere"):
        second = fastadam.Adam(params, flat=True)
    with pytest.raises(ValueError, match=r"`params\['a'\]`"):
        first.step({"a": np.ones(3, np.float32)})
    second.step({"a": np.ones(3, np.float32)})


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("kind", [fastadam.Adam, fastadam.AdamW])
def test_optimizer_cannot_be_copied(kind, duplicate):
    with pytest.raises(TypeError, match=rf"{kind.__name__} must not be copied or pickled.*state_dict"):
        duplicate(kind(np.ones(3)))


# --- the rest of the surface


@both
@pytest.mark.parametrize("used_before", [False, True])
def test_zero_grad_fills_every_gradient_in_place(used_before, flat):
    opt = fastadam.Adam(make(SHAPES), flat=flat)
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
            opt.step(make({"w": opt.buffers.size}, seed))
    for opt in alone:
        for seed in range(3):
            opt.step(make({"w": opt.buffers.size}, seed))
    for left, right in zip(together, alone, strict=True):
        assert_same_bits(pmv(left), pmv(right))
