"""Bad input: an error that names argument, requirement and value, nothing written, all usable afterwards."""

import numpy as np
import pytest
from gpu import device_problem
from ml_dtypes import bfloat16, float8_e5m2
from oracle import memory

import fastadam

F4 = np.float32
NAN, INF = float("nan"), float("inf")
DTYPES = "float32, float64, bfloat16 or float16 in native byte order, got"
OF_FLOAT32 = "float32 or bfloat16 or float16 with `p` of float32"
OF_MOMENT = "float32 or bfloat16 or float16, or uint8 with `{}_exponent`, with `p` of float32"


def cupy_array_without_a_gpu():
    """A CuPy array over an address that nothing may touch: building one needs no device."""
    cupy = pytest.importorskip("cupy")
    memory = cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(4096, 16, None, 0), 0)
    return cupy.ndarray((4,), F4, memory)


class OnDevice:
    """What an array of any library on a device looks like to DLPack."""

    def __init__(self, kind):
        self.kind = kind

    def __dlpack__(self, **options):
        raise AssertionError("its memory is out of reach")

    def __dlpack_device__(self):
        return self.kind, 0


def read_only(array):
    array.flags.writeable = False
    return array


def unaligned(size):
    return np.zeros(4 * size + 1, np.uint8)[1:].view(F4)


without_gpu = pytest.mark.skipif(device_problem() is None, reason="here CUDA arrays are good input")


def table(rows):
    """The rows as parameters; those about CUDA arrays are for machines without a GPU."""
    return [pytest.param(*row, id=name, marks=[without_gpu] * ("CUDA" in name)) for name, row in rows.items()]


# --- hyperparameters, which the constructor, a group's assignment and adam_step check alike

HYPERPARAMETERS = [
    ("lr", -1e-3, ValueError, r"`lr` must be >= 0, got -0\.001"),
    ("lr", NAN, ValueError, "`lr` must be finite, got nan"),
    ("lr", INF, ValueError, "`lr` must be finite, got inf"),
    ("lr", "0.1", TypeError, "`lr` must be a real number, got '0.1'"),
    ("lr", None, TypeError, "`lr` must be a real number, got None"),
    ("lr", 1j, TypeError, "`lr` must be a real number, got 1j"),
    ("lr", [0.1, 0.2], TypeError, "`lr` must be a real number"),
    ("lr", np.ones(2), TypeError, "`lr` must be a real number"),
    ("eps", -1e-8, ValueError, "`eps` must be >= 0, got -1e-08"),
    ("eps", NAN, ValueError, "`eps` must be finite, got nan"),
    ("weight_decay", -0.5, ValueError, r"`weight_decay` must be >= 0, got -0\.5"),
    ("weight_decay", NAN, ValueError, "`weight_decay` must be finite, got nan"),
    ("betas", (1.0, 0.999), ValueError, r"`betas\[0\]` must be in \[0, 1\), got 1\.0"),
    ("betas", (0.9, 1.5), ValueError, r"`betas\[1\]` must be in \[0, 1\), got 1\.5"),
    ("betas", (-0.1, 0.999), ValueError, r"`betas\[0\]` must be >= 0, got -0\.1"),
    ("betas", (0.9, NAN), ValueError, r"`betas\[1\]` must be finite, got nan"),
    ("betas", 0.9, TypeError, "`betas` must be a pair .*, got 0.9"),
    ("betas", (0.9,), TypeError, r"`betas` must be a pair .*, got \(0\.9,\)"),
    ("betas", "99", TypeError, "`betas` must be a pair .*, got '99'"),
    ("maximize", 1, TypeError, "`maximize` must be True or False, got 1"),
    ("decoupled_weight_decay", "no", TypeError, "`decoupled_weight_decay` must be True or False, got 'no'"),
]
hyperparameters = pytest.mark.parametrize(("key", "value", "error", "message"), HYPERPARAMETERS)


@hyperparameters
def test_hyperparameter_of_the_constructor(key, value, error, message):
    params = {"w": np.ones(4, F4)}
    array = params["w"]
    with pytest.raises(error, match=message):
        fastadam.Adam(params, **{key: value})
    with pytest.raises(error, match=message):
        fastadam.Adam([{"params": params, key: value}])
    assert params["w"] is array
    fastadam.Adam(params).step({"w": np.ones(4, F4)})


@hyperparameters
def test_hyperparameter_of_a_group(key, value, error, message):
    optimizer = fastadam.Adam({"w": np.ones(4, F4)})
    before = dict(optimizer.param_groups[0])
    with pytest.raises(error, match=message):
        optimizer.param_groups[0][key] = value
    added = {"added": np.ones(2, F4)}
    array = added["added"]
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": added, key: value})
    assert added["added"] is array
    assert dict(optimizer.param_groups[0]) == before
    assert len(optimizer.param_groups) == 1
    optimizer.step({"w": np.ones(4, F4)})


@hyperparameters
def test_hyperparameter_of_adam_step(key, value, error, message):
    assert_adam_step_refuses({key: value}, error, message)


# --- options of the classes

