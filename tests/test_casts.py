"""Every rounding of float32 to 16 bits and back, and the random words of it, the same on every kernel."""

import re
from functools import cache
from itertools import combinations

import numba
import numpy as np
import pytest
from machine_code import FUSED, SHIFTED
from numba import njit
from oracle import toss

from fastadam.kernels import cpu, reference, stored
from fastadam.kernels.cpu.casts import COMPILED, SPREADS
from fastadam.kernels.subnormals import flushed
from fastadam.kernels.texts import casts
from fastadam.kernels.texts.formats import FORMATS

try:
    from cuda_host import HAS_COMPILER, cuda_on_host, on_host, run_on_host
except ImportError:
    HAS_COMPILER = False

# The reference runs them like this.
quietly = np.errstate(all="ignore")
KINDS = {"bfloat16": quietly(casts.to_bfloat16), "float16": quietly(casts.to_float16)}
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
    cast = COMPILED[f"to_{kind}"]

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
def test_cuda_equals_the_reference(kind, double_values):
    from fastadam.kernels import cuda

    for values in (VALUES, double_values):
        out = np.zeros(values.size, np.uint16)
        with cuda_on_host():
            cuda.copy_out(on_host(values), on_host(out), kind)
        # What is subnormal in float32 is zero.
        with np.errstate(over="ignore"), flushed():
            assert_same_numbers(out, KINDS[kind](values), kind, values)


@kinds
def test_copy_out_on_the_cpu(kind, double_values):
    for values in (VALUES, double_values):
        out, same = np.zeros((2, values.size), np.uint16)
        cpu.copy_out(values, out, kind)
        reference.copy_out(values, same, kind)
        np.testing.assert_array_equal(out, same)
        with np.errstate(over="ignore"), flushed():
            assert_same_numbers(out, KINDS[kind](values), kind, values)


@kinds
def test_loop_is_vectorised_in_32_bits(kind, compiled):
    assembly = compiled[kind].inspect_asm(compiled[kind].signatures[0])
    assert re.search(SHIFTED, assembly)
    assert not re.search(FUSED, assembly)
    assert not re.search(r"\bv?psrlq\b", assembly), "half the lanes are lost"


# --- back to float32, stochastic rounding and halves, on each kernel

HALVES = np.arange(65_536, dtype=np.uint32).astype(np.uint16)
SUBNORMALS = np.concatenate([np.arange(1, 2**23, 1_021), [2**23 - 1]]).astype(np.uint32).view(np.float32)
SAMPLE = np.concatenate([all_high_halves(), SUBNORMALS, -SUBNORMALS])
ON_NUMPY, ON_NUMBA, ON_CUDA = "numpy", "numba", "cuda"
where_it_runs = pytest.mark.parametrize(
    "place",
    [
        ON_NUMPY,
        ON_NUMBA,
        pytest.param(ON_CUDA, marks=pytest.mark.skipif(not HAS_COMPILER, reason="needs CuPy and g++")),
    ],
)


def run(name, place, dtype, *arguments):
    """What the cast `name` makes of arrays of one size, as an array of `dtype`."""
    if place == ON_NUMPY:
        with np.errstate(all="ignore"):
            return getattr(casts, name)(*arguments)
    out = np.zeros(arguments[0].size, dtype)
    if place == ON_NUMBA:
        loop_over(name, len(arguments))(out, *arguments)
        return out
    kernel = kernel_over(name, out.dtype, *(argument.dtype for argument in arguments))
    run_on_host(kernel, (*arguments, out), out.size)
    return out


@cache
def kernel_over(name, dtype, *dtypes):
    """The CUDA kernel that does the same."""
    from fastadam.kernels.cuda.source import kernel_of

    inputs = [f"raw {each} given{index}" for index, each in enumerate(dtypes)]
    call = f"out[i] = {name}({', '.join(f'given{index}[i]' for index in range(len(dtypes)))});"
    return kernel_of(f"test_{name}", inputs, [f"raw {dtype} out"], call)


