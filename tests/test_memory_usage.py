"""`memory_usage`: bytes of every buffer, before and after, and how they are printed."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from training import both, make

import fastadam

SIZE = 1_000_000
MASTERS = {"master_weights": True, "moment_dtype": "float8"}
# dtype of the parameters, options, bytes a parameter of p, g, m and v together; the exponents are 2 / 128.
BYTES = {
    "float32": (np.float32, {}, 16.0),
    "float64": (np.float64, {}, 32.0),
    "bfloat16 moments": (np.float32, {"moment_dtype": "bfloat16"}, 12.0),
    "float16 and bfloat16": (np.float32, {"moment_dtype": ("float16", "bfloat16")}, 12.0),
    "float8": (np.float32, {"moment_dtype": "float8"}, 10.0 + 2 / 128),
    "float8 and float32": (np.float32, {"moment_dtype": ("float8", None)}, 13.0 + 1 / 128),
    "all bfloat16": (bfloat16, {"moment_dtype": "bfloat16"}, 8.0),
    "bfloat16 and float8": (bfloat16, {"moment_dtype": "float8"}, 6.0 + 2 / 128),
    "all float16": (np.float16, {"moment_dtype": ("float16", "bfloat16")}, 8.0),
    "bfloat16 parameters": (bfloat16, {}, 12.0),
    "bfloat16 gradients": (np.float32, {"grad_dtype": "bfloat16"}, 14.0),
    "masters": (bfloat16, {"master_weights": True}, 14.0),
    "masters and float8": (bfloat16, MASTERS, 8.0 + 2 / 128),
}


@pytest.mark.parametrize(("dtype", "options", "expected"), BYTES.values(), ids=BYTES)
def test_bytes_a_parameter(dtype, options, expected):
    usage = fastadam.Adam({"w": np.zeros(SIZE, dtype)}, **options).memory_usage()
    assert usage.parameters == SIZE
    assert usage.nbytes / SIZE == pytest.approx(expected, abs=1e-4)
    assert usage.plain_nbytes == SIZE * (32 if dtype == np.float64 else 16)
    assert [buffer.name for buffer in usage.buffers] == ["p", "g", "m", "v"]


@both
def test_bytes_are_those_of_the_arrays(flat):
    options = {**MASTERS, "amsgrad": True, "ema_decay": 0.9}
    shapes = {"large": (100, 77), "small": (3,), "b": (), "more": (64, 65)}
    opt = fastadam.Adam(make(shapes, dtype=bfloat16), flat=flat, **options)
    opt.step(dict(opt.grads))
    usage, stored = opt.memory_usage(), {}
    for buffers in opt.all_buffers:
        for name, array in buffers.flats.items():
            buffer = {"remainder": "p"}.get(name, name.removesuffix("_exponent"))
            stored[buffer] = stored.get(buffer, 0) + array.nbytes
    if not flat:
        stored["p"] += sum(view.nbytes for view in opt.params.values())
    assert {buffer.name: buffer.nbytes for buffer in usage.buffers} == stored
    assert usage.nbytes == sum(stored.values())
    assert usage.parameters == 7700 + 3 + 1 + 4160
    described = {buffer.name: buffer.dtypes for buffer in usage.buffers}
    assert described == {
        "p": "bfloat16 + uint16",
        "g": "bfloat16",
        "m": "uint8 + uint8, float32",
        "v": "uint8 + uint8, float32",
        "v_max": "float32",
        "ema": "float32",
    }


@pytest.mark.parametrize(
    ("member", "options", "expected"),
    [
        ("Lion", {}, {"p": 4.0, "g": 4.0, "m": 4.0}),
        ("Lion", {"moment_dtype": "float8"}, {"p": 4.0, "g": 4.0, "m": 1 + 1 / 128}),
        ("AdEMAMix", {}, {"p": 4.0, "g": 4.0, "m": 4.0, "m_slow": 4.0, "v": 4.0}),
        (
            "AdEMAMix",
            {"moment_dtype": ("float8", "bfloat16")},
            {"p": 4.0, "g": 4.0, "m": 1 + 1 / 128, "m_slow": 1 + 1 / 128, "v": 2.0},
        ),
        ("Adamax", {"moment_dtype": "bfloat16"}, {"p": 4.0, "g": 4.0, "m": 2.0, "v": 2.0}),
    ],
)
def test_members_have_what_they_keep(member, options, expected):
    usage = getattr(fastadam, member)({"w": np.zeros(SIZE, np.float32)}, **options).memory_usage()
    assert {buffer.name: buffer.nbytes / SIZE for buffer in usage.buffers} == pytest.approx(expected, abs=1e-4)
    assert list(expected) == [buffer.name for buffer in usage.buffers]


def test_dtypes_of_several_parameters_are_listed():
    opt = fastadam.Adam({"w": np.zeros(SIZE, np.float32), "k": np.zeros(SIZE, np.float64)}, ema_decay=0.5)
    assert {buffer.name: buffer.dtypes for buffer in opt.memory_usage().buffers} == dict.fromkeys(
        ("p", "g", "m", "v", "ema"), "float32, float64"
    )
    assert opt.memory_usage().nbytes == opt.memory_usage().plain_nbytes == 5 * 12 * SIZE


def test_gradients_count_wherever_they_lie():
    flat = np.zeros(SIZE, np.float32)
    opt = fastadam.AdamW(flat, grad_dtype="bfloat16")
    before = opt.memory_usage()
    opt.step(np.zeros(SIZE, bfloat16))
    assert "g" not in opt.buffers.flats
    assert opt.memory_usage() == before


def test_groups_of_later_count():
    opt = fastadam.Adam({"w": np.zeros(SIZE, np.float32)}, moment_dtype="bfloat16")
    before = opt.memory_usage()
    opt.add_param_group({"params": {"k": np.zeros(1000, np.float32)}})
    after = opt.memory_usage()
    assert after.parameters - before.parameters == 1000
    assert after.nbytes - before.nbytes == 12 * 1000
    assert after.plain_nbytes - before.plain_nbytes == 16 * 1000


def test_no_parameters():
    usage = fastadam.Adam({"none": np.zeros((0, 3))}).memory_usage()
    assert (usage.parameters, usage.nbytes) == (1, 0)
    assert "all" in str(usage)


PRINTED = """\
1,000,000 parameters; bytes a parameter, plain and as stored, gaps between them included
buffer stored as                 plain   stored          in all
p      float32                   4.000    4.000          4.0 MB
g      bfloat16                  4.000    2.000          2.0 MB
m      uint8 + uint8             4.000    1.008          1.0 MB
v      bfloat16                  4.000    2.000          2.0 MB
all                             16.000    9.008          9.0 MB"""


def test_printed_form():
    opt = fastadam.Adam({"w": np.zeros(SIZE, np.float32)}, moment_dtype=("float8", "bfloat16"), grad_dtype="bfloat16")
    assert str(opt.memory_usage()) == PRINTED
