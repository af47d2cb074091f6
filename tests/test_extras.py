"""What a step does on the way: clipping, average, 16-bit copy, zeroed gradients; and groups, all in one launch."""

import numpy as np
import pytest
from oracle import bits, memory, raw
from training import LARGE, SHAPES, both, copies, dtypes, make, sizes, ways

import fastadam
from fastadam.kernels import cpu

HYPER = {"lr": 0.25, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.05}  # lr: a power of two divides exactly
EXTRAS = {
    "clip_value": {"clip_value": 0.3},
    "ema": {"ema_decay": 0.9},
    "copy": {"copy_dtype": "float16"},
    "zero_grad": {"zero_grad": True},
    "decouple_lr": {"decouple_lr": True},
}
EXTRAS["all"] = {key: value for options in EXTRAS.values() for key, value in options.items()}
SMALL, WIDE = (5, np.float32), (LARGE + 5, np.float64)


def rounded(array, dtype):
    """`array` in 16 bits, by way of float32."""
    with np.errstate(over="ignore"):
        return np.array(array).astype(np.float32).astype(dtype)


def named(opt, flat):
    return bits({name: raw(opt, name)[flat] for name in opt.params})


# --- the same as around a plain step


@both
@pytest.mark.parametrize(
    ("name", "size", "dtype"), [(name, *SMALL) for name in EXTRAS] + [("clip_value", *WIDE), ("all", *WIDE)]
)
def test_extras_are_the_same_as_around_a_plain_step(name, size, dtype, flat):
    options, shapes = EXTRAS[name], {"w": size, "b": (2, 3), "c": ()}

    def built(**settings):
        first = make(shapes, dtype=dtype)
        second = {"params": {"b": first.pop("b")}, "lr": 0.5, "betas": (0.5, 0.75), "weight_decay": 0.125}
        return fastadam.AdamW([{"params": first}, second], **HYPER, **settings)

    opt, plain = built(flat=flat, **options), built()
    if "decouple_lr" in options:
        for group in plain.param_groups:
            group["weight_decay"] /= group["lr"]
    ema, most = copies(plain.params), dtype(options.get("clip_value", np.inf))
    for seed, scale in ((1, 1.0), (2, 0.3), (3, 1.0)):
        grads = make(shapes, seed, dtype)
        kept = copies(grads)
        opt.step(grads, grad_scale=scale)
        plain.step({key: np.asarray(np.clip(dtype(scale) * value, -most, most)) for key, value in kept.items()})
        for key, view in plain.params.items():
            ema[key] += dtype(1.0 - 0.9) * (view - ema[key])
        assert [named(opt, flat) for flat in "pmv"] == [named(plain, flat) for flat in "pmv"]
        if "ema_decay" in options:
            assert bits(opt.ema) == bits(ema)
        if "copy_dtype" in options:
            assert bits(opt.copies) == bits({key: rounded(view, np.float16) for key, view in plain.params.items()})
        zeros = {key: np.zeros_like(value) for key, value in kept.items()}
        assert bits(grads) == bits(zeros if "zero_grad" in options else kept)


@pytest.mark.parametrize(("size", "dtype"), [SMALL, WIDE], ids=["small", "large"])
def test_adam_step_has_all_but_the_copy(size, dtype):
    options = {key: value for key, value in EXTRAS["all"].items() if key != "copy_dtype"}
    opt = fastadam.AdamW(make({"w": size}, dtype=dtype), **HYPER, **EXTRAS["all"])
    flats = {"p": make({"w": size}, dtype=dtype)["w"], "m": np.zeros(size, dtype), "v": np.zeros(size, dtype)}
    flats["ema"] = flats["p"].copy()
    for step in (1, 2):
        g = make({"w": size}, step, dtype)
        opt.step(copies(g), grad_scale=0.3)
        numbers = {"step": step, "grad_scale": 0.3, "decoupled_weight_decay": True, **HYPER}
        fastadam.adam_step(g=g["w"], **flats, **numbers, **options)
        assert not g["w"].any()
    assert bits(flats) == bits({flat: raw(opt, "w")[flat] for flat in flats})


