"""The measurements behind three constants of the kernels: PARALLEL_FROM, DIRECT_FROM and EXPONENT_GROUP."""

from functools import partial
from statistics import median

import numpy as np

from fastadam.bench.contenders.kernel_alone import launch
from fastadam.bench.interleave import interleave, timed
from fastadam.bench.layouts import FORMATS
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.workloads import flat


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


def in_cache(size: int = 16_384) -> None:
    """Print what a step in each storage format takes on one thread where memory does not count."""
    params, grads = flat(size).random(seed=0), flat(size).random(seed=1)
    turns = {}
    for layout in FORMATS:
        contender = CONTENDERS["fastadam" if layout == "float32" else f"fastadam, {layout}"]
        built = contender.build({name: p.copy() for name, p in params.items()}, grads, "plain")
        turns[layout] = timed(built.step, built.prepare)
    for name, times in interleave(turns, rounds=51).items():
        print(f"{name:>50} {1e9 * median(times) / size:.2f} ns an element")


if __name__ == "__main__":
    crossover()
    in_cache()
