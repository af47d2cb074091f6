"""`nonfinite`: what a gradient that is not finite does, wherever it is and however it is handed over."""

import numpy as np
import pytest
import systems
from oracle import bits, memory
from training import HYPER, LARGE, copies, dtypes, make, ways

import fastadam

SHAPES = {"w": (2, 3), "b": (), "large": (2, LARGE // 2 + 3), "none": (0, 2), "k": 4}
VALUES = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "1e30": 1e30, "-1e30": -1e30}
values = pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
EVERYTHING = {"amsgrad": True, "ema_decay": 0.5, "copy_dtype": "float16"}
FIRST_OF_LARGE, LAST_OF_LARGE = (0, 0), (1, LARGE // 2 + 2)
POSITIONS = [(name, index) for name in ("w", "b", "k") for index in np.ndindex(np.empty(SHAPES[name]).shape)]
POSITIONS += [("large", FIRST_OF_LARGE), ("large", (0, LARGE // 4)), ("large", LAST_OF_LARGE)]


def spoiled(position, value, seed=7, dtype=np.float32):
    grads = make(SHAPES, seed, dtype)
    grads[position[0]][position[1]] = value
    return grads


def built(kind=fastadam.AdamW, dtype=np.float32, **options):
    """Two groups in one set of buffers."""
    params = make(SHAPES, dtype=dtype)
    second = {name: params.pop(name) for name in ("none", "k")}
    return kind([{"params": params}, {"params": second, "lr": 0.5}], **HYPER, **options)


# --- skip


@ways
@values
def test_skipped_step_leaves_everything_as_it_was(value, way):
    opt, clean = (built(nonfinite=policy, **EVERYTHING) for policy in ("skip", "propagate"))
    for seed in (1, 2):
        way(opt, make(SHAPES, seed))
        clean.step(make(SHAPES, seed))
    before = memory(opt)
    assert before == memory(clean)
    for count, position in enumerate(POSITIONS, 1):
        grads = spoiled(position, value)
        kept = bits(grads)
        way(opt, grads)
        assert memory(opt) == before, position
        assert bits(grads) == kept
        assert opt.skipped_steps == count
        assert not opt.grad_norm < 1e29
    for seed in (3, 4):
        way(opt, make(SHAPES, seed))
        clean.step(make(SHAPES, seed))
    assert memory(opt) == memory(clean)
    assert opt.skipped_steps == len(POSITIONS)
    assert clean.skipped_steps == 0


@pytest.mark.parametrize("position", [("w", (1, 2)), ("large", LAST_OF_LARGE)], ids=["small", "large"])
def test_skipped_step_zeroes_gradients_all_the_same(position):
    opt, clean = (built(nonfinite=policy, zero_grad=True, **EVERYTHING) for policy in ("skip", "propagate"))
    flat = np.zeros(opt.buffers.size, np.float32)
    for name, view in opt.buffers.views(flat).items():
        view[...] = spoiled(position, np.nan)[name]
    mapping = spoiled(position, np.inf)
    before = memory(opt)
    opt.step(flat)
    opt.step(mapping)
    for name, gradient in spoiled(position, -np.inf).items():
        opt.grads[name] = gradient
    opt.step()
    assert memory(opt) == before
    assert opt.skipped_steps == 3
    assert not flat.any()
    assert not opt.buffers.g.any()
    assert not any(gradient.any() for gradient in mapping.values())
    for name, gradient in make(SHAPES, 1).items():
        opt.grads[name] += gradient
    opt.step()
    clean.step(make(SHAPES, 1))
    assert memory(opt) == memory(clean)


@pytest.mark.parametrize("kind", [fastadam.NAdam, fastadam.Adamax, fastadam.RAdam, fastadam.Lion, fastadam.AdEMAMix])
def test_every_member_skips(kind):
    opt, clean = (kind(make({"w": 5}), nonfinite=policy) for policy in ("skip", "propagate"))
    opt.step({"w": np.full(5, np.nan, np.float32)})
    for seed in (1, 2):
        for one in (opt, clean):
            one.step(make({"w": 5}, seed))
        opt.step({"w": np.full(5, np.inf, np.float32)})
    assert memory(opt) == memory(clean)
    assert opt.skipped_steps == 3


def test_one_gradient_stops_the_step_of_all_buffers():
    params, flat = make({"w": (2, 3)}), np.ones(LARGE, np.float64)
    opt = fastadam.Adam([{"params": params}, {"params": flat}], nonfinite="skip", max_grad_norm=1.0)
    opt.add_param_group({"params": {"added": np.ones(3, np.float32)}})
    before = memory(opt)
    for name in opt.params:
        grads = {key: np.ones_like(view) for key, view in opt.params.items()}
        grads[name][-1] = np.nan
        opt.step(grads)
        assert memory(opt) == before
    assert opt.skipped_steps == 3
    opt.add_param_group({"params": {"last": np.ones(3)}})
    assert opt.skipped_steps == 3


def test_counts_of_skipped_steps_are_resumed():
    opt = built(nonfinite="skip")
    for seed in (1, 2, 3):
        opt.step(spoiled(("b", ()), np.nan) if seed == 2 else make(SHAPES, seed))
    saved = opt.state_dict()
    assert {(entry["step"], entry["skipped"]) for entry in saved["state"].values()} == {(2, 1)}
    resumed = built(nonfinite="skip")
    for name, view in resumed.params.items():
        view[...] = opt.params[name]
    resumed.load_state_dict(saved)
    for one in (opt, resumed):
        one.step(spoiled(("b", ()), np.nan))
        one.step(make(SHAPES, 4))
        assert one.skipped_steps == 2
    assert memory(opt) == memory(resumed)
    assert resumed.state_dict()["state"]["w"]["skipped"] == 2


# --- raise


@ways
@values
def test_error_names_the_parameter_and_writes_nothing(value, way):
    opt, clean = built(nonfinite="raise"), built()
    way(opt, make(SHAPES, 1))
    before = memory(opt)
    for name, index in [("w", (1, 2)), ("b", ()), ("large", LAST_OF_LARGE), ("k", (0,))]:
        grads = spoiled((name, index), value)
        kept = bits(grads)
        place = f"{name!r} must be finite, got {value} at index {index}; nothing was written"
        with pytest.raises(FloatingPointError) as raised:
            way(opt, grads)
        if np.isfinite(value):
            assert (
                f"squares of the gradients must not overflow, got {float(np.float32(1e30))} in that of {name!r}"
                in str(raised.value)
            )
        else:
            assert str(raised.value) == f"the gradient of {place}"
        assert memory(opt) == before
        assert bits(grads) == kept
        assert opt.skipped_steps == 0
    way(opt, make(SHAPES, 2))
    for seed in (1, 2):
        clean.step(make(SHAPES, seed))
    assert memory(opt) == memory(clean)


def test_error_zeroes_no_gradient():
    opt = built(nonfinite="raise", zero_grad=True)
    grads = spoiled(("k", 2), np.nan)
    kept = bits(grads)
    with pytest.raises(FloatingPointError, match=r"'k' .* nan at index \(2,\)"):
        opt.step(grads)
    assert bits(grads) == kept


# --- propagate


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("most", [None, 0.5], ids=["plain", "clipped"])
def test_propagated_as_in_torch(most, value):
    torch = pytest.importorskip("torch")
    shapes = {"w": (2, 3), "b": (), "k": 4}
    params, grads = make(shapes), [make(shapes, seed) for seed in (1, 2, 3)]
    grads[1]["w"][0, 1] = value
    opt = fastadam.AdamW(copies(params), **HYPER, max_grad_norm=most)
    norms = []
    for step in grads:
        opt.step(copies(step))
        norms.append(opt.grad_norm)
        if most:
            tensors = [torch.nn.Parameter(torch.tensor(gradient)) for gradient in step.values()]
            for tensor, gradient in zip(tensors, step.values(), strict=True):
                tensor.grad = torch.tensor(gradient)
            torch.nn.utils.clip_grad_norm_(tensors, most)
            step.update(zip(step, (tensor.grad.numpy() for tensor in tensors), strict=True))
    for name, theirs in systems.run_torch("AdamW", params, grads, **HYPER).items():
        np.testing.assert_allclose(opt.params[name], theirs, rtol=1e-5, err_msg=name)
    assert np.isnan(opt.params["w"]).any()
    if most:
        np.testing.assert_equal(norms[1], abs(value))
    assert opt.skipped_steps == 0


# --- large gradients


@dtypes
def test_large_gradients_are_saved_by_clipping(dtype):
    large = 1e30 if dtype == np.float32 else 1e150
    for policy in ("skip", "raise"):
        opt, scaled = built(dtype=dtype, nonfinite=policy, max_grad_norm=1.0), built(dtype=dtype)
        grads = spoiled(("w", (0, 1)), large, dtype=dtype)
        opt.step(grads)
        scaled.step(grads, grad_scale=1.0 / (opt.grad_norm + 1e-6))
        assert opt.grad_norm == pytest.approx(large, rel=1e-6)
        assert memory(opt) == memory(scaled)
        assert all(np.isfinite(view).all() for view in opt.params.values())
        assert opt.skipped_steps == 0


def test_large_gradients_are_saved_by_a_small_scale_or_by_clipping_each_element():
    for options, scale in (({}, 1e-30), ({"clip_value": 1.0}, 1.0)):
        opt = fastadam.Adam(np.ones(3, np.float32), nonfinite="raise", **options)
        opt.step(np.full(3, 1e30, np.float32), grad_scale=scale)
        np.testing.assert_allclose(opt.buffers.m, 0.1, rtol=1e-6)
        for value in (np.nan, np.inf):
            with pytest.raises(FloatingPointError):
                opt.step(np.full(3, value, np.float32), grad_scale=0.0)


def test_norm_that_overflows_float64_cannot_be_clipped():
    opt = fastadam.Adam(np.ones(3), nonfinite="skip", max_grad_norm=1.0)
    opt.step(np.full(3, 1e200))
    assert opt.skipped_steps == 1
    np.testing.assert_array_equal(opt.buffers.p, 1.0)


# --- steps skipped in a row


def nan_like(grads):
    return {name: np.full_like(each, np.nan) for name, each in grads.items()}


def test_many_skipped_steps_in_a_row_are_said():
    opt, bad = fastadam.Adam(make({"w": 3}), nonfinite="skip"), nan_like(make({"w": 3}))
    for _ in range(99):
        opt.step(bad)
    with pytest.warns(
        RuntimeWarning, match="100 steps in a row were skipped because of gradients that are not"
    ) as found:
        opt.step(bad)
    assert found[0].filename == __file__
    for _ in range(99):
        opt.step(bad)
    opt.step(make({"w": 3}))  # now they are no longer in a row
    for _ in range(99):
        opt.step(bad)
    assert opt.skipped_steps == 298


@pytest.mark.parametrize("most", [0, 3])
def test_more_skipped_steps_than_are_allowed_raise(most):
    opt, grads = fastadam.Adam(make({"w": 3}), nonfinite="skip", max_skipped_steps=most), make({"w": 3})
    for _ in range(2):
        for _ in range(most):
            opt.step(nan_like(grads))
        before, skipped = memory(opt), opt.skipped_steps
        for _ in range(2):
            with pytest.raises(
                FloatingPointError,
                match=rf"'w' must be finite, got nan at index \(0,\); nothing was written; {most} steps in a row",
            ):
                opt.step(nan_like(grads))
        assert memory(opt) == before
        assert opt.skipped_steps == skipped
        opt.step(grads)
    assert opt.state_dict()["state"]["w"]["step"] == 2


def test_a_loaded_state_begins_a_new_row_of_skipped_steps():
    opt, grads = fastadam.Adam(make({"w": 3}), nonfinite="skip", max_skipped_steps=1), make({"w": 3})
    opt.step(grads)
    opt.step(nan_like(grads))
    opt.load_state_dict(opt.state_dict())
    opt.step(nan_like(grads))
    with pytest.raises(FloatingPointError):
        opt.step(nan_like(grads))
