"""Memory that steps take beyond the buffers."""

import subprocess
import sys

_STEPS = """
import resource, numpy as np, fastadam
params = {name: np.ones(5_000_000, np.float32) for name in "ab"}
grads = {name: np.ones(5_000_000, np.float32) for name in "ab"}
optimizer = fastadam.Adam(params)
optimizer.step(grads)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(5):
    optimizer.step(grads)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def megabytes_grown() -> float:
    """Growth of a process's high-water mark by five steps after the first, 10 million parameters; NaN on Windows."""
    if sys.platform == "win32":
        return float("nan")
    grown = int(subprocess.check_output([sys.executable, "-c", _STEPS], text=True))
    return grown / (1e6 if sys.platform == "darwin" else 1e3)
