"""The measurements behind the constants of the CPU kernel: PARALLEL_FROM, DIRECT_FROM and EXPONENT_BLOCK."""

from functools import partial

import numpy as np

from fastadam.bench.contenders import CONTENDERS
from fastadam.bench.interleave import interleave, timed
from fastadam.bench.layouts import FORMATS
from fastadam.bench.workloads import flat
from fastadam.kernels import cpu
from fastadam.kernels.texts import fold
from fastadam.kernels.texts.update import ADAM

HYPER = np.array([[1e-3, 0.9, 0.999, 1e-8] + [0.0] * (len(fold.HYPER) - 4)])


def crossover() -> None:
    """Where the parallel kernel overtakes the serial one, and what copying a gradient costs beside a launch."""
    serial, parallel = (cpu.compiled(ADAM, np.dtype(np.float32), parallel=parallel) for parallel in (False, True))
    print(f"{'elements':>10} {'serial us':>10} {'parallel':>10} {'copy':>10}")
    for size in (1_000, 4_000, 8_000, 16_000, 24_000, 32_000, 48_000, 64_000, 128_000, 256_000):
        p, g, m, v, own = (np.ones(size, np.float32) for _ in range(5))
        addresses, blocks = np.array([cpu.address(g)]), cpu.blocks_of([(0, size, 0, 0, 0)])
        rows, table = np.zeros(1, np.int64), np.zeros((1, fold.COLUMNS), np.float32)
        carried = np.array([fold.FIRST_CARRIED])
        arguments = (p, m, v), addresses, blocks, rows, HYPER, carried, table, 1.0
        turns = {
            "serial": timed(partial(serial, *arguments)),
            "parallel": timed(partial(parallel, *arguments)),
            "copy": timed(partial(np.copyto, g, own)),
        }
        row = [timing.median * 1e6 for timing in interleave(turns, rounds=51).values()]
        print(f"{size:>10,} " + " ".join(f"{value:>10.2f}" for value in row))


def in_cache(size: int = 16_384) -> None:
    """What a step in each storage format takes on one thread where memory does not count."""
    params, grads = flat(size).random(seed=0), flat(size).random(seed=1)
    turns = {}
    for layout in FORMATS:
        contender = CONTENDERS["fastadam" if layout == "float32" else f"fastadam, {layout}"]
        built = contender.build({name: p.copy() for name, p in params.items()}, grads, "plain")
        turns[layout] = timed(built.step, built.prepare)
    for name, timing in interleave(turns, rounds=51).items():
        print(f"{name:>50} {1e9 * timing.median / size:.2f} ns an element")


if __name__ == "__main__":
    crossover()
    in_cache()
