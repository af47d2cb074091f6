"""The one reduction: the same bits on every kernel, wherever the gradients lie."""

import math

import numba
import numpy as np
import pytest
from norm_kernels import HAS_COMPILER, clipped, draw, expected_record, sums_on_cpu
from oracle import misaligned

from fastadam.kernels import GRADIENT, cpu, norm
from fastadam.kernels.blocks import BLOCK, cut
from fastadam.kernels.texts import casts

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
needs_host_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs CuPy and g++")

LISTS = {
    "none": [],
    "empty": [0],
    "empties": [0, 0, 0],
    **{str(size): [size] for size in (1, 127, 128, 129, 8_191, 8_192, 8_193, 63 * 8_192, 64 * 8_192, 64 * 8_192 + 1)},
    "mixture": [5, 0, 100_003, 8_192, 1, 8_193, 127],
    "small": list(range(200)),
    "three levels": [1] * 8_192 + [9_000],
}
lists = pytest.mark.parametrize("sizes", LISTS.values(), ids=LISTS)
ROUNDINGS = {"bfloat16": casts.to_bfloat16, "float16": casts.to_float16}
WIDENINGS = {"bfloat16": casts.from_bfloat16, "float16": casts.from_float16}
ANY = {"max_grad_norm": math.inf, "largest": math.inf, "propagate": 0.0}


@pytest.fixture(params=[1, 2])
def threads(request):
    before = numba.get_num_threads()
    numba.set_num_threads(min(request.param, numba.config.NUMBA_NUM_THREADS))
    yield
    numba.set_num_threads(before)


@lists
@dtypes
def test_cpu_equals_the_reference(sizes, dtype, threads):
    for seed in range(1 if len(sizes) > 1_000 else 3):
        gradients = draw(sizes, dtype, seed)
        sums = [norm.squares_of(gradient) for gradient in gradients if gradient.size]
        for parallel in (False, True):
            actual = sums_on_cpu(gradients, dtype, parallel)
            if sums:
                np.testing.assert_array_equal(actual, np.concatenate(sums))
            np.testing.assert_array_equal(clipped(actual, **ANY), expected_record(gradients, **ANY))


@needs_host_compiler
@lists
@dtypes
def test_cuda_equals_the_reference(sizes, dtype):
    from cuda_host import clip_on_host

    for seed in range(1 if len(sizes) > 1_000 else 3):
        gradients = draw(sizes, dtype, seed)
        actual = clip_on_host(gradients, 0.5, 3.0, 1e30, 0.0, np.zeros(4))
        expected = expected_record(gradients, 0.5, max_grad_norm=3.0, largest=1e30, propagate=0.0)
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("format", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["mixture", "1", "524289"])
def test_gradients_of_16_bits_have_the_norm_of_their_values(format, name):
    bits = [ROUNDINGS[format](gradient) for gradient in draw(LISTS[name], np.float32)]
    values = [WIDENINGS[format](each) for each in bits]
    sums = np.concatenate([norm.squares_of(value) for value in values if value.size])
    for parallel in (False, True):
        np.testing.assert_array_equal(sums_on_cpu(bits, np.float32, parallel, format), sums)
        np.testing.assert_array_equal(sums_on_cpu(values, np.float32, parallel), sums)
    expected = expected_record(values, 0.5, max_grad_norm=3.0, largest=1e30, propagate=0.0)
    if HAS_COMPILER:
        from cuda_host import clip_on_host

        record = clip_on_host(bits, 0.5, 3.0, 1e30, 0.0, np.zeros(4), format)
        np.testing.assert_array_equal(record, expected)


@lists
@dtypes
def test_reference_is_the_sum_of_the_squares(sizes, dtype):
    gradients = draw(sizes, dtype)
    exact = math.fsum(float(value) ** 2 for gradient in gradients for value in gradient)
    assert norm.squared_norm(gradients) == pytest.approx(exact, rel=1e-13, abs=0)


@dtypes
def test_order_is_lines_then_halves_of_lanes_then_blocks(dtype):
    def add(values):
        total = values[0].copy()
        for value in values[1:]:
            total += value
        return total

    def halved(lanes):
        return lanes[0] if len(lanes) == 1 else halved(lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :])

    others = 0
    for seed in range(4):
        (gradient,) = draw([66 * 8_192 + 300], dtype, seed)
        squares = np.zeros(67 * 8_192)
        squares[: gradient.size] = np.square(gradient, dtype=np.float64)
        blocks = np.zeros(128)
        blocks[:67] = [halved(add(block)) for block in squares.reshape(67, 64, 128)]
        total = halved(blocks)
        assert norm.squared_norm([gradient]) == total
        others += total != squares.sum()
    assert others, "the data do not tell orders apart"


@dtypes
@pytest.mark.parametrize("parallel", [False, True], ids=["serial", "parallel"])
def test_sum_does_not_depend_on_where_the_gradients_lie(dtype, parallel):
    gradients = draw(LISTS["mixture"], dtype)
    flat = np.concatenate(gradients)
    ends = np.cumsum([gradient.size for gradient in gradients])
    expected = sums_on_cpu(gradients, dtype, parallel)
    in_one = [flat[end - gradient.size : end] for end, gradient in zip(ends, gradients, strict=True)]
    shifted = [misaligned(gradient, 1 + index) for index, gradient in enumerate(gradients)]
    for placed in (in_one, shifted):
        np.testing.assert_array_equal(sums_on_cpu(placed, dtype, parallel), expected)
        assert norm.squared_norm(placed) == norm.squared_norm(gradients)
    behind = [np.concatenate([np.full(3, np.nan, dtype), gradient]) for gradient in gradients]
    np.testing.assert_array_equal(sums_on_cpu(behind, dtype, parallel, first=3), expected)


def test_sum_does_not_depend_on_how_gradients_are_grouped():
    gradients = draw(LISTS["mixture"], np.float32)
    groups = [sums_on_cpu(part, np.float32, False) for part in (gradients[:3], gradients[3:])]
    np.testing.assert_array_equal(np.concatenate(groups), sums_on_cpu(gradients, np.float32, False))


@dtypes
@pytest.mark.parametrize("blocks", [1, 3, 4, 5])
def test_squares_of_few_and_of_many_blocks(dtype, blocks):
    (gradient,) = draw([blocks * BLOCK], dtype)
    tables, sums = cpu.tables(1, 0, None), np.full(blocks, np.nan)
    launch = cpu.squares(np.dtype(dtype), "native", cut(np.array([[0, 0, 0, gradient.size, 0]])), tables, sums)
    # The address is read when it is called.
    tables.addresses[0, GRADIENT] = cpu.address(gradient)
    launch()
    np.testing.assert_array_equal(clipped(sums, **ANY), expected_record([gradient], **ANY))
