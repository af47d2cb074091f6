"""The one reduction: the sum of the squares of all gradients, in float64 and in one fixed order.

Every gradient is cut into blocks of `LINES` lines of `LANES` elements. A lane of a block adds up the squares of its
column, line after line; then, again and again, up to `LINES` blocks are added up lane by lane, until one is left, whose
lanes are added up in order. The order depends on the sizes of the gradients alone: not on the number of threads,
nor on where the gradients lie or how they are grouped, and it is the same on the CPU and on CUDA.
"""

import numpy as np

from fastadam.kernels.blocks import BLOCK

LANES = 128
LINES = 64
assert LANES * LINES == BLOCK


def squared_norm(gradients):
    """The squared norm of flat `gradients`, in NumPy."""
    with np.errstate(all="ignore"):
        lanes = [squares_of(gradient) for gradient in gradients if gradient.size]
        return combine(np.concatenate(lanes) if lanes else np.zeros((1, LANES)))


def squares_of(gradient):
    """The lanes of each block of a flat gradient: level 0 of the reduction."""
    return _sum_lines(np.square(gradient, dtype=np.float64))


def combine(lanes):
    """The sum of all `lanes`, in the order of the reduction."""
    while len(lanes) > 1:
        lanes = _sum_lines(lanes)
    return float(np.add.accumulate(lanes[0])[-1])


def _sum_lines(values):
    """Lane by lane, the sums of groups of `LINES` lines; zeros fill up the last."""
    count = -(-values.size // BLOCK)
    padded = np.zeros(count * BLOCK)
    padded[: values.size] = values.reshape(-1)
    # Along the first axis NumPy adds line after line.
    return np.stack([np.add.accumulate(group)[-1] for group in padded.reshape(count, LINES, LANES)])
