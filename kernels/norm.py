"""The one reduction: the sum of the squares of all gradients, in float64 and in one fixed order.

Every gradient is cut into blocks of `ROWS` rows of `LANES` elements. A lane of a block adds up the squares of its
column, row after row; then, again and again, up to `ROWS` blocks are added up lane by lane, until one is left, whose
lanes are added up in order. The order depends on the sizes of the gradients alone: not on the number of threads,
nor on where the gradients lie or how they are grouped, and it is the same on the CPU and on CUDA.
"""

import numpy as np

LANES = 128
ROWS = 64
BLOCK = LANES * ROWS


def blocks_of(sizes):
    """Blocks (parameter, offset, size) of gradients of these sizes."""
    cut = [
        (parameter, offset, min(BLOCK, size - offset))
        for parameter, size in enumerate(sizes)
        for offset in range(0, size, BLOCK)
    ]
    return np.array(cut, np.int64).reshape(-1, 3)


def reference(gradients):
    """The squared norm of flat `gradients`, in NumPy."""
    with np.errstate(all="ignore"):
        lanes = [_sum_rows(np.square(gradient, dtype=np.float64)) for gradient in gradients if gradient.size]
        sums = np.concatenate(lanes) if lanes else np.zeros((1, LANES))
        while len(sums) > 1:
            sums = _sum_rows(sums)
        return float(np.add.accumulate(sums[0])[-1])


def _sum_rows(values):
    """Lane by lane, the sums of groups of `ROWS` rows; zeros fill up the last."""
    count = -(-values.size // BLOCK)
    padded = np.zeros(count * BLOCK)
    padded[: values.size] = values.reshape(-1)
    # Along the first axis NumPy adds row after row.
    return np.stack([np.add.accumulate(group)[-1] for group in padded.reshape(count, ROWS, LANES)])