# --- the average


@dtypes
def test_average_starts_at_the_parameters_and_is_resumed(dtype):
    straight = fastadam.Adam(make(SHAPES, dtype=dtype), ema_decay=0.75)
    assert list(straight.ema) == list(SHAPES)
    assert bits(straight.ema) == bits(straight.params)
    for seed in (1, 2):
        straight.step(make(SHAPES, seed, dtype))
    saved = straight.state_dict()
    assert bits({name: entry["ema"] for name, entry in saved["state"].items()}) == bits(straight.ema)
    resumed = fastadam.Adam(copies(straight.params), ema_decay=0.75)
    resumed.load_state_dict(saved)
    for opt in (straight, resumed):
        opt.step(make(SHAPES, 3, dtype))
    assert memory(resumed) == memory(straight)
    without = {name: {key: entry[key] for key in entry if key != "ema"} for name, entry in saved["state"].items()}
    with pytest.raises(ValueError, match=r"must have the keys 'step', 'exp_avg', 'exp_avg_sq', 'ema', got"):
        resumed.load_state_dict({**saved, "state": without})


@both
def test_an_average_is_begun_anew_and_forgets_the_first_parameters_soon(flat):
    opt = fastadam.Adam(make(SHAPES), ema_decay=0.99, ema_warmup=True, flat=flat)
    expected = {name: p.astype(np.float64) for name, p in opt.params.items()}
    for step in range(1, 6):
        opt.step(make(SHAPES, step))
        if step == 3:
            for p in opt.params.values():
                p += 1
            opt.restart_ema()
            expected = {name: p.astype(np.float64) for name, p in opt.params.items()}
            assert bits(opt.ema) == bits(opt.params)
        else:
            decay = min(0.99, (1 + step) / (10 + step))
            expected = {name: decay * expected[name] + (1 - decay) * p for name, p in opt.params.items()}
        for name, average in opt.ema.items():
            np.testing.assert_allclose(average, expected[name], rtol=1e-5, atol=1e-6)


def test_average_does_not_depend_on_when_it_is_first_read():
    read, not_read = (fastadam.Adam(make(SHAPES), ema_decay=0.75) for _ in range(2))
    assert list(read.ema) == list(SHAPES)
    for opt in (read, not_read):
        opt.params["w"] = 3.0
        opt.step(make(SHAPES, 1))
    assert bits(read.ema) == bits(not_read.ema)


@pytest.mark.parametrize(("name", "option"), [("ema", "ema_decay"), ("copies", "copy_dtype")])
def test_what_is_not_kept_is_no_attribute(name, option):
    with pytest.raises(AttributeError, match=f"`{name}` needs `{option}`"):
        getattr(fastadam.Adam(np.ones(3)), name)


# --- the 16-bit copy

SPECIAL = [0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11 - 2**-23, 65504, 65519]
SPECIAL += [65520, -1e6, 3.3895e38, 2.0**-14, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 6e-8, np.inf, -np.inf, np.nan]
# In float64 these are beyond float32, or just beside the middle of two float16 or bfloat16 values.
SPECIAL64 = [1e39, -1e300, 1e-50, 1 + 2**-11 + 2**-40, 1 + 2**-8 + 2**-40]


@dtypes
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_copies_are_the_parameters_rounded_to_nearest_even(kind, dtype):
    low = np.dtype(np.float16 if kind == "float16" else pytest.importorskip("ml_dtypes").bfloat16)
    special = np.array(SPECIAL + (SPECIAL64 if dtype == np.float64 else []), dtype)
    params = {"special": special.copy(), **make({"w": (30, 40), "b": ()}, dtype=dtype)}
    opt = fastadam.Adam(params, lr=0.1, copy_dtype=kind)
    for step in range(3):
        for name, view in params.items():
            copy, expected = opt.copies[name], rounded(view, low)
            assert (copy.dtype, copy.shape) == (low, view.shape)
            np.testing.assert_array_equal(copy.astype(np.float32), expected.astype(np.float32), err_msg=name)
            np.testing.assert_array_equal(np.signbit(copy[~np.isnan(view)]), np.signbit(expected[~np.isnan(view)]))
        # The special ones stay what they are, with a gradient of zero.
        opt.step({"special": np.zeros_like(special), **make({"w": (30, 40), "b": ()}, step, dtype)})
    np.testing.assert_array_equal(params["special"], special)


