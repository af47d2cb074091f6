"""`load_state_dict(..., convert=True)`: states in one format as states in another, on request and only then."""

import copy
import itertools

import numpy as np
import pytest
from ml_dtypes import bfloat16
from oracle import bits, memory, raw
from stored_model import values
from test_state import at, without
from training import make

import fastadam

SHAPES = {"w": (5, 1001), "k": (4096,)}
FORMATS = {
    "float32": None,
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float8": "float8",
    "codes and bfloat16": ("float8", "bfloat16"),
    "float16 and codes": ("float16", "float8"),
}
STORED_AS = {"float32": np.float32, "bfloat16": bfloat16, "float16": np.float16, "float8": np.uint8}
# Relative, as a part of the largest of a block, and in all. Codes are rounded to nearest: by a sixteenth at most of the
# value and the lowest of its block, which is 2**-14 of the largest at most, so by 2**-18 of that; a tiny v becomes the
# first code, 2**-33 of the largest. The worst case is 1/17, which leaves enough for the sum in float32 and for a
# threshold of v that is 1/512 more than half a step.
ERRORS = {
    np.float32: (0.0, 0.0, 0.0),
    bfloat16: (2.0**-8, 0.0, 0.0),
    np.float16: (2.0**-11, 0.0, 2.0**-25),
    np.uint8: (2.0**-4, 2.0**-18, 0.0),
}
pairs = pytest.mark.parametrize(("source", "target"), list(itertools.product(FORMATS, repeat=2)))


def built(moment_dtype=None, dtype=np.float32, **options):
    settings = {"lr": 1e-3, "eps": 2.0**-12, **options}
    return fastadam.AdamW(make(SHAPES, dtype=dtype), moment_dtype=moment_dtype, **settings)


def train(opt, seeds):
    for seed in seeds:
        opt.step({name: make(SHAPES, seed)[name].astype(opt.grads[name].dtype) for name in SHAPES})
    return opt


def dtypes_of(moment_dtype):
    pair = moment_dtype if isinstance(moment_dtype, tuple) else (moment_dtype or "float32",) * 2
    return [STORED_AS[name] for name in pair]


def moments(opt, name):
    held = values(raw(opt, name))
    return held["m"], held["v"]


def assert_within(actual, exact, dtype):
    relative, of_block, absolute = ERRORS[dtype]
    largest = np.repeat([np.abs(part).max() for part in np.split(exact, range(128, exact.size, 128))], 128)
    bound = relative * np.abs(exact) + of_block * largest[: exact.size]
    assert (np.abs(actual.astype(float) - exact) <= np.maximum(bound, absolute)).all()


# --- every pair of formats


@pairs
def test_converted_moments_are_within_the_error_of_the_format(source, target):
    old, new = train(built(FORMATS[source]), range(3)), built(FORMATS[target])
    saved = old.state_dict()
    kept = copy.deepcopy(saved)
    new.load_state_dict(saved, convert=True)
    for name in SHAPES:
        for actual, exact, dtype in zip(
            moments(new, name), moments(old, name), dtypes_of(FORMATS[target]), strict=True
        ):
            assert_within(actual, exact, dtype)
            assert exact.any()
        for key, value in kept["state"][name].items():
            np.testing.assert_array_equal(saved["state"][name][key], value)
    assert {entry["step"] for entry in new.state_dict()["state"].values()} == {3}
    assert new.param_groups[0]["lr"] == 1e-3
    new.step({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()})
    assert all(np.isfinite(view).all() for view in new.params.values())


@pairs
def test_state_of_another_format_is_not_cast_unasked(source, target):
    saved, new = train(built(FORMATS[source]), [0]).state_dict(), train(built(FORMATS[target]), [1])
    if dtypes_of(FORMATS[source]) == dtypes_of(FORMATS[target]):
        new.load_state_dict(saved)
        return
    before = memory(new)
    with pytest.raises((TypeError, ValueError)) as raised:
        new.load_state_dict(saved)
    assert memory(new) == before
    assert "state_dict['state']['w']" in str(raised.value)


@pytest.mark.parametrize("moment_dtype", ["bfloat16", ("float16", None), ("bfloat16", "float16")], ids=str)
@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_error_says_how_it_can_be_converted(moment_dtype, back):
    old, new = (built(each) for each in ((moment_dtype, None) if back else (None, moment_dtype)))
    with pytest.raises(TypeError, match=r"`state_dict\['state'\]\['w'\]\['exp_avg\w*'\]` must be .*`convert=True`"):
        new.load_state_dict(old.state_dict())


@pytest.mark.parametrize("moment_dtype", FORMATS.values(), ids=FORMATS)
def test_state_of_the_same_format_is_taken_as_it_is(moment_dtype):
    old, asked, unasked = (train(built(moment_dtype), [seed]) for seed in (0, 1, 2))
    train(old, range(5))
    for opt, options in ((asked, {"convert": True}), (unasked, {})):
        for name, view in old.params.items():
            opt.params[name] = view
        opt.load_state_dict(old.state_dict(), **options)
        assert memory(opt) == memory(old)


