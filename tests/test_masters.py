"""`master_weights`: bfloat16 parameters that, with what they lack, are float32 parameters to the last bit."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from oracle import bits, raw
from training import LARGE, both, copies, make

import fastadam

SHAPES = {"w": (3, 5), "b": (), "none": (0, 4), "k": (33, 31)}
WIDE = {"w": (LARGE + 77,), "b": ()}
MEMBERS = ("Adam", "AdamW", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix")


def pair(member="AdamW", shapes=SHAPES, **options):
    """With masters, and of float32 parameters that are the same."""
    params = make(shapes, dtype=bfloat16)
    whole = wide(params)
    kind, options = getattr(fastadam, member), {"lr": 1e-3, "weight_decay": 0.05, **options}
    return kind(params, master_weights=True, **options), kind(whole, **options)


def wide(arrays):
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def run(opts, shapes, seeds):
    """Steps of all `opts` with the same gradients, which are bfloat16."""
    for seed in seeds:
        for opt in opts:
            grads = make(shapes, seed, bfloat16)
            opt.step(grads if opt.all_buffers[0].dtype("g") == bfloat16 else wide(grads))


def assert_same(split, whole):
    assert bits(split.masters) == bits(whole.params)
    for name in split.params:
        one, other = raw(split, name), raw(whole, name)
        for flat in one.keys() - {"p", "remainder"}:
            assert one[flat].tobytes() == other[flat].tobytes(), flat


@both
@pytest.mark.parametrize("member", MEMBERS)
def test_300_steps_are_those_of_float32(member, flat):
    split, whole = pair(member, flat=flat)
    for seed in range(300):
        run((split, whole), SHAPES, [seed])
        assert bits(split.masters) == bits(whole.params)
    assert_same(split, whole)
    assert_nearest(split)


def test_steps_on_all_threads_are_those_of_float32():
    split, whole = pair(shapes=WIDE)
    run((split, whole), WIDE, range(10))
    assert_same(split, whole)
    assert_nearest(split)


def test_average_and_amsgrad_are_those_of_float32():
    split, whole = pair(ema_decay=0.9, amsgrad=True, max_grad_norm=1.0)
    run((split, whole), SHAPES, range(20))
    assert_same(split, whole)
    assert bits(split.ema) == bits(whole.ema)
    assert split.grad_norm == whole.grad_norm


@pytest.mark.parametrize("moment_dtype", ["bfloat16", "float8", ("bfloat16", "float8")], ids=str)
def test_moments_are_rounded_as_those_of_float32(moment_dtype):
    split, whole = pair(shapes=WIDE, moment_dtype=moment_dtype, seed=3)
    run((split, whole), WIDE, range(10))
    assert bits(split.masters) == bits(whole.params)
    for one, other in zip(split.all_buffers, whole.all_buffers, strict=True):
        moments = [flat for flat in one.flats if flat[0] in "mv"]
        assert bits({flat: one.flats[flat] for flat in moments}) == bits({flat: other.flats[flat] for flat in moments})


def test_resumed_run_is_that_of_float32():
    split, whole = pair(ema_decay=0.9)
    run((split, whole), SHAPES, range(20))
    params, saved = copies(split.params), split.state_dict()
    assert {entry["remainder"].dtype for entry in saved["state"].values()} == {np.dtype(np.uint16)}
    resumed, _ = pair(ema_decay=0.9)
    for name, value in params.items():
        resumed.params[name] = value
    resumed.load_state_dict(saved)
    assert bits(resumed.masters) == bits(split.masters)
    run((resumed, whole), SHAPES, range(20, 40))
    assert_same(resumed, whole)
    assert bits(resumed.ema) == bits(whole.ema)


def test_steps_add_up_that_are_too_small_for_the_parameters():
    flat = np.ones(5, bfloat16)
    opt = fastadam.Adam(flat, lr=2.0**-20, betas=(0.0, 0.0), master_weights=True)
    for steps, rounded in ((1000, 1.0), (4000, 1.0 - 2.0**-8)):
        for _ in range(steps):
            opt.step(np.ones(5, bfloat16))
        np.testing.assert_array_equal(flat, np.full(5, rounded))
    np.testing.assert_array_equal(opt.masters[0], np.float32(1.0 - 5000 * 2.0**-20))


def assert_nearest(opt):
    """No bfloat16 is nearer to the master than the parameter."""
    for name, master in opt.masters.items():
        exact = master.astype(float)
        distance = np.abs(opt.params[name].astype(float) - exact)
        np.testing.assert_array_equal(distance, np.abs(master.astype(bfloat16).astype(float) - exact))


# --- the copies in float32


def test_masters_are_copies():
    for opt in pair():
        before, masters = bits(opt.params), opt.masters
        masters["w"][...] = 7.0
        assert bits(opt.params) == before
        assert opt.masters["w"].any()
        assert (opt.masters["w"] != 7.0).all()
        assert {name: array.shape for name, array in masters.items()} == SHAPES
        assert {array.dtype for array in masters.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, bfloat16])
def test_masters_of_whole_parameters_are_these(dtype):
    opt = fastadam.Adam([{"params": make({"w": (3, 2)}, dtype=dtype)}, {"params": make({"k": 5}, dtype=dtype)}])
    expected = np.float64 if dtype == np.float64 else np.float32
    assert bits(opt.masters) == bits({name: view.astype(expected) for name, view in opt.params.items()})


def test_masters_of_several_buffers_are_in_the_order_of_the_groups():
    split, whole = pair(shapes={"large": (64, 65), "small": (7,)}, moment_dtype="float8")
    for opt in (split, whole):
        opt.add_param_group({"params": make({"more": (3,)}, dtype=opt.params["small"].dtype)})
    assert (len(split.all_buffers), len(split.param_groups)) == (3, 2)
    assert list(split.masters) == ["large", "small", "more"]
    whole.params["more"] = split.params["more"]
    run((split, whole), {"large": (64, 65), "small": (7,), "more": (3,)}, range(10))
    assert bits(split.masters) == bits(whole.params)