CONVENTIONS = "'torch', 'optax', 'keras', 'sklearn', 'apex'"
EPS_ROOT = "`eps_root` must be 0 unless `convention` is 'optax', got 0.5 with '{}', whose eps stands elsewhere"
NO_AMSGRAD = "`amsgrad` must be False with `convention` '{}', which has none, got True"
FREE = "`decouple_lr` needs `decoupled_weight_decay`: L2 is a part of the gradient, and so always multiplied by lr"
MOMENTS, GRADS = (
    "'float32', 'float64', 'bfloat16', 'float16', 'float8'",
    "'float32', 'float64', 'bfloat16', 'float16'",
)
MASTERS = "`master_weights` needs bfloat16 parameters, got {}: they would lack nothing"
FLOAT16 = (
    "`eps` must be >= 0.000244140625 (2**-12) with second moments in float16, got 1e-08: those below its square become "
    "zero. Use bfloat16 for the second moment: `moment_dtype` ('float16', 'bfloat16')"
)
ALL, NO_APEX = (
    ("Adam", "AdamW", "NAdam", "Adamax", "RAdam"),
    "`convention` must be one of {} for this optimizer, got '{}'",
)
ROOTS = tuple(name for name in ALL if name != "Adamax")
OPTIONS = [
    (ALL, {"convention": "jax"}, ValueError, f"`convention` must be one of {CONVENTIONS}, got 'jax'"),
    (ALL, {"convention": None}, TypeError, f"`convention` must be one of {CONVENTIONS}, got None"),
    (["NAdam", "Adamax"], {"convention": "apex"}, ValueError, NO_APEX.format(["torch", "optax", "keras"], "apex")),
    (["RAdam"], {"convention": "keras"}, ValueError, NO_APEX.format(["torch", "optax"], "keras")),
    (ALL, {"eps_root": 0.5}, ValueError, EPS_ROOT.format("torch")),
    (["Adam", "AdamW"], {"eps_root": 0.5, "convention": "keras"}, ValueError, EPS_ROOT.format("keras")),
    (ALL, {"eps_root": -0.5, "convention": "optax"}, ValueError, "`eps_root` must be >= 0, got -0.5"),
    (
        ["Adamax"],
        {"eps_root": 0.5, "convention": "optax"},
        ValueError,
        "`eps_root` must be 0 for Adamax, which has no root, got 0.5",
    ),
    (
        ALL,
        {"clip_value": 1, "max_grad_norm": 2.0},
        ValueError,
        "`clip_value` must be None with `max_grad_norm`, got 1.0 and 2.0: it would not be clear which comes first",
    ),
    (["Adam", "AdamW"], {"amsgrad": True, "convention": "sklearn"}, ValueError, NO_AMSGRAD.format("sklearn")),
    (["Adam", "AdamW"], {"amsgrad": True, "convention": "apex"}, ValueError, NO_AMSGRAD.format("apex")),
    (["Adam", "AdamW"], {"amsgrad": 1}, TypeError, "`amsgrad` must be True or False, got 1"),
    (["Adam", "NAdam", "Adamax", "RAdam"], {"decouple_lr": True}, ValueError, FREE),
    (["Adam"], {"decouple_lr": True, "convention": "sklearn", "weight_decay": 0.1}, ValueError, FREE),
    (["NAdam"], {"momentum_decay": -1}, ValueError, "`momentum_decay` must be >= 0, got -1.0"),
    (["NAdam"], {"momentum_decay": NAN}, ValueError, "`momentum_decay` must be finite, got nan"),
    (["NAdam"], {"momentum_decay": "1"}, TypeError, "`momentum_decay` must be a real number, got '1'"),
    (["NAdam"], {"momentum_decay": [1, 2]}, TypeError, "`momentum_decay` must be a real number, got [1, 2]"),
    (["NAdam"], {"momentum_decay": np.ones(1)}, TypeError, "`momentum_decay` must be a real number, got array([1.])"),
    (
        ["NAdam"],
        {"momentum_decay": np.ones(2)},
        TypeError,
        "`momentum_decay` must be a real number, got array([1., 1.])",
    ),
    (ALL, {"clip_value": 0.0}, ValueError, "`clip_value` must be > 0, got 0.0"),
    (ALL, {"clip_value": "1"}, TypeError, "`clip_value` must be a real number, got '1'"),
    (ALL, {"max_grad_norm": -1}, ValueError, "`max_grad_norm` must be > 0, got -1.0"),
    (ALL, {"max_grad_norm": INF}, ValueError, "`max_grad_norm` must be finite, got inf"),
    (ALL, {"nonfinite": "ignore"}, ValueError, "`nonfinite` must be one of 'propagate', 'skip', 'raise', got 'ignore'"),
    (ALL, {"nonfinite": None}, TypeError, "`nonfinite` must be one of 'propagate', 'skip', 'raise', got None"),
    (ALL, {"ema_decay": 1.0}, ValueError, "`ema_decay` must be in [0, 1), got 1.0"),
    (ALL, {"ema_decay": -0.1}, ValueError, "`ema_decay` must be >= 0, got -0.1"),
    (ALL, {"copy_dtype": "float32"}, ValueError, "`copy_dtype` must be one of 'bfloat16', 'float16', got 'float32'"),
    (ALL, {"zero_grad": 1}, TypeError, "`zero_grad` must be True or False, got 1"),
    (ALL, {"decouple_lr": "yes"}, TypeError, "`decouple_lr` must be True or False, got 'yes'"),
    (ALL, {"sparse": "fast"}, ValueError, "`sparse` must be one of 'lazy', 'exact', got 'fast'"),
    (ALL, {"moment_dtype": "int8"}, ValueError, f"`moment_dtype` must be one of {MOMENTS}, got 'int8'"),
    (ALL, {"moment_dtype": (None, "f4")}, ValueError, f"`moment_dtype[1]` must be one of {MOMENTS}, got 'f4'"),
    (ALL, {"moment_dtype": (8, None)}, TypeError, f"`moment_dtype[0]` must be one of {MOMENTS}, got 8"),
    (ALL, {"moment_dtype": 8}, TypeError, "`moment_dtype` must be a string, a pair of them or None, got 8"),
    (
        ALL,
        {"moment_dtype": ("float32",)},
        TypeError,
        "`moment_dtype` must be a string, a pair of them or None, got ('float32',)",
    ),
    (ALL, {"moment_dtype": F4}, TypeError, f"`moment_dtype` must be a string, a pair of them or None, got {F4}"),
    (
        ALL,
        {"moment_dtype": "float64"},
        ValueError,
        "`moment_dtype` must not be float64 without float64 parameters, got 'float64'",
    ),
    (ROOTS, {"moment_dtype": "float16"}, ValueError, FLOAT16),
    # Adamax has no squares.
    (ROOTS, {"moment_dtype": (None, "float16"), "eps": 2.4e-4}, ValueError, FLOAT16.replace("1e-08", "0.00024")),
    (ALL, {"grad_dtype": "float8"}, ValueError, f"`grad_dtype` must be one of {GRADS}, got 'float8'"),
    (ALL, {"grad_dtype": ("float16", None)}, TypeError, f"`grad_dtype` must be one of {GRADS}, got ('float16', None)"),
    (ALL, {"grad_dtype": F4}, TypeError, f"`grad_dtype` must be one of {GRADS}, got {F4}"),
    (
        ALL,
        {"grad_dtype": "float64"},
        ValueError,
        "`grad_dtype` must not be float64 without float64 parameters, got 'float64'",
    ),
    (ALL, {"master_weights": 1}, TypeError, "`master_weights` must be True or False, got 1"),
    (ALL, {"master_weights": True}, ValueError, MASTERS.format("float32")),
    (ALL, {"rounding": "up"}, ValueError, "`rounding` must be one of 'stochastic', 'nearest', got 'up'"),
    (ALL, {"rounding": None}, TypeError, "`rounding` must be one of 'stochastic', 'nearest', got None"),
    (ALL, {"seed": -1}, ValueError, "`seed` must be >= 0, got -1"),
    (ALL, {"seed": 1.0}, TypeError, "`seed` must be an integer, got 1.0"),
    (ALL, {"seed": "1"}, TypeError, "`seed` must be an integer, got '1'"),
    (ALL, {"seed": None}, TypeError, "`seed` must be an integer, got None"),
    (
        ALL,
        {"exclude_from_weight_decay": ["b"]},
        TypeError,
        "`exclude_from_weight_decay` must be a function of a parameter's name, got ['b']",
    ),
]


