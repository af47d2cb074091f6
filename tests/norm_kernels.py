"""The reduction on each kernel, for the tests of the norm and of what follows from it."""

from unittest import mock

import numpy as np

from fastadam.kernels import FIRST, GRADIENT, SKIPPED, blocks, cpu, norm
from fastadam.kernels.cpu import threads
from fastadam.kernels.texts.clip import clip

try:
    from cuda_host import HAS_COMPILER, clip_on_host
except ImportError:
    HAS_COMPILER = False


def draw(sizes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    # Of many magnitudes, so that another order of the sum is another sum.
    return [(rng.standard_normal(size) * np.exp(rng.standard_normal(size))).astype(dtype) for size in sizes]


def blocks_of(sizes):
    return blocks.cut(np.array([[index, 0, 0, size, 0] for index, size in enumerate(sizes)], np.int64).reshape(-1, 5))


def sums_on_cpu(gradients, dtype, parallel, format="native", first=0):
    """The sums of all blocks; the gradients begin with element `first` of their arrays."""
    cut, tables = blocks_of([gradient.size - first for gradient in gradients]), cpu.tables(len(gradients), 1, None)
    cut[:, FIRST] += first
    tables.addresses[:, GRADIENT] = [cpu.address(gradient) for gradient in gradients]
    # Gradients without elements have one block of zeros.
    sums = np.full(max(1, len(cut)), np.nan if len(cut) else 0.0)
    with mock.patch.object(threads, "PARALLEL_FROM", 0 if parallel else 2**62):
        launch = cpu.squares(np.dtype(dtype), format, cut, tables, sums[: len(cut)])
    launch()
    return sums


def clipped(sums, grad_scale=1.0, *, max_grad_norm, largest, propagate, tables=None):
    """The record that the CPU kernel writes."""
    tables = cpu.tables(0, 0, None) if tables is None else tables
    cpu.clip(sums, grad_scale, max_grad_norm, largest, propagate, tables)
    return tables.record


def expected_record(gradients, grad_scale=1.0, *, max_grad_norm, largest, propagate):
    with np.errstate(all="ignore"):
        first = clip(grad_scale, np.float64(norm.squared_norm(gradients)), max_grad_norm, largest, propagate)
    record = np.array([*first, 0.0])
    record[SKIPPED] = 1.0 - first[1]
    return record


def all_records(gradients, *arguments):
    """The record of each kernel, for `clip` with these arguments."""
    keywords = dict(zip(("max_grad_norm", "largest", "propagate"), arguments[1:], strict=True))
    records = [clipped(sums_on_cpu(gradients, gradients[0].dtype, False), arguments[0], **keywords)]
    records += [expected_record(gradients, arguments[0], **keywords)]
    if HAS_COMPILER:
        records += [clip_on_host(gradients, *arguments, np.zeros(4))]
    return records