# --- gradients are zeroed, or only read


def layouts():
    """Shapes and gradients of every layout: copied, and read where they lie."""
    shapes = {"small": (3, 4), "scalar": (), "large": (2, LARGE), "transposed": (LARGE, 2), "strided": 7}
    grads = make(shapes, 1)
    grads["transposed"] = np.asfortranarray(grads["transposed"])
    grads["strided"] = np.repeat(grads["strided"], 2)[::2]
    return shapes, grads


@both
def test_gradients_of_a_mapping_are_zeroed_where_they_lie(flat):
    shapes, grads = layouts()
    opt, plain = fastadam.Adam(make(shapes), zero_grad=True, flat=flat), fastadam.Adam(make(shapes))
    plain.step(copies(grads))
    between = grads["strided"].base[1::2].copy()
    opt.step(grads)
    assert not any(gradient.any() for gradient in grads.values())
    np.testing.assert_array_equal(grads["strided"].base[1::2], between)
    assert memory(opt) == memory(plain)


def test_torch_gradients_are_zeroed():
    torch = pytest.importorskip("torch")
    tensors = {"w": torch.ones(3, 2), "large": torch.ones(LARGE)}
    opt = fastadam.Adam({"w": np.ones((3, 2), np.float32), "large": np.ones(LARGE, np.float32)}, zero_grad=True)
    opt.step(tensors)
    assert not any(tensor.any() for tensor in tensors.values())


@both
@sizes
def test_written_and_flat_gradients_are_zeroed(size, flat):
    shapes = {"w": size, "b": (2, 3)}
    written, whole, plain = (fastadam.Adam(make(shapes), zero_grad=zeroed, flat=flat) for zeroed in (True, True, False))
    gradient = np.zeros(whole.buffers.size, np.float32)
    for seed in (1, 2):
        grads = make(shapes, seed)
        plain.step(grads)
        for name in shapes:
            written.grads[name] += grads[name]  # the last ones are gone
            whole.buffers.views(gradient)[name][...] = grads[name]
        written.step()
        whole.step(gradient)
        assert not written.buffers.g.any()
        assert not gradient.any()
    assert memory(written) == memory(whole) == memory(plain)


@both
@sizes
@pytest.mark.parametrize("take", ["one for all", "swapped", "own"])
def test_gradients_that_share_memory_are_read_before_they_are_zeroed(take, size, flat):
    shapes = {"a": size, "b": size}
    opt, plain = fastadam.Adam(make(shapes), zero_grad=True, flat=flat), fastadam.Adam(make(shapes))
    for name, gradient in make(shapes, 1).items():
        opt.grads[name] = gradient
    grads = dict.fromkeys(shapes, make(shapes, 1)["a"])
    if take != "one for all":
        grads = dict(opt.grads) if take == "own" else {"a": opt.grads["b"], "b": opt.grads["a"]}
    plain.step(copies(grads))
    opt.step(grads)
    assert memory(opt) == memory(plain)
    assert not any(gradient.any() for gradient in grads.values())


@ways
def test_without_zero_grad_gradients_are_only_read(way):
    shapes, grads = layouts()
    kept = copies(grads)
    way(fastadam.AdamW(make(shapes), clip_value=0.1), grads, grad_scale=0.5)
    assert bits(grads) == bits(kept)


CANNOT_BE_ZEROED = {"b": np.float32(1.0), "small": np.ones(3, np.float32), "large": np.ones(LARGE, np.float32)}
CANNOT_BE_ZEROED["small"].flags.writeable = CANNOT_BE_ZEROED["large"].flags.writeable = False


