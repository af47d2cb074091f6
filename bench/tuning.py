"""The measurements behind constants of the kernels: PARALLEL_FROM, DIRECT_FROM, EXPONENT_GROUP and the table of tuning.

    python -m fastadam.bench.tuning

prints them. The figures beside the constants come from there.
"""

import os
from functools import partial
from statistics import median
from unittest import mock

import numpy as np

from fastadam.bench.contenders.kernel_alone import launch
from fastadam.bench.interleave import interleave, timed
from fastadam.bench.layouts import FORMATS
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.workloads import flat
from fastadam.kernels.cpu.tuning import VARIABLE, prefetch

DISTANCES = (0, 256, 512, 1_024)


def crossover() -> None:
    """Print where the parallel kernel overtakes the serial one, and what it costs to copy a gradient."""
    print(f"{'elements':>10} {'serial us':>10} {'parallel':>10} {'copy':>10}")
    for size in (1_000, 4_000, 8_000, 16_000, 24_000, 32_000, 48_000, 64_000, 128_000, 256_000):
        p, g, m, v, own = (np.ones(size, np.float32) for _ in range(5))
        turns = {
            "serial": timed(launch(p, g, m, v)),
            "parallel": timed(launch(p, g, m, v, parallel=True)),
            "copy": timed(partial(np.copyto, g, own)),
        }
        row = [1e6 * median(times) for times in interleave(turns, rounds=51).values()]
        print(f"{size:>10,} " + " ".join(f"{value:>10.2f}" for value in row))


def prefetching(size: int, rounds: int = 21) -> None:
    """Print what a step in each storage format takes with memory fetched so many elements ahead; of those fetched none.

    With 16,384 elements memory does not count, and one thread steps them.
    """
    print(f"{size:,} elements, ns an element; this processor: {prefetch()}")
    print(f"{'elements ahead':>50} " + " ".join(f"{ahead:>7}" for ahead in DISTANCES))
    params, grads = flat(size).random(seed=0), flat(size).random(seed=1)
    cases = [("fastadam" if layout == "float32" else f"fastadam, {layout}", "plain") for layout in FORMATS]
    for name, kind in [*cases, ("fastadam", "clip")]:
        turns = {}
        for ahead in DISTANCES:
            # It is read where launches are prepared, in the first step.
            with mock.patch.dict(os.environ, {VARIABLE: str(ahead)}):
                built = CONTENDERS[name].build({key: p.copy() for key, p in params.items()}, grads, kind)
                built.step()
            turns[str(ahead)] = timed(built.step, built.prepare)
        row = [1e9 * median(times) / size for times in interleave(turns, rounds).values()]
        print(f"{name + (', clip' if kind == 'clip' else ''):>50} " + " ".join(f"{value:>7.3f}" for value in row))


if __name__ == "__main__":
    crossover()
    prefetching(16_384)
    prefetching(20_000_000)
