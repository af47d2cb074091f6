"""Seconds a step, by workload and contender, on record with pytest-benchmark. For ratios see report.py."""

import pytest
from contenders import CONTENDERS, MISSING
from results import BYTES_PER_ELEMENT
from workers import contenders_at_work
from workloads import MLP, flat

WORKLOADS = [flat(100), MLP, flat(100_000), flat(1_000_000), flat(10_000_000)]


class WorkerClock:
    """A clock that runs only while a contender steps in its process, and by that process's own measure."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


clock = WorkerClock()


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
@pytest.mark.parametrize("name", CONTENDERS)
def test_step(benchmark, name, workload):
    if name in MISSING:
        pytest.skip(f"{MISSING[name]} is not installed")
    calls_a_round = max(1, 200_000 // workload.size)
    with contenders_at_work([name], workload) as turns:

        def step():
            clock.seconds += turns[name](calls_a_round)

        benchmark.group = workload.name
        benchmark.pedantic(step, rounds=5 if workload.size > 1_000_000 else 15, warmup_rounds=1)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["parameters"] = workload.size
    benchmark.extra_info["nanoseconds a parameter"] = 1e9 * seconds / workload.size
    benchmark.extra_info["GB/s"] = BYTES_PER_ELEMENT * workload.size / 1e9 / seconds
