"""Timings of all contenders on all workloads, in turns, and the rows of the table that shows them."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import numba
import numpy as np
from contenders import CONTENDERS, MISSING
from interleave import Timing, interleave
from workers import SETTLE, contenders_at_work
from workloads import MLP, RESNET50, Workload, flat

import fastadam

BYTES_PER_ELEMENT = 28  # fp32: p, g, m and v are read, p, m and v are written
BASELINE = "NumPy, textbook"
COLUMNS = ["workload", "contender", "us a step", "quartiles", "GB/s", "of the limit", "x textbook"]
# Workload, rounds, and the contenders that are left out because they take seconds there.
RUNS: list[tuple[Workload, int, tuple[str, ...]]] = [
    (flat(100), 101, ()),
    (MLP, 101, ()),
    (flat(1_000_000), 41, ()),
    (flat(10_000_000), 21, ()),
    (flat(50_000_000), 15, ("NumPy, in place", "torch default")),
]


# The full step of a training loop.
SEQUENCE_RUNS: list[tuple[Workload, int]] = [(MLP, 101), (flat(10_000_000), 31), (RESNET50, 21)]


class Results:
    """Timings by workload and contender, of some of the contenders."""

    def __init__(self, contenders: Iterable[str] = CONTENDERS):
        self._contenders = contenders
        self.timings: dict[str, dict[str, Timing]] = {}

    def run(self, workload: Workload, rounds: int, left_out: tuple[str, ...] = ()) -> None:
        """Time every installed contender on `workload`, each checked first."""
        names = [name for name in self._contenders if name not in MISSING and name not in left_out]
        with contenders_at_work(names, workload) as turns:
            self.timings[workload.name] = interleave(turns, rounds, pause=SETTLE)

    def ratio(self, workload: Workload, slower: str, faster: str) -> float:
        """How many times as long `slower` takes as `faster`, of the medians; NaN where it was not timed."""
        timings = self.timings[workload.name]
        there = slower in timings and faster in timings
        return timings[slower].median / timings[faster].median if there else float("nan")

    def rows(self) -> list[list[str]]:
        """One row for each workload and contender, in the order of `COLUMNS`."""
        return [
            self._row(workload, name, timing)
            for workload, _, _ in RUNS
            for name, timing in self.timings.get(workload.name, {}).items()
        ]

    def _row(self, workload, name, timing):
        low, high = timing.quartiles
        return [
            workload.name,
            name,
            f"{1e6 * timing.median:,.1f}",
            f"{1e6 * low:,.1f} to {1e6 * high:,.1f}",
            f"{BYTES_PER_ELEMENT * workload.size / 1e9 / timing.median:.1f}",
            f"{self.ratio(workload, 'limit', name):.2f}",
            f"{self.ratio(workload, BASELINE, name):.1f}",
        ]


def machine() -> str:
    """Processor, threads and versions, in one line."""
    versions = {"fastadam": fastadam.__version__, "Python": platform.python_version(), "NumPy": np.__version__}
    versions["Numba"] = numba.__version__
    if not MISSING:
        versions["torch"] = importlib.metadata.version("torch")
    threads = f"{numba.get_num_threads()} of {os.cpu_count()} threads ({numba.threading_layer()})"
    return f"{_processor()}, {threads}; {', '.join(f'{name} {version}' for name, version in versions.items())}"


def _processor():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