@pytest.mark.parametrize(("names", "options", "error", "message"), OPTIONS, ids=[str(row[1]) for row in OPTIONS])
def test_option_of_the_classes(names, options, error, message):
    for name in names:
        params = {"w": np.ones((3, 4), F4), "b": np.ones((), F4)}
        before = dict(params)
        with pytest.raises(error) as raised:
            getattr(fastadam, name)(params, **options)
        assert str(raised.value) == message
        assert all(params[key] is array for key, array in before.items())
        getattr(fastadam, name)(params)


OF_FLOAT64 = "must be float64 with float64 parameters, got"
EXACT = "`sparse` must be 'lazy'"
OF_A_DTYPE = [
    (np.float64, {"moment_dtype": "float32"}, f"`moment_dtype` {OF_FLOAT64} 'float32'"),
    (np.float64, {"moment_dtype": (None, "float8")}, f"`moment_dtype` {OF_FLOAT64} 'float8'"),
    (np.float64, {"moment_dtype": ("bfloat16", None)}, f"`moment_dtype` {OF_FLOAT64} 'bfloat16'"),
    (np.float64, {"grad_dtype": "float32"}, f"`grad_dtype` {OF_FLOAT64} 'float32'"),
    (np.float64, {"grad_dtype": "bfloat16"}, f"`grad_dtype` {OF_FLOAT64} 'bfloat16'"),
    (np.float64, {"master_weights": True}, MASTERS.format("float64")),
    (np.float16, {"master_weights": True}, MASTERS.format("float16")),
    (bfloat16, {"moment_dtype": "float64"}, "`moment_dtype` must not be float64 without float64 parameters"),
    (np.float16, {"grad_dtype": "float64"}, "`grad_dtype` must not be float64 without float64 parameters"),
    (bfloat16, {"moment_dtype": ("bfloat16", "float16")}, FLOAT16),
    (bfloat16, {"sparse": "exact"}, f"{EXACT} with bfloat16 parameters, got 'exact'"),
    (bfloat16, {"copy_dtype": "bfloat16"}, "`copy_dtype` must be None with bfloat16 parameters, got 'bfloat16'"),
    (np.float16, {"sparse": "exact"}, f"{EXACT} with float16 parameters, got 'exact'"),
    (F4, {"sparse": "exact", "moment_dtype": "bfloat16"}, EXACT),
    (F4, {"sparse": "exact", "moment_dtype": (None, "float8")}, EXACT),
    (F4, {"sparse": "exact", "grad_dtype": "float16"}, EXACT),
    (bfloat16, {"sparse": "exact", "master_weights": True}, EXACT),
]


@pytest.mark.parametrize(("dtype", "options", "message"), OF_A_DTYPE, ids=[str(row[:2]) for row in OF_A_DTYPE])
def test_option_for_parameters_of_another_dtype(dtype, options, message):
    params, flat = {"w": np.ones((3, 4), dtype), "b": np.ones((), dtype)}, np.full(5, 7, dtype)
    before = dict(params)
    for given in (params, flat, [{"params": params}]):
        with pytest.raises(ValueError, match="`") as raised:
            fastadam.AdamW(given, **options)
        assert str(raised.value).startswith(message)
    assert all(params[key] is array for key, array in before.items())
    assert (flat == 7).all()
    fastadam.AdamW(params)


LATER = [
    ({"sparse": "exact"}, bfloat16, {}, f"{EXACT} with bfloat16 parameters"),
    ({"moment_dtype": "bfloat16"}, np.float64, {}, f"`moment_dtype` {OF_FLOAT64}"),
    ({"grad_dtype": "bfloat16"}, np.float64, {}, f"`grad_dtype` {OF_FLOAT64}"),
    ({"moment_dtype": "float16", "eps": 1e-3}, F4, {"eps": 1e-5}, FLOAT16.replace("1e-08", "1e-05")),
]


