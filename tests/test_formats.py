"""Steps of parameters, gradients and moments in every format, beside a model in NumPy, and with the rest of a step."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from oracle import bits, buffers_of, memory, raw
from stored_model import Followed
from training import WAYS, both, by_assignment, by_mapping, copies, make

import fastadam
from fastadam import SparseRows

SHAPES = {"w": (3, 5), "b": (), "none": (0, 4), "k": (5, 1001), "last": (4096,)}
WIDE = {"k": (5, 1001), "last": (4096,)}  # none of them is too small for codes
NEAREST = {"rounding": "nearest"}
# dtype of the parameters, and options. Every format is at every place in one of the first five.
STORAGES = {
    "g16 m16 v_bf16": (np.float32, {"grad_dtype": "float16", "moment_dtype": ("float16", "bfloat16"), **NEAREST}),
    "p_bf16 m_bf16 v16": (bfloat16, {"moment_dtype": ("bfloat16", "float16"), "eps": 2.0**-12, **NEAREST}),
    "p16 g32 v dithered": (np.float16, {"grad_dtype": "float32", "moment_dtype": ("float32", "bfloat16")}),
    "p dithered codes": (bfloat16, {"moment_dtype": "float8"}),
    "split m_codes v_bf16": (bfloat16, {"master_weights": True, "moment_dtype": ("float8", "bfloat16"), **NEAREST}),
    "g_bf16": (np.float32, {"grad_dtype": "bfloat16"}),
    "bfloat16": (np.float32, {"moment_dtype": "bfloat16", **NEAREST}),
    "float16": (np.float16, {"moment_dtype": "float16", "eps": 2.0**-12}),
    "all bfloat16": (bfloat16, {"moment_dtype": "bfloat16", **NEAREST}),
    "all dithered": (bfloat16, {"moment_dtype": "bfloat16"}),
    "float8": (np.float32, {"moment_dtype": "float8"}),
    "v codes": (np.float32, {"moment_dtype": (None, "float8"), "grad_dtype": "bfloat16"}),
    "split": (bfloat16, {"master_weights": True}),
}
COMBINED = tuple(STORAGES)[:5]
# To compile a kernel takes a second, and two with codes: the other members and options are run on these.
FEW = (COMBINED[0], COMBINED[3], COMBINED[4])
MEMBERS_OF = {storage: ("AdamW", "Adam") if storage in COMBINED else ("AdamW",) for storage in STORAGES}
MEMBERS_OF |= dict.fromkeys(FEW, ("AdamW", "Adam", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix"))
combined = pytest.mark.parametrize("storage", COMBINED)
few = pytest.mark.parametrize("storage", FEW)
HYPER = {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.05}


def extras(storage):
    """What else can be in the pass; parameters of 16 bits are their own copy."""
    dtype, _ = STORAGES[storage]
    return {"ema_decay": 0.75, "copy_dtype": "float16" if dtype == np.float32 else None, "zero_grad": True}


def built(storage, shapes=SHAPES, member="AdamW", **options):
    """An optimizer with two groups, the second of which has settings of its own, followed by the model."""
    dtype, stored = STORAGES[storage]
    first = make(shapes, dtype=dtype)
    second = {"params": {"last": first.pop("last")}, "lr": 0.005, "betas": (0.5, 0.75), "weight_decay": 0.25}
    options = {**HYPER, **stored, **options}
    if member == "AdEMAMix":
        options |= {"betas": (0.8, 0.99, 0.995), "alpha": 3.0, "alpha_warmup": 7, "beta3_warmup": 11}
        second |= {"betas": (0.5, 0.75, 0.9), "alpha": 2.0, "beta3_warmup": 0}
    if member == "Lion":
        del options["eps"]
    opt = getattr(fastadam, member)([{"params": first}, second], **options)
    return Followed(opt, **options)


def draw(opt, seed, scale=1.0):
    """Gradients of all sizes, in the dtype that `opt` takes; some are zero."""
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(
            scale
            * rng.standard_normal(view.shape)
            * 10.0 ** rng.integers(-3, 1, view.shape)
            * rng.integers(0, 9, view.shape),
            view.dtype,
        )
        for name, view in opt.grads.items()
    }


# --- every format beside the model, to the last bit


@pytest.mark.parametrize(
    ("storage", "member"), [(storage, member) for storage, members in MEMBERS_OF.items() for member in members]
)
def test_20_steps_are_those_of_the_model(storage, member):
    followed = built(storage, member=member)
    for seed in range(20):
        followed.step(draw(followed.opt, seed), grad_scale=(1.0, 0.3)[seed % 2])


@both
@few
def test_extras_are_those_of_the_model(storage, flat):
    followed = built(storage, amsgrad=True, flat=flat, **extras(storage))
    for seed in range(20):
        grads = draw(followed.opt, seed)
        followed.step(grads, (by_mapping, by_assignment)[seed % 2])
        assert not any(gradient.any() for gradient in followed.opt.grads.values())
        assert seed % 2 or not any(gradient.any() for gradient in grads.values())
    assert bits(followed.opt.ema) == bits({name: raw(followed.opt, name)["ema"] for name in SHAPES})


def test_formats_of_the_arithmetic_are_the_default():
    for dtype in (np.float32, np.float64):
        plain, named = (
            fastadam.AdamW(make(SHAPES, dtype=dtype), **options)
            for options in ({}, {"moment_dtype": (np.dtype(dtype).name, None), "grad_dtype": np.dtype(dtype).name})
        )
        for opt in (plain, named):
            opt.step(make(SHAPES, 1, dtype))
        assert memory(plain) == memory(named)
        assert plain.buffers.formats == named.buffers.formats


@pytest.mark.parametrize("dtype", [bfloat16, np.float16])
def test_moments_and_average_of_16_bit_parameters_are_float32(dtype):
    opt = fastadam.Adam(make(SHAPES, dtype=dtype), ema_decay=0.5, amsgrad=True)
    opt.step(draw(opt, 1))
    assert {getattr(opt.buffers, name).dtype for name in ("m", "v", "v_max", "ema")} == {np.dtype(np.float32)}
    assert {array.dtype for array in (*opt.params.values(), opt.buffers.g)} == {np.dtype(dtype)}


@few
@pytest.mark.parametrize(
    "order", [np.asfortranarray, lambda array: np.array(array[::-1])[::-1]], ids=["F", "backwards"]
)
def test_parameters_of_another_order_of_memory_are_stepped_as_the_model(storage, order):
    dtype, options = STORAGES[storage]
    params = {name: order(array) for name, array in make(WIDE, dtype=dtype).items()}
    followed = Followed(fastadam.AdamW(params, **{**HYPER, **options}), **{**HYPER, **options})
    for seed in range(4):
        grads = draw(followed.opt, seed)
        followed.step(grads if seed % 2 else {name: np.asfortranarray(array) for name, array in grads.items()})
    assert all(followed.opt.params[name] is array for name, array in params.items())
    assert not params["k"].flags.c_contiguous


# --- with the rest of a step


@combined
@pytest.mark.parametrize("most", [1e-2, 1e6], ids=["clipped", "not clipped"])
def test_clipping_is_a_gradient_scale(storage, most):
    clipped, scaled = built(storage, max_grad_norm=most).opt, built(storage)
    for seed in range(3):
        grads = draw(clipped, seed)
        exact = np.sqrt(sum(np.sum(gradient.astype(float) ** 2) for gradient in grads.values()))
        clipped.step(grads, grad_scale=2.0)
        assert clipped.grad_norm == pytest.approx(2.0 * exact, rel=1e-12)
        scaled.step(grads, grad_scale=2.0 * min(1.0, most / (clipped.grad_norm + 1e-6)))
    assert memory(clipped) == memory(scaled.opt)


@few
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_skipped_step_leaves_every_byte(storage, value):
    options = {"amsgrad": True, **extras(storage)}
    opt, clean = (built(storage, nonfinite=policy, **options).opt for policy in ("skip", "propagate"))
    for seed in range(2):
        opt.step(draw(opt, seed))
        clean.step(draw(clean, seed))
    before = memory(opt)
    for count, name in enumerate(("w", "b", "k", "last"), 1):
        grads = draw(opt, 9)
        grads[name].reshape(-1)[-1] = value
        opt.step(grads)
        assert memory(opt) == before
        assert opt.skipped_steps == count
    for each in (opt, clean):
        each.step(draw(each, 5))
    assert memory(opt) == memory(clean)


@combined
def test_error_names_the_place_and_nothing_is_written(storage):
    opt = built(storage, nonfinite="raise").opt
    before, grads = memory(opt), draw(opt, 1)
    grads["w"][1, 2] = -np.inf
    with pytest.raises(FloatingPointError, match=r"gradient of 'w' must be finite, got -inf at index \(1, 2\)"):
        opt.step(grads)
    assert memory(opt) == before


@combined
def test_all_ways_to_hand_over_gradients_are_one(storage):
    dtype, options = STORAGES[storage]
    opts = [fastadam.AdamW(make(WIDE, dtype=dtype), **{**HYPER, **options}) for _ in WAYS]
    for seed in range(3):
        for opt, way in zip(opts, WAYS, strict=True):
            way(opt, draw(opt, seed))
    assert all(memory(opt) == memory(opts[0]) for opt in opts)


@both
@combined
@pytest.mark.parametrize("way", [by_mapping, by_assignment], ids=lambda way: way.__name__)
def test_group_that_is_added_later_is_stepped_as_the_model(storage, way, flat):
    followed = built(storage, flat=flat)
    followed.step(draw(followed.opt, 0))
    added = make({"more": (2, 2100), "few": (7,)}, dtype=STORAGES[storage][0])
    followed.opt.add_param_group({"params": added, "lr": 0.1})
    for seed in range(3):
        followed.step(draw(followed.opt, seed), way)
    assert np.shares_memory(added["more"], followed.opt.params["more"])
    assert (added["more"].base is not None) == flat
    assert {entry["step"] for entry in followed.opt.state_dict()["state"].values()} == {3, 4}


@combined
def test_rows_are_stepped_as_the_model_and_the_others_are_not_touched(storage):
    followed = built(storage, {"table": (40, 128), "last": (4096,)})
    for seed in range(4):
        rows = np.random.default_rng(seed).choice(40, 5, replace=False)
        followed.step(draw(followed.opt, seed), rows_of("table", rows), rows={"table": rows})


def rows_of(table, rows):
    def hand_over(opt, grads, **options):
        opt.step({**grads, table: SparseRows(rows, grads[table][rows])}, **options)

    return hand_over


@combined
def test_rows_that_occur_twice_are_added_up_in_float32(storage):
    opts = [built(storage, {"table": (40, 128), "last": (4096,)}).opt for _ in range(2)]
    # Small integers, whose sums are exact in float32 and not in 16 bits.
    grads = {name: np.rint(view.astype(float)).astype(view.dtype) for name, view in draw(opts[0], 1, 20.0).items()}
    values, last = grads["table"][:5], grads["last"]
    total = sum(values[index].astype(np.float32) for index in (0, 2, 3, 4))
    opts[0].step({"table": SparseRows([7, 3, 7, 7, 7], values), "last": last})
    summed = np.stack([values[1], total.astype(values.dtype)])
    opts[1].step({"table": SparseRows([3, 7], summed), "last": last})
    assert memory(opts[0]) == memory(opts[1])


def test_rows_without_groups_of_codes_of_their_own_are_refused():
    opt = fastadam.Adam({"table": np.ones((64, 100), np.float32)}, moment_dtype="float8")
    before = memory(opt)
    message = r"`grads\['table'\]` must be an array with `moment_dtype` 'float8', got SparseRows of 100 elements a row"
    with pytest.raises(ValueError, match=message):
        opt.step({"table": SparseRows([1], np.ones((1, 100), np.float32))})
    assert memory(opt) == before


# --- small parameters beside codes


@pytest.mark.parametrize(("size", "dtype"), [(4095, np.float32), (4096, np.uint8)])
def test_moments_of_small_parameters_are_no_codes(size, dtype):
    opt = fastadam.Adam({"w": np.ones(size, np.float32)}, moment_dtype="float8")
    assert {opt.buffers.m.dtype, opt.buffers.v.dtype} == {np.dtype(dtype)}
    assert ("m_exponent" in opt.buffers.flats) == (dtype == np.uint8)


@both
def test_small_parameters_have_buffers_of_their_own_and_stay_in_their_group(flat):
    followed = built("float8", flat=flat)
    opt = followed.opt
    assert [group["params"] for group in opt.param_groups] == [("w", "b", "none", "k"), ("last",)]
    assert [group["lr"] for group in opt.param_groups] == [0.02, 0.005]
    assert [list(buffers.segments) for buffers in opt.all_buffers] == [["w", "b", "none"], ["k", "last"]]
    assert list(opt.params) == ["w", "b", "none", "k", "last"]
    opt.param_groups[0]["lr"] = 0.5
    followed.step(draw(opt, 1))


def test_exponents_are_those_of_groups_of_each_parameter():
    opt = built("float8").opt
    buffers = buffers_of(opt, "k")
    assert buffers_of(opt, "last") is buffers
    assert [segment.start % 128 for segment in buffers.segments.values()] == [0, 0]
    opt.step({name: np.ones_like(view) for name, view in opt.params.items()})
    assert raw(opt, "k")["m_exponent"].shape == raw(opt, "k")["v_exponent"].shape == (40,)
    assert raw(opt, "last")["m_exponent"].shape == (32,)
    assert raw(opt, "k")["m_exponent"].all()


# --- adam_step


@pytest.mark.parametrize("storage", ["p16 g32 v dithered", "p dithered codes", "split m_codes v_bf16"])
@pytest.mark.parametrize("size", [4096, 4999])
def test_adam_step_takes_arrays_of_these_formats(storage, size):
    dtype, stored = STORAGES[storage]
    # Random words depend on the name, which is that of a parameter without a name here.
    opt = fastadam.Adam([make({"w": size}, dtype=dtype)["w"]], **{**HYPER, **stored}, seed=5)
    arrays = raw(opt, 0)
    for step in (1, 2, 3):
        gradient = draw(opt, step)[0]
        opt.step([gradient])
        options = {"rounding": stored.get("rounding", "stochastic"), "seed": 5}
        fastadam.adam_step(g=gradient, step=step, **arrays, **HYPER, **options)
    assert bits(arrays) == bits(raw(opt, 0))
    assert copies(arrays)["m"].any()
