"""Where the parallel kernel overtakes the serial one, and where a gradient is better read in place than copied.

The constants PARALLEL_FROM and DIRECT_FROM of the CPU kernel rest on this table.
"""

import numpy as np
from interleave import interleave, timed

from fastadam.kernels import cpu
from fastadam.kernels.fold import fold
from fastadam.kernels.update import ADAM


def main() -> None:
    serial, parallel = cpu.twins(ADAM)
    scalars = fold(1e-3, 0.9, 0.999, 1e-8, 0.0)(1, 1.0)
    print(f"{'elements':>10} {'serial us':>10} {'parallel':>10} {'copy':>10}")
    for size in (1_000, 4_000, 8_000, 16_000, 24_000, 32_000, 48_000, 64_000, 128_000, 256_000):
        p, g, m, v, own = (np.ones(size, np.float32) for _ in range(5))
        calls = {
            "serial": lambda buffers=(p, g, m, v): serial(*buffers, scalars),
            "parallel": lambda buffers=(p, g, m, v): parallel(*buffers, scalars),
            "copy": lambda g=g, own=own: np.copyto(g, own),
        }
        turns = {name: timed(call) for name, call in calls.items()}
        row = [timing.median * 1e6 for timing in interleave(turns, rounds=51).values()]
        print(f"{size:>10,} " + " ".join(f"{value:>10.2f}" for value in row))


if __name__ == "__main__":
    main()
