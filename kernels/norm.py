"""The one reduction: the sum of the squares of all gradients, in float64 and in one fixed order.

Every gradient is cut into blocks of `LINES` lines of `LANES` elements. A lane of a block adds up the squares of its
column, line after line; then the lanes are added up by halves: the second half to the first, until one is left. The
sums of all blocks, in the order of the parameters, are cut and added up in the same way, again and again, until one
number is left. The order depends on the sizes of the gradients alone: not on the number of threads or of ranks, nor on
where the gradients lie or how they are grouped, and it is the same on the CPU and on CUDA.
"""

import numpy as np

from fastadam.kernels.blocks import BLOCK
from fastadam.kernels.subnormals import flushed

LANES = 128
LINES = 64
assert LANES * LINES == BLOCK


def squared_norm(gradients):
    """The squared norm of flat `gradients`, in NumPy."""
    with flushed(), np.errstate(all="ignore"):
        sums = [squares_of(gradient) for gradient in gradients if gradient.size]
        return combine(np.concatenate(sums) if sums else np.zeros(1))


def squares_of(gradient):
    """The sum of each block of a flat gradient: level 0 of the reduction."""
    return _sum_blocks(np.square(gradient, dtype=np.float64))


def combine(sums):
    """The sum of all `sums` of blocks, in the order of the reduction."""
    while len(sums) > 1:
        sums = _sum_blocks(sums)
    return float(sums[0])


def _sum_blocks(values):
    """The sum of each block of flat `values`; zeros fill up the last."""
    count = -(-values.size // BLOCK)
    padded = np.zeros(count * BLOCK)
    padded[: values.size] = values
    # Along the first axis NumPy adds line after line.
    lanes = np.stack([np.add.accumulate(block)[-1] for block in padded.reshape(count, LINES, LANES)])
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]
