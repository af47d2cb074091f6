"""`fastadam.set_num_threads` and `get_num_threads`: how many threads a launch takes, and whom it follows."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from launched import launched
from new_process import run
from oracle import random_state
from refusal import exactly

import fastadam
from fastadam.kernels import cpu, kernel_cache, thread_count
from fastadam.kernels.cpu import jit
from fastadam.kernels.cpu.rows import catch_up_table

# Processes of their own, one at a time.
pytestmark = pytest.mark.xdist_group("processes")

MOST = numba.config.NUMBA_NUM_THREADS
several = pytest.mark.skipif(MOST < 2, reason="needs two threads")
# `step()` makes a launch, and so does `launched()`, which returns how many threads it takes.
LAUNCH = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import fastadam, numpy as np
from launched import launched
def step(size=100_000):
    arrays = np.ones((4, size), np.float32)
    fastadam.adam_step(*arrays, step=1)
    return arrays[0]
"""


def step(size):
    fastadam.adam_step(*np.ones((4, size), np.float32), step=1)


@pytest.fixture(autouse=True)
def as_before():
    yield
    fastadam.set_num_threads(None)


@pytest.mark.parametrize("n", range(1, MOST + 1))
def test_a_launch_takes_the_number_that_was_set(n):
    fastadam.set_num_threads(n)
    assert fastadam.get_num_threads() == launched() == n
    fastadam.set_num_threads(None)
    assert fastadam.get_num_threads() == launched()


def test_the_number_holds_in_all_python_threads():
    fastadam.set_num_threads(1)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(launched).result() == 1
        pool.submit(fastadam.set_num_threads, MOST).result()
    assert fastadam.get_num_threads() == launched() == MOST


def test_numbas_own_mask_is_heard_and_left_as_it_was():
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert fastadam.get_num_threads() == launched() == 1
        fastadam.set_num_threads(MOST)
        assert fastadam.get_num_threads() == launched() == MOST
        step(100_000)
        assert numba.get_num_threads() == 1
        count = 100
        catch_up_table(np.arange(count), count, np.ones((count + 1, 3)), np.ones((count + 1, 3)), np.dtype(np.float32))
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


@several
def test_a_launch_that_takes_one_thread_is_serial():
    # On this layer two parallel launches at a time end the process, and Numba's users may have launches of their own.
    code = (
        LAUNCH
        + """
import threading, numba
@numba.njit(parallel=True, nogil=True)
def work(array):
    for index in numba.prange(array.size):
        array[index] = np.sqrt(array[index] + 1.0)
def step_on_one():
    numba.set_num_threads(1)
    while not stop.is_set():
        step()
step()
stop, array = threading.Event(), np.ones(1_000_000)
thread = threading.Thread(target=step_on_one)
thread.start()
for _ in range(300):
    work(array)
stop.set()
thread.join()
print(numba.threading_layer())
"""
    )
    assert run(code, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2") == "workqueue"


def test_a_call_may_ask_for_itself():
    fastadam.set_num_threads(MOST)
    with thread_count.asking(1):
        assert launched() == 1
        with thread_count.asking(None):
            assert launched() == 1
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(launched).result() == MOST
    assert launched() == MOST


def test_the_number_changes_no_bit():
    states = [random_state(3 * cpu.PARALLEL_FROM + 5) for _ in range(MOST)]
    for n, state in enumerate(states, start=1):
        fastadam.set_num_threads(n)
        fastadam.adam_step(*state, step=3)
        for array, other in zip(state, states[0], strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "`n` must be >= 1, got 0"),
        (-1, ValueError, "`n` must be >= 1, got -1"),
        (1.0, TypeError, "`n` must be an integer, got 1.0"),
        ("2", TypeError, "`n` must be an integer, got '2'"),
        (
            MOST + 1,
            ValueError,
            f"`n` must be <= {MOST}, the number of threads that Numba has here, got {MOST + 1}. The environment "
            "variable NUMBA_NUM_THREADS sets it",
        ),
    ],
)
def test_a_bad_number_is_refused(n, error, message):
    fastadam.set_num_threads(1)
    with pytest.raises(error, match=exactly(message)):
        fastadam.set_num_threads(n)
    assert fastadam.get_num_threads() == 1


