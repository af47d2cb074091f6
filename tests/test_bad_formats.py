"""Options and settings that do not go with the parameters, or with one another, in one group or a later one."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from refusal import F4, FLOAT16, FREE, MASTERS, MASTERS_FLOAT16, NO_AMSGRAD, beginning, exactly, refuses

import fastadam

OF_FLOAT64 = "must be float64 with float64 parameters, got"
EXACT = "`sparse` must be 'lazy'"
OF_A_DTYPE = [
    (np.float64, {"moment_dtype": "float32"}, f"`moment_dtype` {OF_FLOAT64} 'float32'"),
    (np.float64, {"moment_dtype": (None, "float8")}, f"`moment_dtype` {OF_FLOAT64} 'float8'"),
    (np.float64, {"moment_dtype": ("bfloat16", None)}, f"`moment_dtype` {OF_FLOAT64} 'bfloat16'"),
    (np.float64, {"grad_dtype": "float32"}, f"`grad_dtype` {OF_FLOAT64} 'float32'"),
    (np.float64, {"grad_dtype": "bfloat16"}, f"`grad_dtype` {OF_FLOAT64} 'bfloat16'"),
    (np.float64, {"master_weights": True}, MASTERS.format("float64")),
    (np.float16, {"master_weights": True}, MASTERS_FLOAT16),
    (bfloat16, {"moment_dtype": "float64"}, "`moment_dtype` must not be float64 without float64 parameters"),
    (np.float16, {"grad_dtype": "float64"}, "`grad_dtype` must not be float64 without float64 parameters"),
    (bfloat16, {"moment_dtype": ("bfloat16", "float16")}, FLOAT16),
    (bfloat16, {"sparse": "exact"}, EXACT),
    (bfloat16, {"copy_dtype": "bfloat16"}, "`copy_dtype` must be None with bfloat16 parameters, got 'bfloat16'"),
    (np.float16, {"sparse": "exact"}, EXACT),
    (F4, {"sparse": "exact", "moment_dtype": "bfloat16"}, EXACT),
    (F4, {"sparse": "exact", "moment_dtype": (None, "float8")}, EXACT),
    (F4, {"sparse": "exact", "grad_dtype": "float16"}, EXACT),
    (bfloat16, {"sparse": "exact", "master_weights": True}, EXACT),
]


@pytest.mark.parametrize(("dtype", "options", "message"), OF_A_DTYPE, ids=[str(row[:2]) for row in OF_A_DTYPE])
def test_option_for_parameters_of_another_dtype(dtype, options, message):
    params, flat = {"w": np.ones((3, 4), dtype), "b": np.ones((), dtype)}, np.full(5, 7, dtype)
    for given in (params, flat, [{"params": params}]):
        act = lambda: fastadam.AdamW(given, **options)  # noqa: B023, E731
        refuses(act, ValueError, beginning(message), params, flat)
    fastadam.AdamW(params)


LATER = [
    ({"sparse": "exact"}, bfloat16, {}, EXACT),
    ({"moment_dtype": "bfloat16"}, np.float64, {}, f"`moment_dtype` {OF_FLOAT64}"),
    ({"grad_dtype": "bfloat16"}, np.float64, {}, f"`grad_dtype` {OF_FLOAT64}"),
    ({"moment_dtype": "float16", "eps": 1e-3}, F4, {"eps": 1e-5}, FLOAT16.replace("1e-08", "1e-05")),
]


@pytest.mark.parametrize(("options", "dtype", "settings", "message"), LATER)
def test_later_group_that_contradicts_a_format(options, dtype, settings, message):
    opt, added = fastadam.Adam({"w": np.ones(4, F4)}, **options), {"added": np.ones(2, dtype)}
    act = lambda: opt.add_param_group({"params": added, **settings})  # noqa: E731
    refuses(act, ValueError, beginning(message), opt, added)
    assert list(opt.params) == ["w"]


def test_masters_of_a_later_group_need_bfloat16_too():
    opt, added = fastadam.Adam({"w": np.ones(4, bfloat16)}, master_weights=True), {"added": np.ones(2, F4)}
    refuses(lambda: opt.add_param_group({"params": added}), ValueError, MASTERS.format("float32"), opt, added)


@pytest.mark.parametrize("key", ["grad_dtype", "master_weights", "rounding", "seed"])
def test_formats_cannot_be_those_of_a_group(key):
    params, added, opt = {"w": np.ones(4, F4)}, {"added": np.ones(2, F4)}, fastadam.Adam({"w": np.ones(4, F4)})
    message = f"`{key}` must be given to the optimizer, not to a group"
    refuses(lambda: fastadam.Adam([{"params": params, key: None}]), TypeError, message, params)
    refuses(lambda: opt.param_groups[0].update({key: None}), TypeError, message, opt)
    refuses(lambda: opt.add_param_group({"params": added, key: None}), TypeError, message, opt, added)


MOMENTS = "'float32', 'float64', 'bfloat16', 'float16', 'float8'"
OF_A_GROUP = [
    ("int8", ValueError, f"`moment_dtype` must be one of {MOMENTS}, got 'int8'"),
    (8, TypeError, "`moment_dtype` must be a string, a pair of them or None, got 8"),
    ((None, "f4"), ValueError, f"`moment_dtype[1]` must be one of {MOMENTS}, got 'f4'"),
    ("float64", ValueError, "`moment_dtype` must not be float64 without float64 parameters, got 'float64'"),
    ("float16", ValueError, FLOAT16),
]


@pytest.mark.parametrize(("value", "error", "message"), OF_A_GROUP, ids=repr)
def test_moment_dtype_of_a_group(value, error, message):
    params, added = {"w": np.ones(4, F4)}, {"added": np.ones(2, F4)}
    opt = fastadam.Adam({"w": np.ones(4, F4)})
    group = {"params": params, "moment_dtype": value}
    refuses(lambda: fastadam.Adam([group]), error, exactly(message), params)
    refuses(lambda: opt.add_param_group({**group, "params": added}), error, exactly(message), opt, added)


def test_moment_dtype_of_a_group_stays():
    opt = fastadam.Adam([{"params": {"w": np.ones(4, F4)}, "moment_dtype": "bfloat16"}])
    for value in ("float32", None, ("bfloat16", "bfloat16")):
        act = lambda: opt.param_groups[0].update(moment_dtype=value, lr=0.5)  # noqa: B023, E731
        refuses(act, TypeError, "`moment_dtype`", opt)
    opt.param_groups[0].update(moment_dtype="bfloat16", lr=0.5)
    assert opt.param_groups[0]["lr"] == 0.5
    plain = fastadam.Adam({"w": np.ones(4, F4)})
    refuses(lambda: plain.param_groups[0].update(moment_dtype="bfloat16"), TypeError, "`moment_dtype`", plain)
    refuses(lambda: opt.param_groups[0].__delitem__("moment_dtype"), TypeError, "`moment_dtype`", opt)


def test_small_eps_for_second_moments_in_float16():
    opt = fastadam.Adam({"w": np.ones(4, F4)}, moment_dtype="float16", eps=1e-3)
    refuses(lambda: opt.param_groups[0].update(eps=1e-8), ValueError, exactly(FLOAT16), opt)
    assert opt.param_groups[0]["eps"] == 1e-3
    fastadam.Adam({"w": np.ones(4, F4)}, moment_dtype=("float16", "bfloat16"))


@pytest.mark.parametrize("name", ["NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix"])
def test_amsgrad_of_a_member_without_it(name):
    kind, params, added = getattr(fastadam, name), {"w": np.ones(3)}, {"v": np.ones(2)}
    opt, either = kind({"w": np.ones(3)}), (TypeError, ValueError)
    refuses(lambda: kind(params, amsgrad=True), either, "amsgrad", params)
    refuses(lambda: kind([{"params": params, "amsgrad": True}]), either, "amsgrad", params)
    refuses(lambda: opt.param_groups[0].update(amsgrad=True), either, "amsgrad", opt)
    refuses(lambda: opt.add_param_group({"params": added, "amsgrad": True}), either, "amsgrad", opt, added)


@pytest.mark.parametrize("key", ["momentum_decay", "beta1", "member"])
def test_argument_that_a_class_has_not(key):
    message = rf"^Adam\(\) got an unexpected keyword argument '{key}'(. Did you mean 'betas'\?)?$"
    refuses(lambda: fastadam.Adam(np.ones(3), **{key: 0.5}), TypeError, message)


GROUPED = [
    ({"convention": "sklearn"}, "amsgrad", True, NO_AMSGRAD.format("sklearn")),
    ({"convention": "apex"}, "amsgrad", True, NO_AMSGRAD.format("apex")),
    ({"decouple_lr": True, "decoupled_weight_decay": True}, "decoupled_weight_decay", False, FREE),
]


@pytest.mark.parametrize(("options", "key", "value", "message"), GROUPED)
def test_setting_of_a_group_that_contradicts_an_option(options, key, value, message):
    opt, added = fastadam.Adam({"w": np.ones(4, F4)}, **options), {"added": np.ones(2, F4)}
    state = opt.state_dict()
    state["param_groups"][0][key] = value
    for act in (
        lambda: opt.param_groups[0].update({key: value}),
        lambda: opt.add_param_group({"params": added, key: value}),
        lambda: opt.load_state_dict(state),
        lambda: fastadam.Adam([{"params": added, key: value}], **options),
    ):
        refuses(act, ValueError, exactly(message), opt, added)
    assert len(opt.param_groups) == 1