@pytest.mark.parametrize(("options", "dtype", "settings", "message"), LATER)
def test_later_group_that_contradicts_a_format(options, dtype, settings, message):
    optimizer, added = fastadam.Adam({"w": np.ones(4, F4)}, **options), {"added": np.ones(2, dtype)}
    array, state = added["added"], memory(optimizer)
    with pytest.raises(ValueError, match="`") as raised:
        optimizer.add_param_group({"params": added, **settings})
    assert str(raised.value).startswith(message)
    assert added["added"] is array
    assert list(optimizer.params) == ["w"]
    assert memory(optimizer) == state
    optimizer.step({"w": np.ones_like(optimizer.grads["w"])})


def test_masters_of_a_later_group_need_bfloat16_too():
    optimizer, added = fastadam.Adam({"w": np.ones(4, bfloat16)}, master_weights=True), {"added": np.ones(2, F4)}
    array = added["added"]
    with pytest.raises(ValueError, match=MASTERS.format("float32")):
        optimizer.add_param_group({"params": added})
    assert added["added"] is array
    optimizer.step({"w": np.ones(4, bfloat16)})


@pytest.mark.parametrize("key", ["moment_dtype", "grad_dtype", "master_weights", "rounding", "seed"])
def test_formats_cannot_be_those_of_a_group(key):
    params = {"w": np.ones(4, F4)}
    optimizer, array = fastadam.Adam({"w": np.ones(4, F4)}), params["w"]
    attempts = [
        lambda: fastadam.Adam([{"params": params, key: None}]),
        lambda: optimizer.param_groups[0].update({key: None}),
        lambda: optimizer.add_param_group({"params": {"added": np.ones(2, F4)}, key: None}),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError, match=f"`{key}` must be given to the optimizer, not to a group"):
            attempt()
    assert params["w"] is array


def test_small_eps_for_second_moments_in_float16():
    optimizer = fastadam.Adam({"w": np.ones(4, F4)}, moment_dtype="float16", eps=1e-3)
    with pytest.raises(ValueError, match="`eps` must be >= ") as raised:
        optimizer.param_groups[0]["eps"] = 1e-8
    assert str(raised.value) == FLOAT16
    assert optimizer.param_groups[0]["eps"] == 1e-3
    fastadam.Adam({"w": np.ones(4, F4)}, moment_dtype=("float16", "bfloat16"))


@pytest.mark.parametrize("name", ["NAdam", "Adamax", "RAdam"])
def test_amsgrad_of_a_member_without_it(name):
    kind, params = getattr(fastadam, name), {"w": np.ones(3)}
    optimizer = kind({"w": np.ones(3)})
    attempts = [
        lambda: kind(params, amsgrad=True),
        lambda: kind([{"params": params, "amsgrad": True}]),
        lambda: optimizer.param_groups[0].update(amsgrad=True),
        lambda: optimizer.add_param_group({"params": {"v": np.ones(2)}, "amsgrad": True}),
    ]
    for attempt in attempts:
        with pytest.raises((TypeError, ValueError), match="amsgrad"):
            attempt()


@pytest.mark.parametrize("key", ["momentum_decay", "beta1", "member"])
def test_argument_that_a_class_has_not(key):
    with pytest.raises(TypeError, match=rf"^Adam\(\) got an unexpected keyword argument '{key}'$"):
        fastadam.Adam(np.ones(3), **{key: 0.5})


GROUPED = [
    ({"convention": "sklearn"}, "amsgrad", True, NO_AMSGRAD.format("sklearn")),
    ({"convention": "apex"}, "amsgrad", True, NO_AMSGRAD.format("apex")),
    ({"decouple_lr": True, "decoupled_weight_decay": True}, "decoupled_weight_decay", False, FREE),
]


@pytest.mark.parametrize(("options", "key", "value", "message"), GROUPED)
def test_setting_of_a_group_that_contradicts_an_option(options, key, value, message):
    optimizer, added = fastadam.Adam({"w": np.ones(4, F4)}, **options), {"added": np.ones(2, F4)}
    array, before = added["added"], dict(optimizer.param_groups[0])
    state = optimizer.state_dict()
    state["param_groups"][0][key] = value
    attempts = [
        lambda: optimizer.param_groups[0].update({key: value}),
        lambda: optimizer.add_param_group({"params": added, key: value}),
        lambda: optimizer.load_state_dict(state),
        lambda: fastadam.Adam([{"params": added, key: value}], **options),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="`") as raised:
            attempt()
        assert str(raised.value) == message
    assert added["added"] is array
    assert dict(optimizer.param_groups[0]) == before
    assert len(optimizer.param_groups) == 1
    optimizer.step({"w": np.ones(4, F4)})


OF_ADAM_STEP = {
    "no v_max": ({"amsgrad": True}, TypeError, "`v_max` must be an array with amsgrad=True and None without, got None"),
    "v_max": ({"v_max": np.ones(4, F4)}, TypeError, "`v_max` must be .* None without, got ndarray"),
    "no ema": ({"ema_decay": 0.5}, TypeError, "`ema` must be an array with ema_decay and None without, got NoneType"),
    "ema": ({"ema": np.ones(4, F4)}, TypeError, "`ema` must be .* None without, got ndarray"),
    "size of ema": ({"ema": np.ones(5, F4), "ema_decay": 0.5}, ValueError, r"`ema` must have shape \(4,\) like `p`"),
    "read-only v_max": ({"v_max": read_only(np.ones(4, F4)), "amsgrad": True}, ValueError, "`v_max` must be writable"),
    "read-only g": ({"g": read_only(np.ones(4, F4)), "zero_grad": True}, ValueError, "`g` must be writable"),
    "amsgrad in apex": (
        {"amsgrad": True, "v_max": np.ones(4, F4), "convention": "apex"},
        ValueError,
        "`amsgrad` must be",
    ),
    "free L2": ({"decouple_lr": True}, ValueError, "`decouple_lr` needs `decoupled_weight_decay`"),
    "norm": ({"max_grad_norm": 1.0}, TypeError, r"adam_step\(\) got an unexpected keyword argument 'max_grad_norm'"),
    "schedule": ({"lr": lambda step: 0.1}, TypeError, "`lr` must be a real number"),
    "rounding": ({"rounding": "up"}, ValueError, "`rounding` must be one of 'stochastic', 'nearest', got 'up'"),
    "seed": ({"seed": -1}, ValueError, "`seed` must be >= 0, got -1"),
    "dtype": (
        {"moment_dtype": "float8"},
        TypeError,
        r"adam_step\(\) got an unexpected keyword argument 'moment_dtype'",
    ),
    "dtype of ema": (
        {"ema": np.ones(4, bfloat16), "ema_decay": 0.5},
        TypeError,
        "`ema` must be float32 with `p` of float32, got bfloat16",
    ),
    "dtype of v_max": (
        {"v_max": np.ones(4, int), "amsgrad": True},
        TypeError,
        f"`v_max` must be {OF_FLOAT32}, got int64",
    ),
    "float32 with a remainder": (
        {"remainder": np.ones(4, np.uint16)},
        TypeError,
        "`remainder` must be uint16, beside `p` of bfloat16, got uint16 and float32",
    ),
    "exponents without codes": ({"v_exponent": np.ones(1, np.uint8)}, TypeError, "`v` must be uint8, got float32"),
}


