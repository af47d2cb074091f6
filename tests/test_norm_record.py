"""What follows from the norm on every kernel: the factor on the gradients, and whether the step is taken."""

import math

import numpy as np
import pytest
from norm_kernels import HAS_COMPILER, all_records, clipped, draw, sums_on_cpu

from fastadam.kernels import SKIPPED, cpu

if HAS_COMPILER:
    from cuda_host import clip_on_host

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


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
    "overflow of the scaled square in float64": (1.0, (1e200, math.inf, math.inf, 0.0), [1e200, 0, 1e200, 1]),
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
    tables, record = cpu.tables(1, 1, None), np.zeros(4)
    for value in (1.0, math.nan, 1.0, math.inf):
        gradients, limits = [np.array([value])], {"max_grad_norm": 1.0, "largest": 1e300, "propagate": 0.0}
        clipped(sums_on_cpu(gradients, np.float64, False), 1.0, **limits, tables=tables)
        if HAS_COMPILER:
            clip_on_host(gradients, 1.0, *limits.values(), record)
    assert tables.record[SKIPPED] == 2.0
    assert record[SKIPPED] == 2.0 * HAS_COMPILER
