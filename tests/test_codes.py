"""The 8-bit codes of moments: what they can tell apart, and what steps with them do."""

import numpy as np
import pytest
from members import BLOCKED, MEMBERS, by_reference, encode, launch_of

from fastadam.kernels import casts
from fastadam.kernels.storage import BLOCK_FORMATS, EXPONENT_BLOCK, Storage
from fastadam.kernels.update import Recipe, update_of

CODES = Storage(m="float8", v="float8")
BUFFERS = ("m", "v")
buffers = pytest.mark.parametrize("buffer", BUFFERS)
OCTAVES = {name: BLOCK_FORMATS[name].octaves for name in BUFFERS}
# The code of the double of the largest power of two of a block: eight codes an octave.
TOP = {name: 8 * (OCTAVES[name] + 1) for name in BUFFERS}
# Of a threshold that rounds codes of v.
HIGHEST = 2**20 - 1
LARGEST = np.finfo(np.float32).max
TINIEST = np.finfo(np.float32).smallest_subnormal


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
        return encode_one(values, first, np.uint32(threshold))


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
        for threshold in (0, 1, HIGHEST):
            assert code(buffer, 0.0, exponent, threshold) == 0
        assert decode(buffer, 0, exponent) == 0.0


@buffers
def test_a_block_of_zeros_stays_one(buffer):
    for threshold in (0, HIGHEST):
        np.testing.assert_array_equal(there_and_back(buffer, np.zeros(128), threshold), 0.0)


@buffers
def test_every_code_is_what_its_number_is_rounded_to(buffer):
    for exponent in exponents_of_finite(buffer):
        # The last of the highest exponent is infinite.
        codes = np.arange(0, TOP[buffer] if exponent == exponents_of_finite(buffer)[-1] else TOP[buffer] + 1)
        np.testing.assert_array_equal(code(buffer, decode(buffer, codes, exponent), exponent), codes)
        if buffer == "m":
            negative = codes[1:] | 0x80
            np.testing.assert_array_equal(decode("m", negative, exponent), -decode("m", codes[1:], exponent))
            np.testing.assert_array_equal(code("m", decode("m", negative, exponent), exponent), negative)


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


@pytest.mark.parametrize("largest", [1.0, 1.999, 1.0625, 3e-20, 1e30])
def test_signed_codes_are_within_a_sixteenth(largest):
    values = values_below(largest, 13)
    for signed in (values, -values):
        errors = np.abs(there_and_back("m", signed).astype(float) - signed) / values
        assert errors.max() <= 1 / 16


@pytest.mark.parametrize("largest", [1.0, 1.999, 3e-20])
def test_signed_codes_are_nearest(largest):
    values = values_below(largest, 20)
    numbers = decode("m", np.arange(TOP["m"] + 1), exponent_of("m", values)).astype(float)
    actual = there_and_back("m", values).astype(float)
    above = np.clip(np.searchsorted(numbers, values), 1, len(numbers) - 1)
    nearest = np.minimum(numbers[above] - values, values - numbers[above - 1])
    normal = values > numbers[1]
    np.testing.assert_array_equal(np.abs(actual - values)[normal], nearest[normal])


@pytest.mark.parametrize("small", [1e-30, 1e-38, TINIEST, 5e-10])
@pytest.mark.parametrize("threshold", [0, 1, HIGHEST])
def test_unsigned_codes_of_what_is_not_zero_are_never_zero(small, threshold):
    values = np.array([1.0, small, 0.0], np.float32)
    large, tiny, zero = there_and_back("v", values, threshold)
    assert 1.0 <= large <= 1.125
    # As large as it can be told apart from zero, or as it is.
    assert tiny >= values[1]
    assert 0.0 < tiny < 2.0**-29
    assert zero == 0.0
    assert code("v", small, exponent_of("v", values), threshold) >= 1


@pytest.mark.parametrize("value", [1.0, 0.7, 0.123, 1e-3, 3.3e-6, 2.0**-25 * 1.7, 1.99])
def test_unsigned_codes_are_right_on_average(value):
    value = np.float32(value)
    thresholds = np.arange(2**20, dtype=np.uint32)
    exponent = exponent_of("v", [1.99])
    codes = casts.encode_unsigned(np.full(2**20, value), casts.first_code(np.uint8(exponent)), thresholds)
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
        np.testing.assert_array_equal(there_and_back("m", -values), -actual)


