"""A step allocates nothing that grows with the parameters."""

import importlib.util
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from training import both

import fastadam

SHAPES = {"large": (1_000_000,), "small": (100,), "matrix": (1_000, 200)}


# Processes that are timed or forked, or whose memory is measured: one at a time.
pytestmark = pytest.mark.xdist_group("processes")


def optimizer_of(flat, **options):
    return fastadam.Adam({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}, flat=flat, **options)


def steps(flat):
    grads = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    optimizer = optimizer_of(flat)
    array = np.ones(optimizer.buffers.g.size, np.float32)
    p, g, m, v = (np.ones(1_000_000, np.float32) for _ in range(4))
    return {
        "mapping": lambda: optimizer.step(grads),
        "list": lambda: optimizer.step(list(grads.values())),
        "written": lambda: optimizer.step(),
        "flat": lambda: optimizer.step(array),
        "adam_step": lambda: fastadam.adam_step(p, g, m, v, step=1),
    }


@both
@pytest.mark.parametrize("way", ["mapping", "list", "written", "flat", "adam_step"])
def test_a_step_allocates_a_few_kilobytes_of_python_objects_at_most(way, flat):
    step = steps(flat)[way]
    step()
    tracemalloc.start()
    try:
        step()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000


@pytest.mark.skipif(not importlib.util.find_spec("resource"), reason="the system does not report the high-water mark")
def test_the_high_water_mark_of_the_process_stays():
    # What tracemalloc does not see: memory that compiled code takes. One array of this size is 20,000 KiB.
    code = """
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
    grown = int(subprocess.check_output([sys.executable, "-c", code], text=True))
    kibibyte = 1 if sys.platform != "darwin" else 1024
    assert grown < 1_000 * kibibyte


def test_the_gradient_buffer_is_allocated_when_first_used():
    flat = np.ones(1_000_000, np.float32)
    optimizer = fastadam.Adam(flat)
    optimizer.step(np.ones(1_000_000, np.float32))
    optimizer.zero_grad()
    assert "g" not in optimizer.buffers.flats


@both
def test_gradients_get_a_buffer_only_where_small_ones_are_gathered(flat):
    rows = fastadam.SparseRows([3], np.ones((1, 200), np.float32))
    large = optimizer_of(flat)
    for matrix in (rows, None, np.ones((1_000, 200), np.float32)):
        large.step({"large": np.ones(1_000_000, np.float32), "small": None, "matrix": matrix})
    assert "g" not in large.buffers.flats
    large.step({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()})
    assert "g" in large.buffers.flats
    asked = optimizer_of(flat)
    assert "g" not in asked.buffers.flats
    assert list(asked.grads) == list(SHAPES)
    assert "g" in asked.buffers.flats


def test_arrays_where_they_lie_are_not_copied():
    params = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    elements = sum(array.size for array in params.values())
    tracemalloc.start()
    try:
        optimizer = fastadam.Adam(params)
        optimizer.step({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items() if name != "x"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sorted(optimizer.buffers.flats) == ["g", "m", "v"]
    # Gradients, both moments and the buffer where small gradients are gathered.
    assert peak < 4 * 4 * elements + 100_000
