"""Arguments of `adam_step` that are refused: no array is written."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from refusal import (
    DTYPES,
    F4,
    NAN,
    adam_step_refuses,
    cupy_array_without_a_gpu,
    read_only,
    refuses,
    table,
    unaligned,
    without_gpu,
)

import fastadam

OF_FLOAT32 = "float32 or bfloat16 or float16 with `p` of float32"
OF_MOMENT = "float32 or bfloat16 or float16, or uint8 with `{}_exponent`, with `p` of float32"

# --- options

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
    adam_step_refuses(changes, error, message)


# --- arrays

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
    adam_step_refuses({name: make()}, error, message)


@pytest.mark.parametrize("name", ["p", "g", "m", "v"])
@pytest.mark.parametrize("dtype", [">f4", ">f2"])
def test_byte_order_of_the_arrays_of_adam_step(name, dtype):
    message = rf"`{name}` must be .*{dtype}"
    adam_step_refuses({name: np.ones(4, dtype), "eps": 1e-3}, TypeError, message)


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
        r"`v_exponent` must have shape \(1,\), one for each group of 128 codes, got \(2,\)",
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


def stored_arrays():
    """Arguments of `adam_step` for bfloat16 parameters with their remainder and moments in codes."""
    arrays = {"p": np.ones(4, bfloat16), "g": np.ones(4, bfloat16), "remainder": np.ones(4, np.uint16)}
    for name in "mv":
        arrays |= {name: np.ones(4, np.uint8), f"{name}_exponent": np.full(1, 100, np.uint8)}
    return arrays


@pytest.mark.parametrize(("changes", "error", "message"), table(STORED))
def test_stored_arrays_of_adam_step(changes, error, message):
    arrays = stored_arrays()
    refuses(lambda: fastadam.adam_step(**(arrays | changes), step=1), error, message, arrays)
    before = arrays["remainder"].tobytes()
    fastadam.adam_step(**arrays, step=1)
    assert arrays["remainder"].tobytes() != before


@pytest.mark.parametrize("pair", [("remainder", "p"), ("m_exponent", "m"), ("v_exponent", "v"), ("v_exponent", "m")])
def test_overlapping_stored_arrays_of_adam_step(pair):
    arrays, (left, right) = stored_arrays(), pair
    arrays[left] = arrays[right].view(arrays[left].dtype)[: arrays[left].size]
    message = f"`{left}` must not overlap `{right}`"
    refuses(lambda: fastadam.adam_step(**arrays, step=1), ValueError, message, arrays)


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
    adam_step_refuses({"step": step}, error, message)


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize(("left", "right"), ["pg", "pm", "pv", "gm", "gv", "mv"])
def test_overlapping_arrays_of_adam_step(left, right, shift):
    memory = np.ones(4 + shift, F4)
    overlapping = {left: memory[:4], right: memory[shift:]}
    adam_step_refuses(overlapping, ValueError, f"`{right}` must not overlap `{left}`")
    np.testing.assert_array_equal(memory, 1.0)
