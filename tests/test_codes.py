"""The 8-bit codes of moments: what they can tell apart, and what steps with them do."""

import numpy as np
import pytest
from members import BLOCKED, MEMBERS, by_reference, encode, launch_of

from fastadam.kernels.texts import casts
from fastadam.kernels.texts.formats import EXPONENT_GROUP, Formats
from fastadam.kernels.texts.update import Recipe, update_of

CODES = Formats(m="signed_fast", v="unsigned_slow")
BUFFERS = ("m", "v")
buffers = pytest.mark.parametrize("buffer", BUFFERS)
OCTAVES = {name: CODES.codes(name).octaves for name in BUFFERS}
# The code of the double of the largest power of two of a block: eight codes an octave.
TOP = {name: 8 * (OCTAVES[name] + 1) for name in BUFFERS}
# Thresholds: the highest, and the one that rounds to nearest.
HIGHEST, HALF = 2**20 - 1, 2**19
LARGEST = np.finfo(np.float32).max


@pytest.fixture(autouse=True)
def quietly():
    """As the reference runs the casts."""
    with np.errstate(all="ignore"):
        yield


def decode(buffer, codes, exponent):
    first = casts.first_code(np.uint8(exponent))
    function = casts.decode_signed if buffer == "m" else casts.decode_unsigned
    with np.errstate(all="ignore"):
        return function(np.asarray(codes, np.uint8), first)


def code(buffer, values, exponent, threshold=0):
    first, values = casts.first_code(np.uint8(exponent)), np.asarray(values, np.float32)
    encode_one = casts.encode_signed if buffer == "m" else casts.encode_unsigned
    with np.errstate(all="ignore"):
        return encode_one(values, first, np.uint32(threshold) << np.uint32(12))


def exponent_of(buffer, values):
    largest = casts.size_of(np.asarray(values, np.float32)).max()
    return int(casts.shared_exponent(largest, OCTAVES[buffer]))


def there_and_back(buffer, values, threshold=0):
    """The values of one block, encoded with the exponent of the block and decoded."""
    exponent = exponent_of(buffer, values)
    return decode(buffer, code(buffer, values, exponent, threshold), exponent)


def exponents_of_finite(buffer):
    return [*range(0, 255 - OCTAVES[buffer], 16), 254 - OCTAVES[buffer]]


# --- one block


@buffers
def test_zero_has_the_code_zero_in_both_directions(buffer):
    # 255 is that of a block that is not finite.
    for exponent in range(255):
        for threshold in (0, 1, HALF, HIGHEST):
            assert code(buffer, 0.0, exponent, threshold) == 0
        assert decode(buffer, 0, exponent) == 0.0


@buffers
def test_a_block_of_zeros_stays_one(buffer):
    for threshold in (0, HALF, HIGHEST):
        np.testing.assert_array_equal(there_and_back(buffer, np.zeros(128), threshold), 0.0)


@buffers
def test_zero_has_the_code_zero_for_every_threshold(buffer):
    thresholds = np.arange(2**20, dtype=np.uint32)
    for exponent in (0, 1, 100, exponents_of_finite(buffer)[-1]):
        assert not code(buffer, np.zeros(2**20), exponent, thresholds).any()


@buffers
@pytest.mark.parametrize("threshold", [0, HALF, HIGHEST])
def test_every_code_is_what_its_number_is_rounded_to(buffer, threshold):
    for exponent in exponents_of_finite(buffer):
        # The last of the highest exponent is infinite.
        codes = np.arange(0, TOP[buffer] if exponent == exponents_of_finite(buffer)[-1] else TOP[buffer] + 1)
        np.testing.assert_array_equal(code(buffer, decode(buffer, codes, exponent), exponent, threshold), codes)
        if buffer == "m":
            negative = codes[1:] | 0x80
            np.testing.assert_array_equal(decode("m", negative, exponent), -decode("m", codes[1:], exponent))
            again = code("m", decode("m", negative, exponent), exponent, threshold)
            np.testing.assert_array_equal(again, negative)


@buffers
def test_numbers_grow_with_their_codes(buffer):
    for exponent in exponents_of_finite(buffer):
        values = decode(buffer, np.arange(TOP[buffer]), exponent)
        assert np.isfinite(values).all()
        assert (np.diff(values.astype(float)) > 0).all()