@cache
def loop_over(name, count):
    """The compiled loop over arrays of the arguments of a cast."""
    cast = COMPILED[name]

    def one(out, first):
        for index in range(out.size):
            out[index] = cast(first[index])

    def two(out, first, second):
        for index in range(out.size):
            out[index] = cast(first[index], second[index])

    return njit({1: one, 2: two}[count], error_model="numpy")


def bits(values):
    return np.asarray(values, np.float32).view(np.uint32)


def assert_same_floats(actual, expected):
    """The same bits; NaN where NaN."""
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), ~numbers)
    np.testing.assert_array_equal(bits(actual)[numbers], bits(expected)[numbers])


@where_it_runs
@kinds
def test_every_16_bit_pattern_is_the_number_of_the_other_libraries(kind, place):
    if kind == "float16":
        expected = HALVES.view(np.float16).astype(np.float32)
    else:
        expected = HALVES.view(pytest.importorskip("ml_dtypes").bfloat16).astype(np.float32)
    assert_same_floats(run(f"from_{kind}", place, np.float32, HALVES), expected)


@kinds
def test_what_16_bits_hold_is_rounded_to_itself(kind):
    numbers = HALVES[~is_nan(HALVES, kind)]
    np.testing.assert_array_equal(KINDS[kind](getattr(casts, f"from_{kind}")(numbers)), numbers)


def dithered(value, place, thresholds):
    values = np.full(thresholds.size, value, np.float32)
    return run("dither_bfloat16", place, np.uint16, values, thresholds)


@where_it_runs
@pytest.mark.parametrize("lower", [0, 1, 2, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF])
def test_as_many_thresholds_round_up_as_the_lower_half_says(place, lower):
    thresholds = np.arange(65_536, dtype=np.uint32)
    for upper in (0x0000, 0x0001, 0x007F, 0x0080, 0x3F80, 0x7F7E, 0x8000, 0xC2F1, 0xFF7E):
        value = np.array([upper << 16 | lower], np.uint32).view(np.float32)[0]
        steps = dithered(value, place, thresholds).astype(int) - upper
        assert set(steps) <= {0, 1}
        assert steps.sum() == lower


@where_it_runs
def test_dithering_keeps_infinity_nan_and_what_bfloat16_holds(place):
    for threshold in (0, 1, 0x8000, 0xFFFF):
        thresholds = np.full(SAMPLE.size, threshold, np.uint32)
        actual = run("dither_bfloat16", place, np.uint16, SAMPLE, thresholds)
        np.testing.assert_array_equal(is_nan(actual, "bfloat16"), np.isnan(SAMPLE))
        exact = (bits(SAMPLE) & 0xFFFF == 0) & ~np.isnan(SAMPLE)
        assert np.isinf(SAMPLE[exact]).any()
        np.testing.assert_array_equal(actual[exact], bits(SAMPLE)[exact] >> 16)


@where_it_runs
def test_halves_hold_float32_exactly(place):
    upper, lower = (run(f"{half}_half", place, np.uint16, SAMPLE) for half in ("upper", "lower"))
    assert_same_floats(run("join_halves", place, np.float32, upper, lower), SAMPLE)


@where_it_runs
def test_upper_half_is_the_nearest_bfloat16(place):
    values = SAMPLE[~np.isnan(SAMPLE)]
    ties = bits(values) & 0xFFFF == 0x8000
    upper = run("upper_half", place, np.uint16, values)
    np.testing.assert_array_equal(upper[~ties] & 0x7FFF, nearest(np.abs(values[~ties]), "bfloat16"))
    np.testing.assert_array_equal(upper[ties], (bits(values[ties]) >> 16) + 1)


# --- thresholds