@pytest.mark.parametrize(("changes", "error", "message"), table(OF_ADAM_STEP))
def test_option_of_adam_step(changes, error, message):
    assert_adam_step_refuses(changes, error, message)


# --- params


def listed_twice():
    array = np.ones(4, F4)
    return {"a": array, "b": array[1:3]}


PARAMS = {
    "number": (lambda: 3, TypeError, "`params` must be a NumPy or CuPy array.*, got int"),
    "nothing": (lambda: None, TypeError, "`params` .*NoneType"),
    "string": (lambda: "params", TypeError, "`params` .*str"),
    "tuple": (
        lambda: (np.ones(3),),
        TypeError,
        "`params` must be a dict, a list or .*, got tuple.*mutable",
    ),
    "generator": (lambda: (x for x in [np.ones(3)]), TypeError, "`params` must be a dict.*got generator"),
    "no entries": (dict, ValueError, "`params` must hold at least one parameter, got none"),
    "no groups": (list, ValueError, "`params` must hold at least one parameter, got none"),
    "empty group": (lambda: [{"params": []}], ValueError, r"`params\[0\]\['params'\]` must hold at least one"),
    "group without params": (lambda: [{"lr": 0.1}], TypeError, r"`params\[0\]` must be a dict with the key 'params'"),
    "group and array": (lambda: [{"params": [np.ones(2)]}, np.ones(2)], TypeError, r"`params\[1\]` must be a dict"),
    "list entry": (lambda: {"w": [1.0, 2.0]}, TypeError, r"`params\['w'\]` must be a NumPy or CuPy array.*got list"),
    "float entry": (lambda: [np.ones(2), 1.5], TypeError, r"`params\[1\]` must be .*got float"),
    "integers": (lambda: {"w": np.arange(3)}, TypeError, rf"`params\['w'\]` must be {DTYPES}.*int64"),
    "complex": (lambda: np.ones(3, complex), TypeError, f"`params` must be {DTYPES}.*complex128"),
    "booleans": (lambda: np.ones(3, bool), TypeError, f"`params` must be {DTYPES}.*bool"),
    "8-bit floats": (lambda: [np.ones(3, float8_e5m2)], TypeError, rf"`params\[0\]` must be {DTYPES}.*float8_e5m2"),
    "bits of bfloat16": (lambda: np.ones(3, np.uint16), TypeError, f"`params` must be {DTYPES}.*uint16"),
    "half, big-endian": (lambda: np.ones(3, ">f2"), TypeError, "`params` must be .*native byte order.*>f2"),
    "big-endian": (lambda: np.ones(3, ">f4"), TypeError, "`params` must be .*native byte order.*>f4"),
    "objects": (lambda: np.ones(3, object), TypeError, f"`params` must be {DTYPES}"),
    "masked": (lambda: np.ma.ones(3), TypeError, "`params` must be a plain array, got a masked array"),
    "mixed dtypes": (
        lambda: {"a": np.ones(3, F4), "b": np.ones(3)},
        TypeError,
        r"`params\['b'\]` must be float32 like `params\['a'\]`, got float64",
    ),
    "matrix": (lambda: np.ones((2, 3), F4), ValueError, r"`params` must be 1-D, got shape \(2, 3\)"),
    "strided": (lambda: np.ones(8, F4)[::2], ValueError, r"`params` must be contiguous, got strides \(8,\)"),
    "reversed": (lambda: np.ones(8, F4)[::-1], ValueError, r"`params` must be contiguous, got strides \(-4,\)"),
    "unaligned": (lambda: unaligned(8), ValueError, "`params` must be aligned to 4 bytes"),
    "read-only": (lambda: read_only(np.ones(3)), ValueError, "`params` must be writable, got a read-only array"),
    "read-only entry": (lambda: {"w": read_only(np.ones(3))}, ValueError, r"`params\['w'\]` must be writable"),
    "listed twice": (listed_twice, ValueError, r"`params\['b'\]` must not share memory with `params\['a'\]`"),
    "name in two groups": (
        lambda: [{"params": {"w": np.ones(2)}}, {"params": {"w": np.ones(2)}}],
        ValueError,
        r"`params\[1\]\['params'\]\['w'\]` must have a name of its own, got 'w' twice",
    ),
    "on another kind of device": (lambda: OnDevice(10), TypeError, "`params` must be in CPU or CUDA memory.*type 10"),
    "DLPack that fails": (lambda: OnDevice(1), TypeError, "`params` cannot be shared through DLPack"),
    "CUDA tensor": (
        lambda: {"w": OnDevice(2)},
        RuntimeError,
        r"`params\['w'\]` is in CUDA memory, which needs (a working GPU|CuPy): .",
    ),
    "CUDA array of CuPy": (
        lambda: {"w": cupy_array_without_a_gpu()},
        RuntimeError,
        r"`params\['w'\]` is in CUDA memory, which needs a working GPU",
    ),
    "flat CUDA array": (cupy_array_without_a_gpu, RuntimeError, "`params` is in CUDA memory"),
    "beside a CUDA array": (
        lambda: {"a": np.ones(4, F4), "b": cupy_array_without_a_gpu()},
        ValueError,
        r"`params\['b'\]` must be on cpu like `params\['a'\]`, got cuda:0",
    ),
}


