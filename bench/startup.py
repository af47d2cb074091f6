"""Seconds from the start of an import to the end of a first step, each in a process of its own."""

import os
import subprocess
import sys
from statistics import median

FIRST_STEP = {
    "import numba": "import numba",
    "fastadam, warm cache": """
import fastadam, numpy
opt = fastadam.Adam({"w": numpy.zeros(100, numpy.float32)})
opt.step({"w": numpy.ones(100, numpy.float32)})
""",
    "torch fused": """
import torch
p = torch.nn.Parameter(torch.zeros(100))
p.grad = torch.ones(100)
torch.optim.Adam([p], fused=True).step()
""",
}


def measure(names: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns, after one round that fills the caches."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names:
            seconds = _run(FIRST_STEP[name])
            if number:
                times[name].append(seconds)
    return {name: median(values) for name, values in times.items()}


def _run(code):
    timed = f"from time import perf_counter\nstart = perf_counter()\n{code}\nprint(perf_counter() - start)"
    return float(subprocess.check_output([sys.executable, "-c", timed], text=True, env=os.environ))
