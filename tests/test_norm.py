"""The one reduction: the same bits on every kernel, wherever the gradients lie, and what follows from the norm."""

import math

import numba
import numpy as np
import pytest
from oracle import misaligned

from fastadam.kernels import cpu, fold, norm

try:
    from cuda_host import HAS_COMPILER, clip_on_host, on_host, patch_cuda
except ImportError:
    HAS_COMPILER = False

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
ANY = {"max_grad_norm": math.inf, "largest": math.inf, "propagate": 0.0}


def draw(sizes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    # Of many magnitudes, so that another order of the sum is another sum.
    return [(rng.standard_normal(size) * np.exp(rng.standard_normal(size))).astype(dtype) for size in sizes]


def lanes_on_cpu(gradients, dtype, parallel):
    blocks = norm.blocks_of([gradient.size for gradient in gradients])
    # Gradients without elements have one block of zeros.
    lanes = np.zeros((max(1, len(blocks)), norm.LANES))
    addresses = np.array([cpu.address(gradient) for gradient in gradients], np.int64)
    cpu._squares_kernel(np.dtype(dtype), parallel=parallel)(addresses, blocks, lanes[: len(blocks)], np.empty(0, dtype))
    return lanes


def clipped(lanes, grad_scale=1.0, *, max_grad_norm, largest, propagate):
    """The record that the CPU kernel writes."""
    record = np.zeros(len(fold.RECORD))
    factor = cpu.clip(lanes, grad_scale, max_grad_norm, largest, propagate, record)
    np.testing.assert_array_equal(factor, record[0])
    return record


def expected_record(gradients, grad_scale=1.0, *, max_grad_norm, largest, propagate):
    with np.errstate(all="ignore"):
        first = fold.clip(grad_scale, np.float64(norm.reference(gradients)), max_grad_norm, largest, propagate)
    return np.array([*first, 1.0 - first[1]])


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
    for seed in range(1 if len(sizes) > 1_000 else 3):
        gradients = draw(sizes, dtype, seed)
        actual = clip_on_host(gradients, 0.5, 3.0, 1e30, 0.0, np.zeros(4))
        expected = expected_record(gradients, 0.5, max_grad_norm=3.0, largest=1e30, propagate=0.0)
        np.testing.assert_array_equal(actual, expected)


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
    launch(np.array([cpu.address(gradients[0])]), cut, lanes, gradients[0])
    np.testing.assert_array_equal(clipped(lanes, **ANY), expected_record(gradients, **ANY))


@needs_host_compiler
def test_cuda_launchers_equal_the_reference(monkeypatch):
    from fastadam.kernels import cuda

    patch_cuda(monkeypatch)
    for name in ("mixture", "1", "three levels"):
        gradients = draw(LISTS[name], np.float32)
        blocks, record = norm.blocks_of(LISTS[name]), np.zeros(4)
        lanes = on_host(np.full((len(blocks), norm.LANES), np.nan))
        addresses = np.array([gradient.ctypes.data for gradient in gradients])
        cuda.squares_launcher(np.float32, 0)(addresses, blocks, lanes, gradients[0])
        assert cuda.clip(lanes, 0.5, 3.0, 1e30, 0.0, record) is record
        expected = expected_record(gradients, 0.5, max_grad_norm=3.0, largest=1e30, propagate=0.0)
        np.testing.assert_array_equal(record, expected)


def all_records(gradients, *arguments):
    """The record of each kernel, for `clip` with these arguments."""
    keywords = dict(zip(("max_grad_norm", "largest", "propagate"), arguments[1:], strict=True))
    records = [clipped(lanes_on_cpu(gradients, gradients[0].dtype, False), arguments[0], **keywords)]
    records += [expected_record(gradients, arguments[0], **keywords)]
    if HAS_COMPILER:
        records += [clip_on_host(gradients, *arguments, np.zeros(4))]
    return records


@dtypes
@pytest.mark.parametrize("max_grad_norm", [1e-3, 1.0, 40.0, 1e6])
@pytest.mark.parametrize("grad_scale", [1.0, 0.125])
def test_factor_is_that_of_torch(dtype, max_grad_norm, grad_scale):
    gradients = draw([1_000, 30], dtype)
    length = grad_scale * math.sqrt(math.fsum(float(value) ** 2 for gradient in gradients for value in gradient))
    factor = grad_scale * min(1.0, max_grad_norm / (length + 1e-6))
    for record in all_records(gradients, grad_scale, max_grad_norm, math.inf, 0.0):
        np.testing.assert_allclose(record, [factor, 1.0, length, 0.0], rtol=1e-13)


def test_clipped_gradients_are_those_of_torch():
    torch = pytest.importorskip("torch")
    gradients = draw([1_000, 30], np.float64)
    tensors = [torch.zeros(gradient.size, dtype=torch.float64, requires_grad=True) for gradient in gradients]
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = torch.tensor(gradient)
    length = torch.nn.utils.clip_grad_norm_(tensors, 2.0)
    for record in all_records(gradients, 1.0, 2.0, math.inf, 0.0):
        np.testing.assert_allclose(record[2], length.item(), rtol=1e-13)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            np.testing.assert_allclose(record[0] * gradient, tensor.grad.numpy(), rtol=1e-13)


LARGEST = float(np.finfo(np.float32).max)
# Value of one gradient, and what `clip` gets -> factor, taken, norm, skipped.
CASES = {
    "finite": (3.0, (0.5, math.inf, LARGEST, 0.0), [0.5, 1, 1.5, 0]),
    "nan": (math.nan, (1.0, math.inf, LARGEST, 0.0), [math.nan, 0, math.nan, 1]),
    "inf": (math.inf, (1.0, 1.0, LARGEST, 0.0), [0, 0, math.inf, 1]),
    "-inf": (-math.inf, (1.0, 1.0, LARGEST, 0.0), [0, 0, math.inf, 1]),
    "nan taken": (math.nan, (1.0, 1.0, LARGEST, 1.0), [math.nan, 1, math.nan, 0]),
    "inf taken": (math.inf, (1.0, 1.0, LARGEST, 1.0), [0, 1, math.inf, 0]),
    "overflow of the square": (1e30, (1.0, math.inf, LARGEST, 0.0), [1, 0, 1e30, 1]),
    "overflow of the square taken": (1e30, (1.0, math.inf, LARGEST, 1.0), [1, 1, 1e30, 0]),
    "overflow that clipping prevents": (1e30, (1.0, 1.0, LARGEST, 0.0), [1e-30, 1, 1e30, 0]),
    "overflow that the scale prevents": (1e30, (1e-20, math.inf, LARGEST, 0.0), [1e-20, 1, 1e10, 0]),
    "overflow of the scaled square": (1.0, (1e30, math.inf, LARGEST, 0.0), [1e30, 0, 1e30, 1]),
    "no limit": (1e30, (1.0, math.inf, math.inf, 0.0), [1, 1, 1e30, 0]),
    "no limit nan": (math.nan, (1.0, math.inf, math.inf, 0.0), [math.nan, 0, math.nan, 1]),
    "no limit inf": (math.inf, (1.0, 1.0, math.inf, 0.0), [0, 0, math.inf, 1]),
    "zero": (0.0, (1.0, 1.0, LARGEST, 0.0), [1, 1, 0, 0]),
}


@pytest.mark.parametrize(("value", "arguments", "expected"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("place", [0, 150, 8_192])
def test_record_of_values_that_are_not_finite_or_too_large(value, arguments, expected, place):
    gradients = [np.zeros(5, np.float32), np.zeros(8_200, np.float32)]
    gradients[1][place] = value
    records = all_records(gradients, *arguments)
    for record in records:
        np.testing.assert_allclose(record, expected, rtol=1e-6)
        np.testing.assert_array_equal(record, records[0])


def test_square_that_overflows_float64_counts_as_infinite():
    for record in all_records([np.array([1e160])], 1.0, 1.0, math.inf, 0.0):
        np.testing.assert_array_equal(record, [0, 0, math.inf, 1])


def test_skipped_steps_are_counted():
    records = [np.zeros(4), np.zeros(4)]
    for value in (1.0, math.nan, 1.0, math.inf):
        gradients = [np.array([value])]
        cpu.clip(lanes_on_cpu(gradients, np.float64, False), 1.0, 1.0, 1e300, 0.0, records[0])
        if HAS_COMPILER:
            clip_on_host(gradients, 1.0, 1.0, 1e300, 0.0, records[1])
    for record in records[: 1 + HAS_COMPILER]:
        assert record[3] == 2.0
