"""Seconds a step on record with pytest-benchmark: the rounds of all contenders of a case, measured in turns."""

from itertools import accumulate

import pytest

from fastadam.bench.record import SCHEMA


class RoundsClock:
    """A clock that has been stopped: it tells the rounds that a contender took in its turns, one at each call."""

    def __init__(self):
        self._times = iter(())

    def set(self, seconds):
        """Begin anew, and go on by each of `seconds` between a first and a second look."""
        ends = accumulate(seconds)
        self._times = (time for end, took in zip(ends, seconds, strict=True) for time in (end - took, end))

    def __call__(self):
        return next(self._times, 0.0)


clock = RoundsClock()


@pytest.mark.benchmark(timer=clock)
def test_step(benchmark, runs, case, name):
    result = runs.result(case, name)
    clock.set(result.seconds)
    benchmark.group = case.title
    benchmark.pedantic(lambda: None, rounds=len(result.seconds))
    benchmark.extra_info.update(
        {
            "parameters": result.size,
            "bytes": result.bytes * result.size,
            "ns a parameter": result.nanoseconds_a_parameter,
            "GB/s": result.gigabytes_a_second,
            "share of the limit": runs.record.share_of_limit(result),
            "record": {"schema": SCHEMA, **runs.part(result)},
            **runs.record.machine,
        }
    )