@pytest.mark.parametrize("name", CANNOT_BE_ZEROED)
def test_gradient_that_cannot_be_zeroed(name):
    shapes = {"first": LARGE, "other": 5, "b": (), "small": 3, "large": LARGE}
    opt = fastadam.Adam(make(shapes), zero_grad=True)
    opt.add_param_group({"params": make({"last": 3})})
    grads = make({**shapes, "last": 3}, 1)
    kept, before = bits(grads), memory(opt)
    with pytest.raises(ValueError, match=rf"`grads\['{name}'\]` must be a writable array with `zero_grad`, got a read"):
        opt.step({**grads, name: CANNOT_BE_ZEROED[name]})
    assert (bits(grads), memory(opt)) == (kept, before)
    opt.step(grads)
    flat = fastadam.Adam(np.ones(3, np.float32), zero_grad=True)
    with pytest.raises(ValueError, match="`grads` must be writable"):
        flat.step(CANNOT_BE_ZEROED["small"])
    assert not flat.buffers.m.any()


# --- groups


@both
def test_twenty_groups_are_one_launch_and_equal_separate_optimizers(flat, monkeypatch):
    passes, launcher = [], cpu.launcher

    def counted(given, tables, **options):
        passes.append(len(given))
        return launcher(given, tables, **options)

    monkeypatch.setattr(cpu, "launcher", counted)
    shapes = {f"p{index}": 7 * index + 1 for index in range(20)}
    own = [{"lr": 1e-3 * k, "betas": (0.9 - 0.01 * k, 0.99), "weight_decay": 0.01 * k} for k in range(20)]
    arrays = make(shapes)
    opt = fastadam.AdamW(
        [{"params": {name: arrays.pop(name)}, **k} for name, k in zip(shapes, own, strict=True)], flat=flat
    )
    alone = [fastadam.AdamW({name: array}, **k) for k, (name, array) in zip(own, make(shapes).items(), strict=True)]
    for seed in (1, 2, 3):
        opt.step(make(shapes, seed))
    assert passes == [1]
    for seed in (1, 2, 3):
        for other in alone:
            other.step({name: make(shapes, seed)[name] for name in other.params})
    assert bits(opt.params) == {name: view for other in alone for name, view in bits(other.params).items()}
    opt.param_groups[3]["amsgrad"] = True
    passes.clear()
    opt.step(make(shapes, 4))
    assert passes == [2]


@both
def test_parameters_excluded_from_weight_decay_are_stepped_as_groups_by_hand(flat):
    shapes = {"w": (3, 4), "w.bias": 4, "k.bias": 2}
    w, w_bias, k_bias = ({name: array} for name, array in make(shapes).items())
    groups = [{"params": w, "lr": 0.5, "label": "head"}, {"params": w_bias, "lr": 0.5, "label": "head"}]
    by_hand = fastadam.AdamW([*groups, {"params": k_bias}], lr=0.25, weight_decay=0.1)
    for group in by_hand.param_groups[1:]:
        group["weight_decay"] = 0.0
    params = make(shapes)
    first = {name: params.pop(name) for name in ("w", "w.bias")}
    given = [{"params": first, "lr": 0.5, "label": "head"}, {"params": params, "weight_decay": 3.0}]
    options = {"exclude_from_weight_decay": lambda name: name.endswith("bias"), "flat": flat}
    opt = fastadam.AdamW(given, lr=0.25, weight_decay=0.1, **options)
    found = [(group["params"], group["lr"], group["weight_decay"], group.get("label")) for group in opt.param_groups]
    assert found == [(("w", "w.bias"), 0.5, 0.1, "head"), (("k.bias",), 0.25, 3.0, None)]
    for seed in (1, 2):
        for one in (opt, by_hand):
            one.step(make(shapes, seed))
    assert bits(opt.params) == bits(by_hand.params)
    assert np.shares_memory(first["w"], opt.params["w"])
    # Nor is it applied when it is assigned, or is L2.
    opt.param_groups[0].update({"weight_decay": 0.7, "decoupled_weight_decay": False})
    by_hand.param_groups[0].update({"weight_decay": 0.7, "decoupled_weight_decay": False})
    by_hand.param_groups[1]["decoupled_weight_decay"] = False
    for one in (opt, by_hand):
        one.step(make(shapes, 3))
    assert bits(opt.params) == bits(by_hand.params)