@pytest.mark.parametrize(
    ("variable", "expected"), [("", 4), ("3", 3), ("2,1", 2), ("1", 1), ("9", 4), ("0", 1), ("many", 4)]
)
def test_openmps_variable_is_followed(variable, expected):
    code = LAUNCH + "print(fastadam.get_num_threads(), launched()); step()"
    assert run(code, NUMBA_NUM_THREADS="4", OMP_NUM_THREADS=variable) == f"{expected} {expected}"


def _one_more(number):
    return number + 1


def _no_place(function):
    raise RuntimeError("no place for a cache")


@several
def test_kernels_are_compiled_after_the_variable_of_running_threads_was_changed(monkeypatch):  # Wake-T#161
    fastadam.set_num_threads(MOST)
    assert launched() == MOST
    changed = str(MOST + 1)
    monkeypatch.setenv("NUMBA_NUM_THREADS", changed)
    monkeypatch.setattr(kernel_cache, "KernelCache", _no_place)
    monkeypatch.setattr(jit, "_leaves", {})
    assert jit.jit(_one_more, "one_more")(1) == 2
    assert jit.leaf(_one_more).address
    assert os.environ["NUMBA_NUM_THREADS"] == changed
    assert numba.config.NUMBA_NUM_THREADS == MOST


def test_torch_is_followed_as_soon_as_it_is_imported():
    pytest.importorskip("torch")
    code = (
        LAUNCH
        + """
step()
counts = [fastadam.get_num_threads(), launched()]
import torch
for count in (3, 1, 64):
    torch.set_num_threads(count)
    counts += [fastadam.get_num_threads(), launched()]
    step()
    assert torch.get_num_threads() == count
fastadam.set_num_threads(4)
torch.set_num_threads(1)
print(*counts, launched())
"""
    )
    assert run(code, NUMBA_NUM_THREADS="4", OMP_NUM_THREADS="2") == "2 2 3 3 1 1 4 4 4"


def test_one_thread_starts_no_pool():
    code = (
        LAUNCH
        + """
fastadam.set_num_threads(1)
step()
import numba
try:
    print(numba.threading_layer())
except ValueError:
    print("none")
"""
    )
    assert run(code) == "none"


def test_asking_for_the_number_keeps_that_of_torch():
    pytest.importorskip("torch")
    code = (
        "import torch, fastadam; torch.set_num_threads(7); fastadam.get_num_threads(); print(torch.get_num_threads())"
    )
    assert run(code) == "7"


def test_nothing_is_loaded_before_it_is_needed():
    code = "import sys, fastadam; print({'numba', 'torch'} & set(sys.modules))"
    assert run(code) == "set()"


@several
@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_python_threads_set_numbers_while_others_step(layer):
    code = (
        LAUNCH
        + """
import concurrent.futures
expected = step()
def work(index):
    fastadam.set_num_threads(1 + index % 2)
    return [step() for _ in range(10)]
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    results = [array for each in pool.map(work, range(16)) for array in each]
import numba
print(all(np.array_equal(array, expected) for array in results), numba.get_num_threads())
"""
    )
    assert run(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2") == "True 2"


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=several)])
def test_other_python_threads_run_during_a_long_step(n):
    code = f"""
import sys, threading, time, numpy as np, fastadam
fastadam.set_num_threads({n})
arrays = np.ones((4, 8_000_000), np.float32)
fastadam.adam_step(*arrays, step=1)
turns, done, inside = [], threading.Event(), 0
def watch():
    while not done.is_set():
        time.sleep(1e-4)
        turns.append(time.perf_counter())
sys.setswitchinterval(100)  # only who waits or lets others run gives up the interpreter
watcher = threading.Thread(target=watch)
watcher.start()
for number in range(2, 12):
    begin = time.perf_counter()
    fastadam.adam_step(*arrays, step=number)
    part = (time.perf_counter() - begin) / 4
    inside += sum(begin + part < turn < begin + 3 * part for turn in turns)
done.set()
print(inside > 0)
"""
    assert run(code) == "True"