@pytest.mark.parametrize("target", ["bfloat16", "float8"])
def test_largest_second_moment_and_average_are_converted(target):
    options = {"amsgrad": True, "ema_decay": 0.9}
    old = train(built(**options), range(3))
    new = built(target, **options)
    new.load_state_dict(old.state_dict(), convert=True)
    assert bits(new.ema) == bits(old.ema)
    for name in SHAPES:
        v_max, exact = (raw(opt, name)["v_max"] for opt in (new, old))
        assert v_max.dtype == (bfloat16 if target == "bfloat16" else np.float32)
        assert v_max.tobytes() == exact.astype(v_max.dtype).tobytes()


def test_states_of_float64_and_of_16_bit_parameters_are_converted():
    for source, target in itertools.permutations([np.float64, np.float32, bfloat16, np.float16], 2):
        old, new = train(built(dtype=source), [0]), built(dtype=target)
        new.load_state_dict(old.state_dict(), convert=True)
        for name, flat in itertools.product(SHAPES, "mv"):
            actual, exact = (raw(opt, name)[flat] for opt in (new, old))
            np.testing.assert_array_equal(actual, exact.astype(new.buffers.dtype(flat)), strict=True)


@pytest.mark.parametrize("member", ["NAdam", "Adamax", "RAdam"])
def test_other_members_are_converted(member):
    kind = getattr(fastadam, member)
    old, new = (kind(make(SHAPES), moment_dtype=moment_dtype) for moment_dtype in (None, "float8"))
    train(old, range(2))
    new.load_state_dict(old.state_dict(), convert=True)
    for actual, exact in zip(moments(new, "w"), moments(old, "w"), strict=True):
        assert_within(actual, exact, np.uint8)
    assert new.state_dict()["state"]["w"].get("mu_product") == old.state_dict()["state"]["w"].get("mu_product")


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_states_with_small_parameters_are_converted_although_these_have_no_codes(back):
    shapes = {"large": (64, 65), "small": (7,), "more": (4096,)}
    opts = [fastadam.AdamW(make(shapes), moment_dtype=moment_dtype) for moment_dtype in (None, "float8")]
    old, new = reversed(opts) if back else opts
    old.step(make(shapes, 1))
    new.load_state_dict(old.state_dict(), convert=True)
    for name in shapes:
        dtype = np.float32 if back or name == "small" else np.uint8
        for actual, exact in zip(moments(new, name), moments(old, name), strict=True):
            assert_within(actual, exact, dtype)


def test_masters_are_the_parameters_where_the_state_has_no_remainder():
    old, new = train(built(dtype=bfloat16), [0]), train(built(dtype=bfloat16, master_weights=True), [1])
    for name, view in old.params.items():
        new.params[name] = view
    new.load_state_dict(old.state_dict(), convert=True)
    assert bits(new.masters) == bits({name: view.astype(np.float32) for name, view in old.params.items()})


def test_moments_of_torch_are_converted():
    torch = pytest.importorskip("torch")
    old, new = train(built(), range(2)), built("bfloat16")
    saved = old.state_dict()
    for entry in saved["state"].values():
        entry.update({key: torch.tensor(entry[key]).bfloat16() for key in ("exp_avg", "exp_avg_sq")})
    new.load_state_dict(saved, convert=True)
    assert raw(new, "w")["m"].tobytes() == raw(old, "w")["m"].astype(bfloat16).tobytes()


def test_training_goes_on_after_a_conversion_as_before():
    old, others = train(built(lr=0.01), range(20)), []
    for moment_dtype in FORMATS.values():
        others.append(built(moment_dtype, lr=0.01))
        for name, view in old.params.items():
            others[-1].params[name] = view
        others[-1].load_state_dict(old.state_dict(), convert=True)
    before = old.params["w"].copy()
    train(old, range(20, 30))
    moved = np.abs(old.params["w"] - before).mean()
    for other in others:
        assert np.abs(train(other, range(20, 30)).params["w"] - old.params["w"]).mean() < 0.1 * moved


# --- what is wrong is refused and changes nothing

