"""The measurements behind the constants of the CPU kernel: PARALLEL_FROM and DIRECT_FROM; BLOCK and AHEAD_BYTES."""

import tempfile
from functools import partial
from unittest.mock import patch

import numba
import numpy as np
from interleave import interleave, timed

from fastadam.kernels import cpu
from fastadam.kernels.fold import fold
from fastadam.kernels.update import ADAM

SCALARS = fold(1e-3, 0.9, 0.999, 1e-8, 0.0)(1, 1.0)


def crossover() -> None:
    """Where the parallel kernel overtakes the serial one, and what copying a gradient costs beside a launch."""
    serial, parallel = cpu.twins(ADAM)
    print(f"{'elements':>10} {'serial us':>10} {'parallel':>10} {'copy':>10}")
    for size in (1_000, 4_000, 8_000, 16_000, 24_000, 32_000, 48_000, 64_000, 128_000, 256_000):
        p, g, m, v, own = (np.ones(size, np.float32) for _ in range(5))
        turns = {
            "serial": timed(partial(serial, p, g, m, v, SCALARS)),
            "parallel": timed(partial(parallel, p, g, m, v, SCALARS)),
            "copy": timed(partial(np.copyto, g, own)),
        }
        row = [timing.median * 1e6 for timing in interleave(turns, rounds=51).values()]
        print(f"{size:>10,} " + " ".join(f"{value:>10.2f}" for value in row))


def prefetching() -> None:
    """Time of a step on long buffers by elements a block and bytes ahead, in parts of that without a look ahead."""
    kernels = {setting: _compiled(*setting) for setting in [(64, 0), *((b, a) for b in (64, 128) for a in AHEAD)]}
    print(f"{'elements':>12} {'block':>6}" + "".join(f"{f'{ahead} bytes':>12}" for ahead in AHEAD))
    for size in (10_000_000, 50_000_000):
        buffers = [np.ones(size, np.float32) for _ in range(4)]
        turns = {setting: timed(partial(kernel, *buffers, SCALARS)) for setting, kernel in kernels.items()}
        medians = {setting: timing.median for setting, timing in interleave(turns, rounds=15).items()}
        for block in (64, 128):
            row = "".join(f"{medians[block, ahead] / medians[64, 0]:>12.3f}" for ahead in AHEAD)
            print(f"{size:>12,} {block:>6}{row}")


AHEAD = (512, 1024, 2048, 4096)


def _compiled(block, ahead):
    # Numba's cache does not know of changed globals: these kernels must not reach the cache that users share.
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(numba.config, "CACHE_DIR", folder),
        patch.multiple(cpu, BLOCK=block, AHEAD_BYTES=ahead),
    ):
        kernel = cpu._compile(ADAM, parallel=True)
        kernel(*(np.ones(100, np.float32) for _ in range(4)), SCALARS)
    return kernel


if __name__ == "__main__":
    crossover()
    prefetching()