def words(count, place, start=0):
    """Those of elements from number `start` on of a parameter at a place."""
    numbers = np.arange(start, start + count)
    chunks, indices = (place + numbers // 128).astype(np.uint32), (numbers % 128).astype(np.uint32)
    with np.errstate(over="ignore"):
        return casts.random_word(chunks, indices)


@quietly
def folded(word):
    return np.uint32(word + np.uint32(word << 9))


@quietly
def lower_bits(word, turn):
    return np.uint32(word + np.uint32(turn)) & np.uint32(0xFFFF)


@quietly
def upper_bits(count, word, turn):
    return np.uint32(word + np.uint32(np.uint32(turn) << 16)) >> np.uint32(32 - count)


THRESHOLDS = {
    "p": lambda word, turn=0: lower_bits(word, turn),
    "fast": lambda word, turn=0: upper_bits(16, np.uint32(word << 8), turn),
    "fast code": lambda word, turn=0: upper_bits(20, np.uint32(word << 8), turn),
    "slow": lambda word, turn=0: upper_bits(16, word, turn),
    "slow code": lambda word, turn=0: upper_bits(20, word, turn),
    "slowest": lambda word, turn=0: upper_bits(16, folded(word), turn),
    "slowest code": lambda word, turn=0: upper_bits(20, folded(word), turn),
}
SIZES = {name: 2**20 if "code" in name else 2**16 for name in THRESHOLDS}
thresholds = pytest.mark.parametrize("name", THRESHOLDS)


def correlation(left, right):
    return np.corrcoef(left.astype(float), right.astype(float))[0, 1]


@thresholds
@pytest.mark.parametrize("place", [0, 1, 7654321, 2**32 - 1000])
@pytest.mark.parametrize("turn", [0, 40_503])
def test_thresholds_of_neighbours_are_uniform(name, place, turn):
    values = THRESHOLDS[name](words(1_000_000, place), turn)
    assert values.dtype == np.uint32
    assert values.max() < SIZES[name]
    counts = np.bincount(values // np.uint32(SIZES[name] // 16), minlength=16)
    expected = values.size / 16
    # Of 15 degrees of freedom, 45 is passed once in 10,000 times.
    assert ((counts - expected) ** 2 / expected).sum() < 45


@thresholds
@pytest.mark.parametrize("apart", [1, 2, 3, 5, 16, 31, 32, 64, 100, 128, 1024])
def test_thresholds_of_neighbours_are_not_correlated(name, apart):
    values = THRESHOLDS[name](words(1_000_000, 5))
    found = correlation(values[apart:], values[:-apart])
    # Where elements repeat each other at all, it is the other way round: they are a quarter or half of a turn apart.
    assert -0.3 * (apart in (16, 32, 64)) - 0.01 < found < 0.01


@pytest.mark.parametrize("turn", [0, 40_503, 65_535])
@pytest.mark.parametrize(
    "names", [pair for pair in combinations(THRESHOLDS, 2) if pair[0].split()[0] != pair[1].split()[0]]
)
def test_thresholds_of_two_buffers_are_not_correlated(turn, names):
    word = words(1_000_000, 5)
    one, other = (THRESHOLDS[name](word, turn) for name in names)
    assert abs(correlation(one, other)) < 0.01


# Format -> the threshold that rounds it.
ROUNDED_BY = {"dithered": "p", **{f"dithered_{speed}": speed for speed in ("fast", "slow", "slowest")}}
ROUNDED_BY |= {
    f"{sign}_{speed}": f"{speed} code" for sign in ("signed", "unsigned") for speed in ("fast", "slow", "slowest")
}


def threshold_in(name, **names):
    """The threshold in a format."""
    (store,) = FORMATS[name].stores
    expression = store.partition("{value}, ")[2].removeprefix("{first}, ").removesuffix(")")
    found = eval(expression, {**vars(casts), **names})
    return found if FORMATS[name].codes is None else found >> np.uint32(12)


@quietly
def test_thresholds_are_those_of_the_formats():
    word, turn, other = words(1_000, 5), np.uint32(40_503), np.uint32(12_345)
    assert ROUNDED_BY.keys() == {name for name, format in FORMATS.items() if format.word}
    for name, rounded_by in ROUNDED_BY.items():
        turns = {"turn": other, "toss": turn} if "fast" in name else {"turn": turn, "toss": other}
        multiple, expression = casts.TURNED[FORMATS[name].word]
        turned = word * np.uint32(multiple) + eval(expression, {**vars(casts), **turns})
        actual = threshold_in(name, **{FORMATS[name].word: turned})
        np.testing.assert_array_equal(actual, THRESHOLDS[rounded_by](word, turn), err_msg=name)


def test_half_is_half_a_step():
    for name in ROUNDED_BY:
        assert threshold_in(name, **stored._HALF) == (2**15 if FORMATS[name].codes is None else 2**19)


def test_tosses_are_a_permutation_without_a_pattern_in_time():
    tosses = np.array([toss(step) for step in range(2**16)])
    np.testing.assert_array_equal(np.sort(tosses), np.arange(2**16))
    for apart in (1, 2, 3, 5, 8, 10, 13, 20, 100):
        assert abs(correlation(tosses[apart:], tosses[:-apart])) < 0.03, apart


@thresholds
@pytest.mark.parametrize(("place", "other"), [(0, 1), (1, 128), (3, 2**31), (100, 3_000_000_101)])
def test_thresholds_of_two_places_are_not_correlated(name, place, other):
    one, two = (THRESHOLDS[name](words(1_000_000, each)) for each in (place, other))
    assert abs(correlation(one, two)) < 0.01


@where_it_runs
def test_random_words_are_the_same_on_every_kernel(place):
    chunks = np.concatenate([np.arange(3_000), 2**31 + np.arange(1_000), 2**32 - 1 - np.arange(1_000)])
    indices = np.arange(chunks.size) % 128
    words = run("random_word", place, np.uint32, chunks.astype(np.uint32), indices.astype(np.uint32))
    np.testing.assert_array_equal(
        words, [word_of(*each) for each in zip(chunks.tolist(), indices.tolist(), strict=True)]
    )


def word_of(chunk, index):
    first = mixed(chunk)
    place = mixed(first + 0x9E3779B9) % 128 + index
    return (first + (place + 30 * place * place) % 128 * 0x3E160200) % 2**32


def mixed(x):
    x %= 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


@pytest.mark.parametrize("multiple", sorted({each[0] for each in casts.TURNED.values()}))
def test_tables_of_the_cpu_are_the_sequence(multiple):
    spread_at = SPREADS[f"spread_{multiple}"]

    @njit
    def loop(out, first):
        for index in range(out.size):
            out[index] = spread_at(np.uint32(first), index)

    for first in (0, 1, 127):
        out = np.zeros(128, np.uint32)
        loop(out, first)
        expected = casts.spread(np.uint32(first) + np.arange(128, dtype=np.uint32)) * np.uint32(multiple)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", ["p", "fast", "slow", "slowest"])
def test_an_element_gets_every_threshold_once_in_65536_steps(name):
    turns = (40_503 * np.arange(1, 65_537) % 65_536).astype(np.uint32)
    for word in words(5, 9, start=123):
        drawn = THRESHOLDS[name](word, turns)
        np.testing.assert_array_equal(np.sort(drawn), np.arange(65_536))


def test_thresholds_of_a_few_steps_are_spread_evenly():
    turns = (40_503 * np.arange(1, 17) % 65_536).astype(np.uint32)
    for word in words(100, 9):
        drawn = np.sort(lower_bits(word, turns)).astype(int)
        # Around the circle: the first comes after the last.
        assert np.diff(drawn, append=drawn[0] + 65_536).max() < 3 * 65_536 / 16
