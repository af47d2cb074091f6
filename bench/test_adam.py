"""Textbook NumPy, torch's fused step and fastadam on record with pytest-benchmark: `pytest bench`.

Each is compared with a float64 Adam before it is timed. They share a process here, in which the idle threads of one
pool slow the other down. `fastadam bench` gives each its own process, lets them take turns, and also has the limit and
all other contenders.
"""

import pytest

from fastadam.bench.build import build
from fastadam.bench.machine import facts
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.workloads import MLP, RESNET50, flat


@pytest.mark.parametrize("workload", [MLP, flat(1_000_000), RESNET50], ids=lambda workload: workload.name)
@pytest.mark.parametrize("name", ["NumPy, textbook", "torch, fused", "fastadam"])
def test_step(benchmark, name, workload):
    missing = CONTENDERS[name].missing()
    if missing:
        pytest.skip(missing)
    step = build(name, workload, "plain").step  # an AssertionError where the parameters are not right
    moved = CONTENDERS[name].bytes_moved("plain") * workload.size
    benchmark.group = workload.name
    benchmark.extra_info.update({"parameters": workload.size, "bytes": moved, **facts()})
    benchmark(step)
