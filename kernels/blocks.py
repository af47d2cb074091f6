"""Pieces cut into blocks: one cut for the CPU, for CUDA and for the norm."""

import numpy as np

from fastadam.kernels import FIRST, START, STOP

# Elements of a block: those of the reduction, 64 lines of 128 lanes. For the CPU's threads, blocks of 4,096 to 262,144
# elements make no difference beyond 5% (bench/tuning.py).
BLOCK = 8_192


def cut(pieces: np.ndarray, elements: int = BLOCK) -> np.ndarray:
    """`pieces` (PARAMETER, CLOCK, START, STOP, FIRST), int64 (n, 5), cut into blocks of up to so many `elements`.

    A piece that begins with its parameter is cut at multiples of `elements` of the parameter's own elements.
    """
    sizes = pieces[:, STOP] - pieces[:, START]
    if not len(sizes) or sizes.max() <= elements:
        return pieces[sizes > 0]
    counts = -(-sizes // elements)
    blocks = np.repeat(pieces, counts, axis=0)
    inside = elements * (np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts))
    blocks[:, START] += inside
    blocks[:, FIRST] += inside
    np.minimum(blocks[:, STOP], blocks[:, START] + elements, out=blocks[:, STOP])
    return blocks
