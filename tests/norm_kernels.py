"""The reduction on each kernel, for the tests of the norm and of what follows from it."""

import numpy as np

from fastadam.kernels import cpu, norm
from fastadam.kernels.cpu import norm as cpu_norm
from fastadam.kernels.texts import fold

try:
    from cuda_host import HAS_COMPILER, clip_on_host
except ImportError:
    HAS_COMPILER = False


def draw(sizes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    # Of many magnitudes, so that another order of the sum is another sum.
    return [(rng.standard_normal(size) * np.exp(rng.standard_normal(size))).astype(dtype) for size in sizes]


def lanes_on_cpu(gradients, dtype, parallel, storage="native"):
    blocks = norm.blocks_of([gradient.size for gradient in gradients])
    # Gradients without elements have one block of zeros.
    lanes = np.zeros((max(1, len(blocks)), norm.LANES))
    addresses = np.array([cpu.address(gradient) for gradient in gradients], np.int64)
    kernel = cpu_norm.squares_kernel(np.dtype(dtype), storage, parallel=parallel)
    kernel(addresses, blocks, lanes[: len(blocks)], np.dtype(dtype if storage == "native" else np.uint16).type(0))
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


def all_records(gradients, *arguments):
    """The record of each kernel, for `clip` with these arguments."""
    keywords = dict(zip(("max_grad_norm", "largest", "propagate"), arguments[1:], strict=True))
    records = [clipped(lanes_on_cpu(gradients, gradients[0].dtype, False), arguments[0], **keywords)]
    records += [expected_record(gradients, arguments[0], **keywords)]
    if HAS_COMPILER:
        records += [clip_on_host(gradients, *arguments, np.zeros(4))]
    return records