def entries(params):
    if isinstance(params, dict):
        return list(params.values())
    return list(params) if isinstance(params, list) else []


@pytest.mark.parametrize(("make", "error", "message"), table(PARAMS))
def test_params(make, error, message):
    params = make()
    before = entries(params)
    with pytest.raises(error, match=message):
        fastadam.Adam(params)
    assert all(left is right for left, right in zip(entries(params), before, strict=True))


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        (np.ones(3), TypeError, "`param_group` must be a dict with the key 'params', got ndarray"),
        ({"lr": 0.1}, TypeError, "`param_group` must be a dict with the key 'params'"),
        ({"params": {}}, ValueError, r"`param_group\['params'\]` must hold at least one parameter"),
        ({"params": {"w": np.ones(2, F4)}}, ValueError, "got 'w' twice"),
        ({"params": [np.ones(2, int)]}, TypeError, rf"`param_group\['params'\]\[0\]` must be {DTYPES}"),
    ],
)
def test_added_group(group, error, message):
    optimizer = fastadam.Adam({"w": np.ones(4, F4)})
    with pytest.raises(error, match=message):
        optimizer.add_param_group(group)
    assert list(optimizer.params) == ["w"]
    optimizer.step({"w": np.ones(4, F4)})


def test_added_group_over_memory_that_trains_already():
    params = {"w": np.ones(4, F4)}
    optimizer = fastadam.Adam(params)
    with pytest.raises(ValueError, match=r"`param_group\['params'\]\['again'\]` must not share memory with"):
        optimizer.add_param_group({"params": {"again": params["w"]}})


# --- gradients of a step


def gradients(**changes):
    grads = {"w": np.ones((3, 4), F4), "b": np.ones((), F4)} | changes
    return {name: value for name, value in grads.items() if value is not None}


GRADIENTS = {
    "transposed": (
        lambda: gradients(w=np.ones((4, 3), F4)),
        ValueError,
        r"`grads\['w'\]` must have shape \(3, 4\) like its parameter, got \(4, 3\)",
    ),
    "to broadcast": (lambda: gradients(w=np.ones(4, F4)), ValueError, r"`grads\['w'\]` .*got \(4,\)"),
    "one element for a scalar": (lambda: gradients(b=np.ones(1, F4)), ValueError, r"`grads\['b'\]` .*got \(1,\)"),
    "float64": (lambda: gradients(w=np.ones((3, 4))), TypeError, r"`grads\['w'\]` must be float32 .*got float64"),
    "integers": (lambda: gradients(b=np.int32(1)), TypeError, r"`grads\['b'\]` must be float32 .*got int32"),
    "Python float": (lambda: gradients(b=1.0), TypeError, r"`grads\['b'\]` must be a NumPy or CuPy array.*got float"),
    "nothing": (lambda: gradients() | {"w": None}, TypeError, r"`grads\['w'\]` .*got NoneType"),
    "masked": (lambda: gradients(w=np.ma.ones((3, 4), F4)), TypeError, r"`grads\['w'\]` .*masked"),
    "missing": (lambda: gradients(b=None), ValueError, "`grads` must have an entry for every parameter.*'b'"),
    "unknown": (lambda: gradients(c=np.ones(3, F4)), ValueError, r"`grads` must have .* no other, got \['c'\]"),
    "empty": (dict, ValueError, "`grads` must have an entry for every parameter"),
    "list": (lambda: [np.ones((3, 4), F4), np.ones((), F4)], TypeError, "`grads` must be a NumPy or CuPy array.*list"),
    "number": (lambda: 1.0, TypeError, "`grads` must be .*got float"),
    "flat of another size": (lambda: np.ones(13, F4), ValueError, r"`grads` must have shape \(17,\).*got \(13,\)"),
    "flat of another dtype": (
        lambda: np.ones(17),
        TypeError,
        "`grads` must be float32 like .*`buffers.g`, got float64",
    ),
    "flat with gaps": (lambda: np.ones(34, F4)[::2], ValueError, "`grads` must be contiguous"),
    "unaligned": (lambda: unaligned(17), ValueError, "`grads` must be aligned"),
    "CUDA tensor": (lambda: gradients(w=OnDevice(2)), RuntimeError, r"`grads\['w'\]` is in CUDA memory"),
    "flat CUDA tensor": (lambda: OnDevice(2), RuntimeError, "`grads` is in CUDA memory"),
}


@pytest.mark.parametrize(("make", "error", "message"), table(GRADIENTS))
def test_gradients(make, error, message):
    assert_step_refuses(make(), {}, error, message)


@pytest.mark.parametrize("stored", [np.float16, bfloat16], ids=["float16", "bfloat16"])
def test_dtype_of_gradients_is_that_of_grad_dtype(stored):
    optimizer = fastadam.Adam({"w": np.ones((3, 4), F4)}, grad_dtype=np.dtype(stored).name)
    before, name = memory(optimizer), np.dtype(stored).name
    for other in (np.float32, np.float64, np.uint16):
        with pytest.raises(TypeError, match=rf"`grads\['w'\]` must be {name} .*got {np.dtype(other).name}"):
            optimizer.step({"w": np.ones((3, 4), other)})
        with pytest.raises(TypeError, match=rf"`grads` must be {name} like .*, got {np.dtype(other).name}"):
            optimizer.step(np.ones(12, other))
    assert memory(optimizer) == before
    optimizer.step({"w": np.ones((3, 4), stored)})


