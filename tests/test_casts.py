"""The 16-bit copies: every rounding of float32 to bfloat16 and float16, the same on every kernel."""

import re

import numba
import numpy as np
import pytest
from machine_code import FUSED, SHIFTED
from numba import njit

from fastadam.kernels import casts, cpu

try:
    from cuda_host import HAS_COMPILER, on_host, patch_cuda
except ImportError:
    HAS_COMPILER = False

KINDS = {"bfloat16": casts.to_bfloat16, "float16": casts.to_float16}
kinds = pytest.mark.parametrize("kind", KINDS)
INFINITY = {"bfloat16": 0x7F80, "float16": 0x7C00}

# Around nothing, and around the halves of the last places of bfloat16 and of float16.
LOW_HALVES = np.array(
    [0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001, 0xCFFF, 0xD000, 0xFFFF], np.uint32
)


def all_high_halves():
    """float32 with every one of the 65,536 high halves and each of `LOW_HALVES`."""
    high = np.arange(65_536, dtype=np.uint32) << np.uint32(16)
    return (high[:, None] | LOW_HALVES).ravel().view(np.float32)


def float16_midpoints():
    """Every float32 half way between two neighbouring float16, that to infinity too, and its own neighbours."""
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (finite + np.append(finite[1:], np.float32(65_536))) / np.float32(2)
    near = [middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf)), finite]
    return np.concatenate([*near, *(-values for values in near)])


VALUES = np.concatenate([all_high_halves(), float16_midpoints()])


def nearest(values, kind):
    """The bits of the nearest number of `kind` by search among all, with ties to even bits; for numbers >= 0."""
    if kind == "float16":
        numbers = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float64)
    else:
        numbers = (np.arange(0x7F81, dtype=np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    # Infinity takes the place of the number after the largest.
    numbers[-1] = 2.0 ** (16 if kind == "float16" else 128)
    exact = np.minimum(values.astype(np.float64), numbers[-1])
    above = np.clip(np.searchsorted(numbers, exact), 1, len(numbers) - 1)
    below = above - 1
    to_above, to_below = numbers[above] - exact, exact - numbers[below]
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    return np.where(up, above, below).astype(np.uint16)


def is_nan(bits, kind):
    return (bits & 0x7FFF) > INFINITY[kind]


def assert_same_numbers(actual, expected, kind, values):
    """The same bits; NaN where NaN."""
    np.testing.assert_array_equal(is_nan(actual, kind), np.isnan(values))
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(actual[numbers], expected[numbers])


@pytest.fixture(scope="module")
def compiled():
    """Kind -> the compiled loop that rounds an array."""
    return {kind: loop_of(kind) for kind in KINDS}


def loop_of(kind):
    cast = KINDS[kind]

    @njit(error_model="numpy")
    def loop(values, out):
        for index in range(values.size):
            out[index] = cast(values[index])

    for number in (numba.float32, numba.float64):
        loop.compile((number[::1], numba.uint16[::1]))
    return loop


@kinds
def test_reference_rounds_to_the_nearest_and_ties_to_even(kind):
    actual = KINDS[kind](VALUES)
    numbers = ~np.isnan(VALUES)
    expected = nearest(np.abs(VALUES[numbers]), kind) | np.where(np.signbit(VALUES[numbers]), 0x8000, 0).astype("u2")
    np.testing.assert_array_equal(actual[numbers], expected)
    assert is_nan(actual[~numbers], kind).all()


@kinds
def test_reference_equals_torch(kind):
    torch = pytest.importorskip("torch")
    expected = torch.tensor(VALUES).to(getattr(torch, kind)).view(torch.int16).numpy().view(np.uint16)
    assert_same_numbers(KINDS[kind](VALUES), expected, kind, VALUES)


def test_reference_equals_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with np.errstate(all="ignore"):
        expected = VALUES.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert_same_numbers(casts.to_bfloat16(VALUES), expected, "bfloat16", VALUES)


@kinds
def test_cpu_equals_the_reference(kind, compiled):
    out = np.zeros(VALUES.size, np.uint16)
    compiled[kind](VALUES, out)
    assert_same_numbers(out, KINDS[kind](VALUES), kind, VALUES)


@kinds
def test_infinity_keeps_its_sign_and_nan_its_nature(kind, compiled):
    for infinity, bits in ((np.inf, INFINITY[kind]), (-np.inf, INFINITY[kind] | 0x8000)):
        assert KINDS[kind](np.float32(infinity)) == bits
    payloads = np.concatenate([np.arange(1, 2**23, 4_097), [2**22, 2**23 - 1]]).astype(np.uint32) | 0x7F800000
    values, out = np.concatenate([payloads, payloads | 0x80000000]).view(np.float32), np.zeros(0, np.uint16)
    out.resize(values.size)
    compiled[kind](values, out)
    assert is_nan(out, kind).all()
    assert is_nan(KINDS[kind](values), kind).all()


@pytest.fixture
def double_values():
    """Values of float64 around the float32 ones, which are rounded twice."""
    with np.errstate(invalid="ignore"):
        values = VALUES[::7].astype(np.float64)
    return np.concatenate([values, np.nextafter(values, 0.0), np.nextafter(values, np.inf)])


@kinds
def test_float64_is_rounded_to_float32_first(kind, compiled, double_values):
    with np.errstate(over="ignore"):
        single, actual = double_values.astype(np.float32), KINDS[kind](double_values)
    expected, out = KINDS[kind](single), np.zeros(double_values.size, np.uint16)
    assert_same_numbers(actual, expected, kind, double_values)
    compiled[kind](double_values, out)
    assert_same_numbers(out, expected, kind, double_values)


@pytest.mark.skipif(not HAS_COMPILER, reason="needs CuPy and g++")
@kinds
def test_cuda_equals_the_reference(kind, double_values, monkeypatch):
    from fastadam.kernels import cuda

    patch_cuda(monkeypatch)
    for values in (VALUES, double_values):
        out = np.zeros(values.size, np.uint16)
        cuda.copy_out(on_host(values), out, kind)
        with np.errstate(over="ignore"):
            assert_same_numbers(out, KINDS[kind](values), kind, values)


@kinds
def test_copy_out_on_the_cpu(kind):
    out = np.zeros(VALUES.size, np.uint16)
    cpu.copy_out(VALUES, out, kind)
    assert_same_numbers(out, KINDS[kind](VALUES), kind, VALUES)


@kinds
def test_loop_is_vectorised_in_32_bits(kind, compiled):
    assembly = compiled[kind].inspect_asm(compiled[kind].signatures[0])
    assert re.search(SHIFTED, assembly)
    assert not re.search(FUSED, assembly)
    assert not re.search(r"\bv?psrlq\b", assembly), "half the lanes are lost"
