"""First-call and fixed costs: import, compilation, the first step of a process, tiny steps, memory of a step."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
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
# What users of a library import, and the module of its contender.
LIBRARIES = {
    NUMBA: ("numba", None),
    TEXTBOOK: ("numpy", "numpy_textbook"),
    "fastadam": ("numpy, fastadam", "fastadam_adam"),
    "torch, fused": ("torch", "torch_adam"),
    "optax, jit": ("jax, optax", "optax_adam"),
}
# The library comes first. The time that this file and the contender then take to be imported is taken off.
_PROGRAM = """
from time import perf_counter
import {packages}
imported = perf_counter()
from fastadam.bench.costs import first_step, growth, tiny_step
print({what})
"""


def costs(measured: dict[str, dict[str, float]], rounds: int = 7) -> None:
    """Fill `measured`: what -> library -> median seconds, or bytes. Libraries take turns. Memory needs Linux."""
    there = [name for name, (packages, _) in LIBRARIES.items() if _installed(packages)]
    steps = [name for name in there if name != NUMBA]
    # The first round is not counted: it warms the caches of the disk.
    measured[IMPORT] = _in_turns(there, _since_start, "imported", rounds + 1)
    measured[FIRST] = _in_turns(steps, _since_start, "first_step({name!r}, imported)", rounds + 1)
    measured[f"{FIRST}, {COLD}"] = _in_turns(steps, _without_cache, "first_step({name!r}, imported)", 1)
    for size in (1, 100, 1_000):
        measured[f"step of {size:,}"] = _in_turns(steps, _printed, f"tiny_step({{name!r}}, {size})", min(rounds, 3))
    if sys.platform == "linux":
        measured[MEMORY] = _in_turns(steps, _printed, "growth({name!r})", 1)


def _installed(packages):
    return all(importlib.util.find_spec(package) for package in packages.split(", "))


def _in_turns(names, measure, what, rounds):
    values: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, found in values.items():
            found.append(measure(name, what))
    return {name: median(found[1:] or found) for name, found in values.items()}


def _printed(name, what, environment=None):
    program = _PROGRAM.format(packages=LIBRARIES[name][0], what=what.format(name=name))
    output = subprocess.check_output([sys.executable, "-c", program], text=True, env=environment)
    return float(output.split()[-1])


def _since_start(name, what, environment=None):
    # Both processes read the same clock of the system.
    start = perf_counter()
    return _printed(name, what, environment) - start


def _without_cache(name, what):
    with tempfile.TemporaryDirectory() as empty:
        return _since_start(name, what, {**os.environ, "NUMBA_CACHE_DIR": empty})


# What follows runs in the processes that are measured.


def first_step(name: str, imported: float) -> float:
    """The time at which a first step of 100 parameters was done, without what other imports took."""
    _contender(name)
    others = perf_counter() - imported
    _step(name, 100)()
    return perf_counter() - others


def tiny_step(name: str, size: int) -> float:
    """Seconds that a step of a few parameters takes."""
    step = _step(name, size)
    for _ in range(200):
        step()
    times = []
    for _ in range(51):
        start = perf_counter()
        for _ in range(100):
            step()
        times.append((perf_counter() - start) / 100)
    return median(times)


def growth(name: str) -> float:
    """How far the memory of a process rises above what it holds between steps of 20,000,000 parameters."""
    step = _step(name, 20_000_000)
    step()
    held = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(5):
        step()
    return 1024 * max(0, _kilobytes("VmHWM") - held)


def _kilobytes(field):
    return int(dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/self/status").read_text()))[field])


def _contender(name):
    module = import_module(f"fastadam.bench.contenders.{LIBRARIES[name][1]}")
    return next(each for each in module.CONTENDERS if each.name == name)


def _step(name, size):
    import numpy as np

    params, grads = {"w": np.zeros(size, np.float32)}, {"w": np.ones(size, np.float32)}
    return _contender(name).build(params, grads, "plain").step