@pytest.mark.parametrize("flat", ["remainder", "m_exponent", "v_exponent"])
def test_flat_gradient_over_stored_arrays(flat):
    optimizer = fastadam.Adam(np.ones(4096, bfloat16), master_weights=True, moment_dtype="float8")
    vars(optimizer.buffers)[flat] = np.zeros(4096, bfloat16)
    with pytest.raises(ValueError, match=f"`grads` must not overlap `buffers.{flat}`"):
        optimizer.step(getattr(optimizer.buffers, flat))


@pytest.mark.parametrize("flat", ["p", "m", "v", "v_max", "ema"])
def test_flat_gradient_over_a_buffer_that_a_step_writes(flat):
    optimizer = fastadam.Adam(np.ones(20, F4), amsgrad=True, ema_decay=0.5)
    buffer = getattr(optimizer.buffers, flat)
    before = memory(optimizer)
    with pytest.raises(ValueError, match=f"`grads` must not overlap `buffers.{flat}`"):
        optimizer.step(buffer)
    assert memory(optimizer) == before


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (-1.0, ValueError, r"`grad_scale` must be >= 0, got -1\.0"),
        (NAN, ValueError, "`grad_scale` must be finite, got nan"),
        (INF, ValueError, "`grad_scale` must be finite, got inf"),
        ("1", TypeError, "`grad_scale` must be a real number, got '1'"),
        (None, TypeError, "`grad_scale` must be a real number, got None"),
    ],
)
def test_gradient_scale(scale, error, message):
    assert_step_refuses(gradients(), {"grad_scale": scale}, error, message)
    assert_adam_step_refuses({"grad_scale": scale}, error, message)


def assert_step_refuses(grads, options, error, message):
    optimizers = [fastadam.Adam({"w": np.ones((3, 4), F4), "b": np.ones((), F4)}) for _ in range(2)]
    for optimizer in optimizers:
        optimizer.step(gradients())
    with pytest.raises(error, match=message):
        optimizers[0].step(grads, **options)
    for optimizer in optimizers:
        optimizer.step(gradients())
    assert optimizers[0].state_dict()["state"]["w"]["step"] == 2
    for name in "pmv":
        np.testing.assert_array_equal(*(getattr(optimizer.buffers, name) for optimizer in optimizers))


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("w", np.ones((4, 3)), ValueError, r"`w` must have shape \(3, 4\), got \(4, 3\)"),
        ("w", np.ones(4), ValueError, r"`w` must have shape \(3, 4\), got \(4,\)"),
        ("w", 1j, TypeError, "`w` must be real, got complex numbers"),
        ("w", np.ones((3, 4), complex), TypeError, "`w` must be real, got complex numbers"),
        ("c", 1.0, KeyError, "'c'"),
    ],
)
def test_assignment_to_a_view(name, value, error, message):
    optimizer = fastadam.Adam({"w": np.ones((3, 4), F4)})
    with pytest.raises(error, match=message):
        optimizer.grads[name] = value
    np.testing.assert_array_equal(optimizer.grads["w"], 0.0)


# --- the arrays and the step of adam_step

ARRAYS = {
    "no array": ("g", lambda: [0.0] * 4, TypeError, "`g` must be a NumPy or CuPy array.*got list"),
    "integers": ("p", lambda: np.arange(4), TypeError, f"`p` must be {DTYPES}.*int64"),
    "complex": ("p", lambda: np.ones(4, complex), TypeError, f"`p` must be {DTYPES}.*complex128"),
    "dtype of g": ("g", lambda: np.ones(4), TypeError, f"`g` must be {OF_FLOAT32}, got float64"),
    "dtype of v": ("v", lambda: np.ones(4), TypeError, f"`v` must be {OF_MOMENT.format('v')}, got float64"),
    "codes alone": ("m", lambda: np.ones(4, np.uint8), TypeError, f"`m` must be {OF_MOMENT.format('m')}, got uint8"),
    "v in float16": (
        "v",
        lambda: np.ones(4, np.float16),
        ValueError,
        r"`eps` must be >= .*2\*\*-12.*float16, got 1e-08",
    ),
    "size of g": ("g", lambda: np.ones(1, F4), ValueError, r"`g` must have shape \(4,\) like `p`, got \(1,\)"),
    "size of m": ("m", lambda: np.ones(5, F4), ValueError, r"`m` must have shape \(4,\) like `p`, got \(5,\)"),
    "shape of p": ("p", lambda: np.ones((2, 2), F4), ValueError, r"`p` must be 1-D, got shape \(2, 2\)"),
    "read-only p": ("p", lambda: read_only(np.ones(4, F4)), ValueError, "`p` must be writable"),
    "read-only m": ("m", lambda: read_only(np.ones(4, F4)), ValueError, "`m` must be writable"),
    "read-only v": ("v", lambda: read_only(np.ones(4, F4)), ValueError, "`v` must be writable"),
    "strided p": ("p", lambda: np.ones(8, F4)[::2], ValueError, "`p` must be contiguous"),
    "strided g": ("g", lambda: np.ones(8, F4)[::2], ValueError, "`g` must be contiguous"),
    "unaligned v": ("v", lambda: unaligned(4), ValueError, "`v` must be aligned"),
    "CUDA g": ("g", cupy_array_without_a_gpu, ValueError, "`g` must be on cpu like `p`, got cuda:0"),
    "CUDA p": ("p", cupy_array_without_a_gpu, ValueError, "`g` must be on cuda:0 like `p`, got cpu"),
}


@pytest.mark.parametrize(("name", "make", "error", "message"), table(ARRAYS))
def test_arrays_of_adam_step(name, make, error, message):
    assert_adam_step_refuses({name: make()}, error, message)