def values_below(largest, octaves, count=100_000):
    """Values of every size down to some octaves below `largest`, sorted, and `largest` itself."""
    exponents = np.random.default_rng(count).uniform(-octaves, 0, count)
    return np.sort(np.append(largest * 2.0**exponents, largest)).astype(np.float32)


def lowest_of(buffer, exponent):
    """2**-15 or 2**-31 of the octave above the largest of a block; nothing where its first codes are subnormals."""
    return 2.0 ** (exponent - 127) if exponent else 0.0


@buffers
def test_lowest_is_a_part_of_the_octave_above_the_largest(buffer):
    for largest in (1.0, 1.999, 1.0625, 3e-20, 1e30):
        exponent, above = exponent_of(buffer, [largest]), 2.0 ** np.frexp(largest)[1]
        assert lowest_of(buffer, exponent) == above * {"m": 2.0**-15, "v": 2.0**-31}[buffer]
        assert casts.lowest(casts.first_code(np.uint8(exponent))) == lowest_of(buffer, exponent)


@buffers
def test_first_codes_are_evenly_spaced(buffer):
    for exponent in exponents_of_finite(buffer):
        step = (lowest_of(buffer, exponent) or 2.0**-126) / 8
        np.testing.assert_array_equal(decode(buffer, np.arange(9), exponent).astype(float), step * np.arange(9))
        # Without a number that is added, subnormals are; with it, there are as many in the next octave, twice as far.
        further = decode(buffer, np.arange(8, 17), exponent).astype(float)
        np.testing.assert_array_equal(further, step * (8 + np.arange(9) * (2 if exponent else 1)))


def signed_values(buffer, values):
    return (values, -values) if buffer == "m" else (values,)


@buffers
@pytest.mark.parametrize("largest", [1.0, 1.999, 1.0625, 3e-20, 1e30])
@pytest.mark.parametrize(("threshold", "part"), [(0, 8), (1, 8), (0x5A5A5, 8), (HIGHEST, 8), (HALF, 16)])
def test_codes_are_within_a_step(buffer, largest, threshold, part):
    values = values_below(largest, 40)
    lowest = lowest_of(buffer, exponent_of(buffer, values))
    for signed in signed_values(buffer, values):
        actual = there_and_back(buffer, signed, threshold).astype(float)
        # Of the sum that is rounded, at most an eighth, as its codes are 3 bits of a fraction. The sum in float32 errs
        # by 2**-24 of itself and so does the difference that a number of v is.
        bound = (values + lowest) / part + 2.0**-24 * (values + lowest + np.abs(actual))
        # A positive v is the first code at least, an eighth of the lowest.
        bound = np.maximum(bound, lowest / 8) if buffer == "v" else bound
        errors = np.abs(actual - signed)
        assert (errors <= bound).all()
        # Well above the lowest that is an eighth of the value, or to nearest a sixteenth.
        assert (errors[values > 2**7 * lowest] / values[values > 2**7 * lowest]).max() <= 1.01 / part


