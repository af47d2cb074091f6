"""The one reduction: the same bits on every kernel, wherever the gradients lie."""

import math

import numba
import numpy as np
import pytest
from norm_kernels import HAS_COMPILER, clipped, draw, expected_record, lanes_on_cpu
from oracle import misaligned

from fastadam.kernels import cpu, norm
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
    "three levels": [1] * 64 * 64 + [9_000],
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
        lanes = [norm._sum_rows(np.square(gradient, dtype=np.float64)) for gradient in gradients if gradient.size]
        for parallel in (False, True):
            actual = lanes_on_cpu(gradients, dtype, parallel)
            if lanes:
                np.testing.assert_array_equal(actual, np.concatenate(lanes))
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


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["mixture", "1", "524289"])
def test_gradients_of_16_bits_have_the_norm_of_their_values(storage, name):
    bits = [ROUNDINGS[storage](gradient) for gradient in draw(LISTS[name], np.float32)]
    values = [WIDENINGS[storage](each) for each in bits]
    lanes, blocks = np.full((len(norm.blocks_of(LISTS[name])), norm.LANES), np.nan), norm.blocks_of(LISTS[name])
    cpu.squares_launcher(np.float32, sum(LISTS[name]), storage)(np.array(list(map(cpu.address, bits))), blocks, lanes)
    for parallel in (False, True):
        np.testing.assert_array_equal(lanes_on_cpu(bits, np.float32, parallel, storage), lanes)
        np.testing.assert_array_equal(lanes_on_cpu(values, np.float32, parallel), lanes)
    expected = expected_record(values, 0.5, max_grad_norm=3.0, largest=1e30, propagate=0.0)
    if HAS_COMPILER:
        from cuda_host import clip_on_host

        record = clip_on_host(bits, 0.5, 3.0, 1e30, 0.0, np.zeros(4), storage)
        np.testing.assert_array_equal(record, expected)


@lists
@dtypes
def test_reference_is_the_sum_of_the_squares(sizes, dtype):
    gradients = draw(sizes, dtype)
    exact = math.fsum(float(value) ** 2 for gradient in gradients for value in gradient)
    assert norm.reference(gradients) == pytest.approx(exact, rel=1e-13, abs=0)


@dtypes
def test_order_is_rows_then_groups_of_blocks_then_lanes(dtype):
    def add(values):
        total = values[0].copy()
        for value in values[1:]:
            total += value
        return total

    others = 0
    for seed in range(4):
        (gradient,) = draw([66 * 8_192 + 300], dtype, seed)
        squares = np.zeros(67 * 8_192)
        squares[: gradient.size] = np.square(gradient, dtype=np.float64)
        blocks = [add(block) for block in squares.reshape(67, 64, 128)]
        total = add([np.array(lane) for lane in add([add(blocks[:64]), add(blocks[64:])])])
        assert norm.reference([gradient]) == total
        others += total != squares.sum()
    assert others, "the data do not tell orders apart"


@dtypes
@pytest.mark.parametrize("parallel", [False, True], ids=["serial", "parallel"])
def test_sum_does_not_depend_on_where_the_gradients_lie(dtype, parallel):
    gradients = draw(LISTS["mixture"], dtype)
    flat = np.concatenate(gradients)
    ends = np.cumsum([gradient.size for gradient in gradients])
    expected = lanes_on_cpu(gradients, dtype, parallel)
    in_one = [flat[end - gradient.size : end] for end, gradient in zip(ends, gradients, strict=True)]
    shifted = [misaligned(gradient, 1 + index) for index, gradient in enumerate(gradients)]
    for placed in (in_one, shifted):
        np.testing.assert_array_equal(lanes_on_cpu(placed, dtype, parallel), expected)
        assert norm.reference(placed) == norm.reference(gradients)


def test_sum_does_not_depend_on_how_gradients_are_grouped():
    gradients = draw(LISTS["mixture"], np.float32)
    groups = [lanes_on_cpu(part, np.float32, False) for part in (gradients[:3], gradients[3:])]
    np.testing.assert_array_equal(np.concatenate(groups), lanes_on_cpu(gradients, np.float32, False))


@dtypes
@pytest.mark.parametrize("blocks", [1, 3, 4, 5])
def test_squares_of_few_and_of_many_blocks(dtype, blocks):
    gradients = draw([blocks * norm.BLOCK], dtype)
    cut, lanes = norm.blocks_of([gradients[0].size]), np.full((blocks, norm.LANES), np.nan)
    launch = cpu.squares_launcher(dtype, gradients[0].size)
    launch(np.array([cpu.address(gradients[0])]), cut, lanes)
    np.testing.assert_array_equal(clipped(lanes, **ANY), expected_record(gradients, **ANY))


@needs_host_compiler
def test_cuda_launchers_equal_the_reference(monkeypatch):
    from cuda_host import on_host, patch_cuda

    from fastadam.kernels import cuda

    patch_cuda(monkeypatch)
    for name in ("mixture", "1", "three levels"):
        gradients = draw(LISTS[name], np.float32)
        blocks, record = norm.blocks_of(LISTS[name]), np.zeros(4)
        lanes = on_host(np.full((len(blocks), norm.LANES), np.nan))
        addresses = np.array([gradient.ctypes.data for gradient in gradients])
        cuda.squares_launcher(np.float32, 0)(addresses, blocks, lanes)
        assert cuda.clip(lanes, 0.5, 3.0, 1e30, 0.0, record) is record
        expected = expected_record(gradients, 0.5, max_grad_norm=3.0, largest=1e30, propagate=0.0)
        np.testing.assert_array_equal(record, expected)