W = ("state", "w")
MISFITS = {
    "exponents of another shape": (
        at(*W, "exp_avg_exponent", value=np.zeros(39, np.uint8)),
        ValueError,
        r"`state_dict\['state'\]\['w'\]\['exp_avg_exponent'\]` must have shape \(40,\), one for each group.*\(39,\)",
    ),
    "exponents of another dtype": (
        at(*W, "exp_avg_sq_exponent", value=np.zeros(40, np.int8)),
        TypeError,
        r"\['exp_avg_sq_exponent'\]` must be uint8.*got int8",
    ),
    "exponents are no array": (at(*W, "exp_avg_exponent", value=[1]), TypeError, r"exponent'\]` must be a NumPy.*list"),
    "codes of another dtype": (
        at(*W, "exp_avg", value=np.zeros(SHAPES["w"], np.int8)),
        TypeError,
        r"\['exp_avg'\]` must be uint8.*got int8",
    ),
    "codes of another shape": (
        at(*W, "exp_avg", value=np.zeros((1001, 5), np.uint8)),
        ValueError,
        r"\['exp_avg'\]` must have shape \(5, 1001\) like its parameter, got \(1001, 5\)",
    ),
    "no codes": (without(*W, "exp_avg"), ValueError, r"must have the keys 'step', 'exp_avg', .*got \['step', "),
    "bad eps": (at("param_groups", 0, "eps", value=-1.0), ValueError, "`eps` must be >= 0, got -1.0"),
    "negative step": (at(*W, "step", value=-1), ValueError, r"\['step'\]` must be >= 0, got -1"),
    "seed is no integer": (
        at(*W, "words_seed", value=0.5),
        TypeError,
        r"\['words_seed'\]` must be an integer, got 0.5",
    ),
    "no seed": (without(*W, "words_seed"), TypeError, r"\['words_seed'\]` must be an integer, got None"),
    "negative seed": (at(*W, "words_seed", value=-3), ValueError, r"\['words_seed'\]` must be >= 0, got -3"),
    "two seeds": (at(*W, "words_seed", value=7), ValueError, r"one seed for all parameters, got \[0, 7\]"),
    "layout is a number": (at(*W, "layout", value=3), TypeError, r"\['layout'\]` must be a list of integers, got 3"),
    "layout of strings": (at(*W, "layout", value=["a", "b"]), TypeError, r"must be a list of integers, got \['a', 'b'"),
    "layout of one axis": (at(*W, "layout", value=[0]), ValueError, r"each axis of shape \(5, 1001\) once.*got \[0\]"),
    "layout with an axis twice": (at(*W, "layout", value=[0, -1]), ValueError, r"each axis of shape .*got \[0, -1\]"),
    "layout with a third axis": (at(*W, "layout", value=[1, 2]), ValueError, r"each axis of shape .*got \[1, 2\]"),
    "later name": (
        at("state", "k", "exp_avg_sq", value=np.zeros(5, np.uint8)),
        ValueError,
        r"\['state'\]\['k'\]",
    ),
}


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize(("change", "error", "message"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_refused_and_changes_nothing(change, error, message, convert):
    opt, saved = train(built("float8"), [0]), train(built("float8"), [1]).state_dict()
    change(saved)
    before, settings = memory(opt), repr(opt)
    with pytest.raises(error, match=message):
        opt.load_state_dict(saved, convert=convert)
    assert (memory(opt), repr(opt)) == (before, settings)
    opt.step({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()})


OTHER_MISFITS = {
    "codes without exponents": (
        "float8",
        without(*W, "exp_avg_exponent"),
        TypeError,
        r"\['exp_avg'\]` must be .*got .*uint8",
    ),
    "integers": (None, at(*W, "exp_avg", value=np.zeros(SHAPES["w"], int)), TypeError, r"\['exp_avg'\]` .*int64"),
    "shape": (None, at(*W, "exp_avg", value=np.zeros((1001, 5), np.float32)), ValueError, r"\(5, 1001\).*\(1001, 5\)"),
    "to broadcast": (None, at(*W, "exp_avg_sq", value=np.zeros(1001, np.float32)), ValueError, r"\(1001,\)"),
    "missing": (None, without("state", "k", "exp_avg_sq"), ValueError, "must have the keys 'step', 'exp_avg', 'exp_a"),
    "no array": (None, at(*W, "exp_avg", value="x"), TypeError, r"\['exp_avg'\]` must be a NumPy.*got str"),
}


@pytest.mark.parametrize(("source", "change", "error", "message"), OTHER_MISFITS.values(), ids=OTHER_MISFITS)
def test_what_cannot_be_converted_is_refused_and_changes_nothing(source, change, error, message):
    opt, saved = train(built("bfloat16"), [0]), train(built(source), [1]).state_dict()
    change(saved)
    before = memory(opt)
    with pytest.raises(error, match=message):
        opt.load_state_dict(saved, convert=True)
    assert memory(opt) == before


@pytest.mark.parametrize("key", ["exp_avg_exponent", "exp_avg_sq_exponent", "remainder"])
def test_no_key_may_be_missing_unless_converted(key):
    opt, old = (built("float8", bfloat16, master_weights=True) for _ in range(2))
    saved = train(old, [0]).state_dict()
    for entry in saved["state"].values():
        del entry[key]
    before = memory(opt)
    with pytest.raises(ValueError, match=rf"`state_dict\['state'\]\['w'\]` must have the keys .*'{key}'.*, got"):
        opt.load_state_dict(saved)
    assert memory(opt) == before


@pytest.mark.parametrize("value", [1, "yes", None])
def test_convert_is_a_flag(value):
    opt = built()
    with pytest.raises(TypeError, match=f"`convert` must be True or False, got {value!r}"):
        opt.load_state_dict(opt.state_dict(), convert=value)