@buffers
@pytest.mark.parametrize("largest", [1.0, 1.999, 3e-20, 5e-39])
@pytest.mark.parametrize("threshold", [0, 1, HALF, HIGHEST])
def test_codes_are_the_neighbour_that_the_threshold_says(buffer, largest, threshold):
    values = values_below(largest, 40)
    exponent = exponent_of(buffer, values)
    numbers = decode(buffer, np.arange(TOP[buffer] + 2), exponent).astype(float)
    lowest = lowest_of(buffer, exponent)
    # With the lowest added in float32, all is exact in float64.
    summed = (values + np.float32(lowest)).astype(float)
    sums = 2.0 ** np.maximum(exponent + np.arange(TOP[buffer] + 2) // 8, 1).astype(float) * 2.0**-127
    sums *= ((exponent + np.arange(TOP[buffer] + 2) // 8) > 0) + np.arange(TOP[buffer] + 2) % 8 / 8
    below = np.searchsorted(sums, summed, side="right") - 1
    share = (summed - sums[below]) / (sums[below + 1] - sums[below])
    expected = below + (share * 2**20 + threshold >= 2**20)
    if buffer == "v":
        # The smallest of the subnormal numbers, which no kernel has, count as zero.
        expected = np.maximum(expected, values >= 2.0**-129)
    for signed in signed_values(buffer, values):
        sign = np.sign(signed)
        np.testing.assert_array_equal(there_and_back(buffer, signed, threshold), sign * numbers[expected])


@pytest.mark.parametrize("largest", [1.0, 1.999, 3e-20])
def test_codes_of_m_are_nearest_by_half_a_step(largest):
    values = values_below(largest, 20)
    exponent = exponent_of("m", values)
    numbers = decode("m", np.arange(TOP["m"] + 2), exponent).astype(float)
    actual = there_and_back("m", values, HALF).astype(float)
    above = np.clip(np.searchsorted(numbers, values), 1, len(numbers) - 1)
    nearest = np.minimum(numbers[above] - values, values - numbers[above - 1])
    # A tie may be broken by what the sum in float32 lacks: twice 2**-24 of it, at most.
    slack = 2.0**-23 * (values + lowest_of("m", exponent))
    assert (np.abs(actual - values) <= nearest + slack).all()


@pytest.mark.parametrize("small", [1e-30, 2.0**-126, 5e-10])
@pytest.mark.parametrize("threshold", [0, 1, HALF, HIGHEST])
def test_unsigned_codes_of_what_is_not_zero_are_never_zero(small, threshold):
    values = np.array([1.0, small, 0.0], np.float32)
    large, tiny, zero = there_and_back("v", values, threshold)
    first = 2.0**-33  # an eighth of 2**-31 of 2
    assert 1.0 <= large <= 1.125
    assert tiny == first if small < 1e-29 else tiny in (4 * first, 5 * first)
    assert zero == 0.0
    assert code("v", small, exponent_of("v", values), threshold) >= 1


@pytest.mark.parametrize("small", [2.0**-17, 2.0**-17 * 0.99, 1e-6, 1e-8])
def test_what_is_less_than_the_first_code_of_m_is_zero_or_that_code(small):
    values = np.array([1.5, small, -small], np.float32)
    for threshold in (0, 1, HALF, HIGHEST):
        _, positive, negative = there_and_back("m", values, threshold)
        assert positive in (0.0, 2.0**-17)
        assert negative == -positive


# Of the largest of a block: from the largest down to what is lost in float32 beside the lowest, 2**-14.
PARTS = [
    1.0,
    0.7,
    0.123,
    1e-3,
    2.0**-13,
    2.0**-14,
    2.0**-14 * 0.3,
    2.0**-17,
    2.0**-19 * 1.1,
    1e-7,
    1e-9,
    1e-11,
    1e-13,
    0.0,
]


@pytest.mark.parametrize("largest", [1.99, 1.0, 3e-20, 1e30, 1e-36, 5e-39])
@pytest.mark.parametrize("part", PARTS)
def test_signed_codes_are_right_on_average(largest, part):
    value, thresholds = np.float32(largest * part), np.arange(2**20, dtype=np.uint32)
    exponent = exponent_of("m", [largest])
    lowest = lowest_of("m", exponent)
    means = []
    for signed in (value, -value):
        codes = code("m", np.full(2**20, signed), exponent, thresholds)
        sizes = codes & 0x7F
        assert int(sizes.max()) - int(sizes.min()) <= 1
        # Sums of multiples of the first code, less than 2**18 of them each, are exact in float64.
        means.append(decode("m", codes, exponent).sum(dtype=float) / 2**20)
    # The mean of all thresholds is the sum in float32, exactly; that is off by 2**-24 of itself, at most.
    assert means[0] == float(value + np.float32(lowest)) - lowest
    assert means[1] == -means[0]
    assert abs(means[0] - float(value)) <= 2.0**-24 * (float(value) + lowest)


@pytest.mark.parametrize("part", [2.0**-29, 2.0**-30, 2.0**-31 * 1.3, 2.0**-32 * 1.7, 2.0**-33])
def test_unsigned_codes_down_to_the_first_are_right_on_average(part):
    thresholds, value = np.arange(2**20, dtype=np.uint32), np.float32(part)
    exponent = exponent_of("v", [1.5])
    codes = code("v", np.full(2**20, value), exponent, thresholds)
    assert codes.min() >= 1
    mean, lowest = decode("v", codes, exponent).sum(dtype=float) / 2**20, lowest_of("v", exponent)
    assert mean == float(value + np.float32(lowest)) - lowest


@pytest.mark.parametrize("value", [1.0, 0.7, 0.123, 1e-3, 3.3e-6, 2.0**-25 * 1.7, 1.99])
def test_unsigned_codes_are_right_on_average(value):
    value = np.float32(value)
    thresholds = np.arange(2**20, dtype=np.uint32)
    exponent = exponent_of("v", [1.99])
    codes = casts.encode_unsigned(np.full(2**20, value), casts.first_code(np.uint8(exponent)), thresholds << 12)
    assert 0 <= int(codes.max()) - int(codes.min()) <= 1
    mean = decode("v", codes, exponent).mean(dtype=float)
    np.testing.assert_allclose(mean, float(value), rtol=1e-12)


@buffers
@pytest.mark.parametrize("largest", [1.0, 1.999, 5e-39, 1e-44, 1e-37, 1e38])
@pytest.mark.parametrize("threshold", [0, 0x5A5A5, HIGHEST])
def test_codes_keep_the_order_of_values(buffer, largest, threshold):
    values = values_below(largest, 40, count=10_000)
    actual = there_and_back(buffer, values, threshold)
    assert np.isfinite(actual).all()
    assert (np.diff(actual) >= 0).all()
    if buffer == "m":
        np.testing.assert_array_equal(there_and_back("m", -values, threshold), -actual)


@buffers
@pytest.mark.parametrize("threshold", [0, HALF, HIGHEST])
def test_largest_of_a_block_is_not_cut_off(buffer, threshold):
    for largest in np.append(2.0 ** np.arange(-148, 127), [1.9375, 1.96875, 1.99999, 3.1e38, 2.0**-126 * 0.99]):
        largest = np.float32(largest)
        exponent = exponent_of(buffer, [largest])
        # With the lowest it may be more than the octave above, and be rounded up from there.
        assert code(buffer, largest, exponent, threshold) <= TOP[buffer] + (buffer == "m")
        subnormal_step = 2.0**-129
        error = abs(float(there_and_back(buffer, [largest], threshold)[0]) - float(largest))
        lowest = lowest_of(buffer, exponent)
        assert error <= max((float(largest) + lowest) / (16 if threshold == HALF else 8), subnormal_step)


@buffers
@pytest.mark.parametrize("threshold", [0, HALF, HIGHEST])
def test_the_largest_of_float32_is_rounded_as_numbers_are(buffer, threshold):
    values = np.array([LARGEST, LARGEST / 2, 1.0], np.float32)
    largest, half, one = there_and_back(buffer, values, threshold)
    lowest = np.float32(lowest_of(buffer, 254 - OCTAVES[buffer]))
    assert largest in (np.float32(1.875 * 2.0**127) - lowest, np.inf)
    assert half in [np.float32(size * 2.0**126) - lowest for size in (1.875, 2.0, 2.25)]
    # m has no code for what is that small, v its smallest.
    assert one == (0.0 if buffer == "m" else lowest / np.float32(8))


NANS = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFFC00000, 0xFFFFFFFF], np.uint32).view(np.float32)


@buffers
@pytest.mark.parametrize("special", [np.inf, *NANS], ids=["inf", "signaling", "quiet", "cuda", "negative", "full"])
@pytest.mark.parametrize("threshold", [0, 1, HIGHEST])
def test_a_block_that_is_not_finite_stays_so(buffer, special, threshold):
    values = np.zeros(EXPONENT_GROUP, np.float32)
    values[5] = special
    assert exponent_of(buffer, values) == 255
    assert not np.isfinite(there_and_back(buffer, values, threshold)).any()


@buffers
def test_no_code_of_a_block_that_is_not_finite_is_finite(buffer):
    assert not np.isfinite(decode(buffer, np.arange(256), 255)).any()


@buffers
def test_blocks_of_a_buffer_have_exponents_of_their_own(buffer):
    values = np.ones(3 * EXPONENT_GROUP + 1, np.float32)
    values[EXPONENT_GROUP : 2 * EXPONENT_GROUP] = 1e-20
    values[-1] = 1e20
    flats = encode(CODES, buffer, values)
    expected = [exponent_of(buffer, [value]) for value in (1.0, 1e-20, 1.0, 1e20)]
    assert flats[f"{buffer}_exponent"].tolist() == expected
    assert flats[buffer].size == values.size


# --- steps


def start(size, storage=CODES, **changed):
    """A launch of the first step, from zeros."""
    zeros = [encode(storage, name, np.zeros(size, np.float32)) for name in ("p", "g", "m", "v")]
    flats = {flat: array for part in zeros for flat, array in part.items()}
    return launch_of(update_of(Recipe(storage=storage)), flats, step=1, grad_scale=1.0, **changed)


def sizes_in_a_block(size):
    """From 1e-12 to 1e6, shuffled, so that the v of a block are up to 120 octaves apart."""
    return np.random.default_rng(2).permutation(np.logspace(-12, 6, size)).astype(np.float32)


@pytest.mark.parametrize("signs", ["constant", "random"])
def test_no_step_is_much_longer_than_the_learning_rate(signs):
    size, rng = 1_000, np.random.default_rng(3)
    launch, sizes, longest = start(size, lr=1e-3), sizes_in_a_block(size), 0.0
    for _ in range(300):
        before = launch.flats["p"].copy()
        launch.flats["g"][...] = sizes * (rng.choice([-1.0, 1.0], size) if signs == "random" else 1.0)
        by_reference(launch)
        longest = max(longest, np.abs(launch.flats["p"] - before).max())
    # With constant signs a step is the learning rate, to errors of the roundings, with others it is no longer. Of
    # m, with a standard deviation of 1/16 of it at most (half of a step of 1/8) at each, these add up to
    # beta1 / sqrt(1 - beta1**2) / 16 = 0.129. v grows by 1/t at step t, so that it is rounded up with a probability of
    # 8/t: a variance of 8/t / 64 at step s, (s/t)**2 of which is left at step t. They add up to 1/16, or to a standard
    # deviation of 0.125 in the root. Both are 0.18; six are allowed.
    assert longest <= 1e-3 * (1 + 6 * 0.18)


def test_a_gradient_that_falls_to_almost_nothing_makes_no_long_step():
    launch = start(EXPONENT_GROUP, lr=1e-3)
    for step in range(2_000):
        before = launch.flats["p"].copy()
        launch.flats["g"][...] = np.where(np.arange(EXPONENT_GROUP) % 2, 1e4, 1e-8 if step > 5 else 1.0)
        by_reference(launch)
        # A moment may be rounded up by an eighth.
        assert np.abs(launch.flats["p"] - before).max() <= 1.25e-3


@pytest.mark.parametrize("name", BLOCKED)
def test_an_element_without_gradients_never_moves(name):
    update, size, rng = MEMBERS[name], 500, np.random.default_rng(4)
    zeros, ones = np.zeros(size, np.float32), np.ones(size, np.float32)
    arrays = [encode(update.storage, each, ones if each in ("p", "ema") else zeros) for each in update.buffers]
    launch = launch_of(update, {k: a for part in arrays for k, a in part.items()}, step=1, weight_decay=0.0)
    idle = np.arange(size) % 3 == 1
    before = {flat: array[idle].copy() for flat, array in launch.flats.items() if array.size == size and flat != "g"}
    for _ in range(500):
        values = np.where(idle, 0.0, rng.standard_normal(size) * sizes_in_a_block(size)).astype(np.float32)
        launch.flats["g"][...] = encode(update.storage, "g", values)["g"]
        by_reference(launch)
    for flat in before.keys() - {"copy"}:
        np.testing.assert_array_equal(launch.flats[flat][idle], before[flat], err_msg=flat)
        assert (launch.flats[flat][~idle] != before[flat][0]).any()
    for flat in update.storage.blocked:
        assert not launch.flats[flat][idle].any()


def test_a_run_with_codes_follows_that_in_float32():
    target = np.random.default_rng(5).standard_normal(2_000).astype(np.float32)
    losses = []
    for storage in (CODES, Formats()):
        launch = start(target.size, storage, lr=0.01)
        for _ in range(600):
            launch.flats["g"][...] = launch.flats["p"] - target
            by_reference(launch)
        losses.append(float(np.square(launch.flats["p"] - target, dtype=float).mean()))
    assert losses[0] < 1e-3
    assert losses[0] < 2 * losses[1] + 1e-4