@pytest.mark.parametrize("name", ["p", "g", "m", "v"])
@pytest.mark.parametrize("dtype", [">f4", ">f2"])
def test_byte_order_of_the_arrays_of_adam_step(name, dtype):
    message = rf"`{name}` must be .*{dtype}"
    assert_adam_step_refuses({name: np.ones(4, dtype), "eps": 1e-3}, TypeError, message)


STORED = {
    "remainder is no array": ({"remainder": [0] * 4}, TypeError, "`remainder` must be a NumPy or CuPy array.*got list"),
    "dtype of remainder": (
        {"remainder": np.ones(4, np.uint8)},
        TypeError,
        "`remainder` must be uint16, beside `p` of bfloat16, got uint8 and bfloat16",
    ),
    "size of remainder": (
        {"remainder": np.ones(5, np.uint16)},
        ValueError,
        r"`remainder` must have shape \(4,\) like `p`, got \(5,\)",
    ),
    "read-only remainder": (
        {"remainder": read_only(np.ones(4, np.uint16))},
        ValueError,
        "`remainder` must be writable",
    ),
    "no exponents": (
        {"m_exponent": None},
        TypeError,
        "`m` must be float32 or bfloat16 or float16, or uint8 with `m_exponent`, with `p` of bfloat16, got uint8",
    ),
    "exponents are no array": ({"v_exponent": 3}, TypeError, "`v_exponent` must be a NumPy or CuPy array.*got int"),
    "dtype of exponents": ({"m_exponent": np.ones(1, np.int8)}, TypeError, "`m_exponent` must be uint8, got int8"),
    "number of exponents": (
        {"v_exponent": np.ones(2, np.uint8)},
        ValueError,
        r"`v_exponent` must have shape \(1,\), one for each block of 128 codes, got \(2,\)",
    ),
    "read-only exponents": (
        {"m_exponent": read_only(np.ones(1, np.uint8))},
        ValueError,
        "`m_exponent` must be writable",
    ),
    "codes with a sign": ({"m": np.ones(4, np.int8)}, TypeError, "`m` must be uint8, got int8"),
    "float64 gradients": (
        {"g": np.ones(4)},
        TypeError,
        "`g` must be float32 or bfloat16 or float16 with `p` of bfloat16, got float64",
    ),
    "codes beside float64": (
        {"p": np.ones(4), "g": np.ones(4), "remainder": None},
        TypeError,
        "`m` must be float64 with `p` of float64, got uint8",
    ),
}


@pytest.mark.parametrize(("changes", "error", "message"), table(STORED))
def test_stored_arrays_of_adam_step(changes, error, message):
    arrays = {"p": np.ones(4, bfloat16), "g": np.ones(4, bfloat16), "remainder": np.ones(4, np.uint16)}
    for name in "mv":
        arrays |= {name: np.ones(4, np.uint8), f"{name}_exponent": np.full(1, 100, np.uint8)}
    before = {name: array.tobytes() for name, array in arrays.items()}
    with pytest.raises(error, match=message):
        fastadam.adam_step(**(arrays | changes), step=1)
    assert {name: array.tobytes() for name, array in arrays.items()} == before
    fastadam.adam_step(**arrays, step=1)
    assert arrays["remainder"].tobytes() != before["remainder"]


@pytest.mark.parametrize("pair", [("remainder", "p"), ("m_exponent", "m"), ("v_exponent", "v"), ("v_exponent", "m")])
def test_overlapping_stored_arrays_of_adam_step(pair):
    arrays = {"p": np.ones(4, bfloat16), "g": np.ones(4, bfloat16), "remainder": np.ones(4, np.uint16)}
    for name in "mv":
        arrays |= {name: np.ones(4, np.uint8), f"{name}_exponent": np.full(1, 100, np.uint8)}
    left, right = pair
    arrays[left] = arrays[right].view(arrays[left].dtype)[: arrays[left].size]
    with pytest.raises(ValueError, match=f"`{left}` must not overlap `{right}`"):
        fastadam.adam_step(**arrays, step=1)


@without_gpu
def test_adam_step_on_cupy_arrays():
    cupy = pytest.importorskip("cupy")
    memory = [cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(4096 * k, 16, None, 0), 0) for k in range(1, 5)]
    with pytest.raises(RuntimeError, match="`p` is in CUDA memory, which needs a working GPU"):
        fastadam.adam_step(*(cupy.ndarray((4,), F4, pointer) for pointer in memory), step=1)


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (0, ValueError, "`step` must be >= 1, got 0"),
        (-5, ValueError, "`step` must be >= 1, got -5"),
        (1.0, TypeError, r"`step` must be an integer, got 1\.0"),
        (NAN, TypeError, "`step` must be an integer, got nan"),
        ("1", TypeError, "`step` must be an integer, got '1'"),
        (None, TypeError, "`step` must be an integer, got None"),
    ],
)
def test_step_of_adam_step(step, error, message):
    assert_adam_step_refuses({"step": step}, error, message)


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize(("left", "right"), ["pg", "pm", "pv", "gm", "gv", "mv"])
def test_overlapping_arrays_of_adam_step(left, right, shift):
    memory = np.ones(4 + shift, F4)
    overlapping = {left: memory[:4], right: memory[shift:]}
    assert_adam_step_refuses(overlapping, ValueError, f"`{right}` must not overlap `{left}`")
    np.testing.assert_array_equal(memory, 1.0)


def assert_adam_step_refuses(changes, error, message):
    arguments = {name: np.full(4, position, F4) for position, name in enumerate("pgmv")} | {"step": 1}
    kept = {name: arguments[name] for name in "pmv"}
    with pytest.raises(error, match=message):
        fastadam.adam_step(**(arguments | changes))
    for name, position in (("p", 0), ("m", 2), ("v", 3)):
        np.testing.assert_array_equal(kept[name], position)
