"""First-call and fixed costs: import, compilation, the first step of a process, tiny steps, memory of a step."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from statistics import median
from time import perf_counter

TITLE = "First call and fixed costs"
IMPORT, FIRST, COLD = (
    "start of a process to the end of the import",
    "and to the end of a first step",
    "nothing compiled",
)
MEMORY = "memory that five steps of 20,000,000 add"
NUMBA = "Numba alone"
# Library -> how to import it, and how to make a function `step` of an optimizer of `n` parameters.
_IMPORTS = {
    NUMBA: "import numba",
    "fastadam": "import numpy as np, fastadam",
    "torch, fused": "import torch",
    "optax, jit": "import jax, optax",
}
_MAKES = {
    "fastadam": """
def make(n):
    opt = fastadam.Adam({"w": np.zeros(n, np.float32)})
    opt.grads["w"] = 1.0
    return opt.step
""",
    "torch, fused": """
def make(n):
    p = torch.nn.Parameter(torch.zeros(n)); p.grad = torch.ones(n)
    return torch.optim.Adam([p], fused=True).step
""",
    "optax, jit": """
def make(n):
    optimizer = optax.adam(1e-3)
    def update(p, s):
        u, s = optimizer.update(g, s, p)
        return optax.apply_updates(p, u), s
    update = jax.jit(update, donate_argnums=(0, 1))
    p, g = jax.numpy.zeros(n), jax.numpy.ones(n)
    held = [(p, optimizer.init(p))]
    def step():
        held[0] = update(*held[0])
        jax.block_until_ready(held[0])
    return step
""",
}
_NEEDS = {NUMBA: "numba", "fastadam": "numba", "torch, fused": "torch", "optax, jit": "optax"}
_NOW = "\nfrom time import perf_counter\nprint(perf_counter())"
_TINY = """
from statistics import median
from time import perf_counter
step = make({size})
for _ in range(200): step()
times = []
for _ in range(51):
    start = perf_counter()
    for _ in range(100): step()
    times.append((perf_counter() - start) / 100)
print(median(times))
"""
_GROWTH = """
import resource, sys
step = make(20_000_000)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(5): step()
unit = 1 if sys.platform == "darwin" else 1024
print(unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def costs(rounds: int = 7, progress: Callable[[], None] = lambda: None) -> dict[str, dict[str, float]]:
    """What -> library -> median seconds, or bytes; libraries take turns. Memory is not measured on Windows."""
    there = {name: code for name, code in _IMPORTS.items() if importlib.util.find_spec(_NEEDS[name])}
    libraries = {name: f"{there[name]}{make}" for name, make in _MAKES.items() if name in there}
    first = {name: f"{code}make(100)(){_NOW}" for name, code in libraries.items()}
    measured = {
        # Once more than is counted: the caches of the disk are to be warm.
        IMPORT: _in_turns({name: code + _NOW for name, code in there.items()}, _since_start, rounds + 1, progress),
        FIRST: _in_turns(first, _since_start, rounds + 1, progress),
        f"{FIRST}, {COLD}": _in_turns(first, _without_cache, 1, progress),
    }
    for size in (1, 100, 1_000):
        codes = {name: code + _TINY.format(size=size) for name, code in libraries.items()}
        measured[f"step of {size:,}"] = _in_turns(codes, _printed, 3, progress)
    if sys.platform != "win32":
        codes = {name: code + _GROWTH for name, code in libraries.items()}
        measured[MEMORY] = _in_turns(codes, _printed, 1, progress)
    return measured


def _in_turns(codes, measure, rounds, progress):
    values: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            values[name].append(measure(code))
            progress()
    return {name: median(found[1:] or found) for name, found in values.items()}


def _printed(code, environment=None):
    output = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    return float(output.split()[-1])


def _since_start(code, environment=None):
    # The clock of the two processes is that of the system.
    start = perf_counter()
    return _printed(code, environment) - start


def _without_cache(code):
    with tempfile.TemporaryDirectory() as empty:
        return _since_start(code, {**os.environ, "NUMBA_CACHE_DIR": empty})