@buffers
@pytest.mark.parametrize("threshold", [0, HIGHEST])
def test_largest_of_a_block_is_not_cut_off(buffer, threshold):
    for largest in np.append(2.0 ** np.arange(-148, 127), [1.9375, 1.96875, 1.99999, 3.1e38, 2.0**-126 * 0.99]):
        largest = np.float32(largest)
        exponent = exponent_of(buffer, [largest])
        assert code(buffer, largest, exponent, threshold) <= TOP[buffer]
        subnormal_step = 2.0**-129
        error = abs(float(there_and_back(buffer, [largest], threshold)[0]) - float(largest))
        assert error <= max(float(largest) / (16 if buffer == "m" else 8), subnormal_step)


@buffers
@pytest.mark.parametrize("threshold", [0, HIGHEST])
def test_the_largest_of_float32_is_rounded_as_numbers_are(buffer, threshold):
    values = np.array([LARGEST, LARGEST / 2, 1.0], np.float32)
    largest, half, one = there_and_back(buffer, values, threshold)
    assert largest in (np.float32(1.875 * 2.0**127), np.inf)
    assert half in (np.float32(1.875 * 2.0**126), np.float32(2.0**127))
    # m has no code for what is that small, v its smallest.
    assert one < 1e30


NANS = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFFC00000, 0xFFFFFFFF], np.uint32).view(np.float32)


@buffers
@pytest.mark.parametrize("special", [np.inf, *NANS], ids=["inf", "signaling", "quiet", "cuda", "negative", "full"])
@pytest.mark.parametrize("threshold", [0, 1, HIGHEST])
def test_a_block_that_is_not_finite_stays_so(buffer, special, threshold):
    values = np.zeros(EXPONENT_BLOCK, np.float32)
    values[5] = special
    assert exponent_of(buffer, values) == 255
    assert not np.isfinite(there_and_back(buffer, values, threshold)).all()


@buffers
def test_blocks_of_a_buffer_have_exponents_of_their_own(buffer):
    values = np.ones(3 * EXPONENT_BLOCK + 1, np.float32)
    values[EXPONENT_BLOCK : 2 * EXPONENT_BLOCK] = 1e-20
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
    launch, sizes = start(size, lr=1e-3), sizes_in_a_block(size)
    for _ in range(300):
        before = launch.flats["p"].copy()
        launch.gradients[0][...] = sizes * (rng.choice([-1.0, 1.0], size) if signs == "random" else 1.0)
        by_reference(launch)
        # A moment may be rounded up by an eighth.
        assert np.abs(launch.flats["p"] - before).max() <= 1.25e-3


def test_a_gradient_that_falls_to_almost_nothing_makes_no_long_step():
    launch = start(EXPONENT_BLOCK, lr=1e-3)
    for step in range(2_000):
        before = launch.flats["p"].copy()
        launch.gradients[0][...] = np.where(np.arange(EXPONENT_BLOCK) % 2, 1e4, 1e-8 if step > 5 else 1.0)
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
    before = {flat: array[idle].copy() for flat, array in launch.flats.items() if array.size == size}
    for _ in range(500):
        values = np.where(idle, 0.0, rng.standard_normal(size) * sizes_in_a_block(size)).astype(np.float32)
        launch.gradients[0][...] = encode(update.storage, "g", values)["g"]
        by_reference(launch)
    for flat in before.keys() - {"low"}:
        np.testing.assert_array_equal(launch.flats[flat][idle], before[flat], err_msg=flat)
        assert (launch.flats[flat][~idle] != before[flat][0]).any()
    for flat in update.storage.blocked:
        assert not launch.flats[flat][idle].any()


def test_a_run_with_codes_follows_that_in_float32():
    target = np.random.default_rng(5).standard_normal(2_000).astype(np.float32)
    losses = []
    for storage in (CODES, Storage()):
        launch = start(target.size, storage, lr=0.01)
        for _ in range(600):
            launch.gradients[0][...] = launch.flats["p"] - target
            by_reference(launch)
        losses.append(float(np.square(launch.flats["p"] - target, dtype=float).mean()))
    assert losses[0] < 1e-3
    assert losses[0] < 2 * losses[1] + 1e-4