@both
def test_setting_a_group_is_one_assignment_whatever_is_stepped_apart_in_it(flat):
    """Small parameters beside codes, and those without weight decay, are in the user's one group."""
    shapes = {"large": (65, 70), "large.bias": 5000, "b": 3, "b.bias": 7}
    options = {"moment_dtype": "float8", "exclude_from_weight_decay": lambda name: name.endswith("bias"), "seed": 3}
    opt = fastadam.AdamW(make(shapes), weight_decay=0.5, flat=flat, **options)
    each = [{"params": {name: array}} for name, array in make(shapes).items()]
    by_hand = fastadam.AdamW(each, weight_decay=0.5, **options)
    assert [group["params"] for group in opt.param_groups] == [tuple(shapes)]
    for step in range(4):
        settings = {"lr": 0.1 / (step + 1), "weight_decay": 0.1 * step, "betas": (0.8, 0.9 + 0.01 * step)}
        for one in (opt, by_hand):
            for group in one.param_groups:
                group["lr"] = settings["lr"]
                group.update(settings)
            one.step(make(shapes, step))
    assert memory(opt) == memory(by_hand)


def test_exclusion_that_matches_nothing():
    params = make({"w": 3, "b": 2})
    kept = dict(params)
    with pytest.raises(ValueError, match=r"`exclude_from_weight_decay` must be true .* got none of \['w', 'b'\]"):
        fastadam.Adam(params, exclude_from_weight_decay=lambda name: "bias" in name)
    assert all(params[name] is array for name, array in kept.items())


@pytest.mark.parametrize("way", ["groups", "added"])
def test_zeroed_gradient_of_two_parameters_in_buffers_of_their_own(way):
    first, second, gradient = np.ones(LARGE, np.float32), np.ones(LARGE, np.float32), np.ones(LARGE, np.float32)
    opt = fastadam.Adam([{"params": first}, {"params": second}], zero_grad=True)
    if way == "added":
        opt = fastadam.Adam(first, zero_grad=True)
        opt.add_param_group({"params": second})
    opt.step({0: gradient, 1: gradient})
    np.testing.assert_array_equal(first, second)
    assert not gradient.any()


def test_gaps_stay_zero_when_eps_becomes_zero():
    opt = fastadam.Adam({"a": np.ones(3, np.float32), "b": np.ones(5, np.float32)}, ema_decay=0.9, flat=True)
    opt.step({"a": np.ones(3, np.float32), "b": np.ones(5, np.float32)})
    opt.param_groups[0]["eps"] = 0.0
    opt.step({"a": np.ones(3, np.float32), "b": np.ones(5, np.float32)})
    assert not opt.buffers.p[3:16].any()
    assert not opt.buffers.ema[3:16].any()


def test_copies_follow_the_parameters_when_a_state_is_loaded():
    params = {"w": np.ones(3, np.float32)}
    opt = fastadam.Adam(params, copy_dtype="float16")
    params["w"][...] = 7.0
    opt.load_state_dict(opt.state_dict())
    np.testing.assert_array_equal(opt.copies["w"], 7.0)


@pytest.mark.parametrize("key", ["max_grad_norm", "ema_decay", "zero_grad", "convention"])
def test_options_of_the_optimizer_are_no_keys_of_a_group(key):
    message = f"`{key}` must be given to the optimizer, not to a group"
    with pytest.raises(TypeError, match=message):
        fastadam.Adam([{"params": {"w": np.ones(3)}, key: 1.0}])
    with pytest.raises(TypeError, match=message):
        fastadam.Adam(np.ones(3)).param_groups[0][key] = 1.0
