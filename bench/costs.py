"""First-call and fixed costs: import, compilation, the first step of a process, tiny steps, memory of a step."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from statistics import median
from time import perf_counter

TITLE = "First call and fixed costs"
IMPORT, FIRST, COLD = (
    "start of a process to the end of the import",
    "and to the end of a first step",
    "nothing compiled",
)
MEMORY = "memory that a step of 20,000,000 takes for a while"
NUMBA, TEXTBOOK = "Numba alone", "NumPy, textbook"
# Library -> how to import it, and how to make a function `step` of an optimizer of `n` parameters.
_IMPORTS = {
    NUMBA: "import numba",
    TEXTBOOK: "import numpy as np\nfrom fastadam.demo.textbook import TextbookAdam",
    "fastadam": "import numpy as np, fastadam",
    "torch, fused": "import torch",
    "optax, jit": "import jax, optax",
}
_MAKES = {
    TEXTBOOK: """
def make(n):
    opt, params, grads = TextbookAdam(), {"w": np.zeros(n, np.float32)}, {"w": np.ones(n, np.float32)}
    return lambda: params.update(opt.step(params, grads))
""",
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
_NEEDS = {NUMBA: "numba", TEXTBOOK: "numpy", "fastadam": "numba", "torch, fused": "torch", "optax, jit": "optax"}
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
# How far the memory of a process rises above what it holds between steps.
_GROWTH = """
import re
def kilobytes(field):
    with open("/proc/self/status") as file: return int(re.search(field + r":\\s+(\\d+)", file.read())[1])
step = make(20_000_000)
step()
held = kilobytes("VmRSS")
with open("/proc/self/clear_refs", "w") as file: file.write("5")
for _ in range(5): step()
print(1024 * max(0, kilobytes("VmHWM") - held))
"""


def costs(measured: dict[str, dict[str, float]], rounds: int = 7) -> None:
    """Add to `measured`: what -> library -> median seconds, or bytes; libraries take turns. Memory only on Linux."""
    there = {name: code for name, code in _IMPORTS.items() if importlib.util.find_spec(_NEEDS[name])}
    libraries = {name: f"{there[name]}{make}" for name, make in _MAKES.items() if name in there}
    first = {name: f"{code}make(100)(){_NOW}" for name, code in libraries.items()}
    # Once more than is counted: the caches of the disk are to be warm.
    imports = {name: code + _NOW for name, code in there.items()}
    measured[IMPORT] = _in_turns(imports, _since_start, rounds + 1)
    measured[FIRST] = _in_turns(first, _since_start, rounds + 1)
    measured[f"{FIRST}, {COLD}"] = _in_turns(first, _without_cache, 1)
    for size in (1, 100, 1_000):
        codes = {name: code + _TINY.format(size=size) for name, code in libraries.items()}
        measured[f"step of {size:,}"] = _in_turns(codes, _printed, 3)
    if sys.platform == "linux":
        measured[MEMORY] = _in_turns({name: code + _GROWTH for name, code in libraries.items()}, _printed, 1)


def _in_turns(codes, measure, rounds):
    values: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(rounds):
        for name, code in codes.items():
            values[name].append(measure(code))
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
