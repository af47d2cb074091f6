"""The CPU kernel equals the NumPy reference bit for bit, on all lengths, values, threads and places."""

import copy

import numba
import numpy as np
import pytest
from members import (
    MAIN,
    MEMBERS,
    OTHERS,
    assert_same,
    by_cpu,
    by_reference,
    check,
    launch_of,
    random_flats,
    special_flats,
)
from oracle import misaligned

from fastadam.kernels import cpu, reference
from fastadam.kernels.texts import fold

main = pytest.mark.parametrize("name", MAIN)
others = pytest.mark.parametrize("name", OTHERS)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
twins = pytest.mark.parametrize("parallel", [False, True], ids=["serial", "parallel"])

# Around every vector width (4 to 16 elements, unrolled by 4) and every chunk that two threads can get.
LENGTHS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 511, 1023, 4097]
STEPS = [1, 2, 10, 1_000, 1_000_000]


@main
@dtypes
@twins
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(name, dtype, parallel, length):
    check(launch_of(MEMBERS[name], random_flats(MEMBERS[name], dtype, length, seed=length)), by_cpu(parallel))


@main
@dtypes
@twins
@pytest.mark.parametrize("step", STEPS)
def test_denormal_huge_and_non_finite_values(name, dtype, parallel, step):
    check(launch_of(MEMBERS[name], special_flats(MEMBERS[name], dtype), step), by_cpu(parallel))


@others
@dtypes
def test_every_member_of_the_family(name, dtype):
    update = MEMBERS[name]
    for length in (0, 1, 17, 1_001):
        check(launch_of(update, random_flats(update, dtype, length)), by_cpu(False))
    # RAdam changes its form after step 5.
    for step in (1, 5, 6, 1_000_000):
        check(launch_of(update, special_flats(update, dtype), step, grad_scale=1.0), by_cpu(False))


@pytest.mark.parametrize("name", ["amsgrad_optax", "nadam", "adamax", "radam", "float16", "zero_grad"])
def test_members_of_the_family_on_threads(name):
    update = MEMBERS[name]
    check(launch_of(update, random_flats(update, np.float32, 40_001)), by_cpu(True))
    check(launch_of(update, special_flats(update, np.float32), step=6), by_cpu(True))


@main
@dtypes
@twins
@pytest.mark.parametrize("elements", [1, 2, 3, 5, 7])
def test_misaligned_starts(name, dtype, parallel, elements):
    buffers = random_flats(MEMBERS[name], dtype, 1_001)
    shifted = {key: misaligned(buffer, elements + offset) for offset, (key, buffer) in enumerate(buffers.items())}
    check(launch_of(MEMBERS[name], shifted), by_cpu(parallel))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [1, 3, 1_000, 32_767, 32_768, 100_003])
@pytest.mark.parametrize("name", ["adam_l2", "everything"])
def test_thread_counts(name, threads, length):
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        update = MEMBERS[name]
        check(launch_of(update, random_flats(update, np.float32, length, seed=length)), by_cpu(True))
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("cut", [1, 17, 32_768, 50_000])
def test_a_split_launch_equals_a_whole_one(cut):
    update = MEMBERS["everything"]
    split = random_flats(update, np.float32, 66_001)
    whole = copy.deepcopy(split)
    by_reference(launch_of(update, whole))
    for part in (slice(cut), slice(cut, None)):
        launch = launch_of(update, {key: buffer[part] for key, buffer in split.items()})
        flats, (gradient,) = tuple(launch.flats.values()), launch.gradients
        cpu.launch_flat(update, flats, gradient, launch.hyper[0], launch.carried[0], launch.grad_scale)
    assert_same(split, whole, update)


@main
def test_a_run_of_steps(name):
    update, rng = MEMBERS[name], np.random.default_rng(1)
    states = [random_flats(update, np.float32, 40_001) for _ in range(2)]
    carried = [np.array(fold.FIRST_CARRIED) for _ in range(2)]
    launch = launch_of(update, states[0])
    for _ in range(200):
        gradient = rng.standard_normal(40_001, np.float32)
        for kernel, state, rows in zip((cpu, reference), states, carried, strict=True):
            flats = tuple(state[key] for key in update.flats)
            kernel.launch_flat(update, flats, gradient.copy(), launch.hyper[0], rows, 1.0)
    assert carried[0][0] == 200.0
    np.testing.assert_array_equal(*carried)
    assert_same(*states, update)


@main
@twins
def test_a_gradient_is_only_read_unless_it_is_zeroed(name, parallel):
    update = MEMBERS[name]
    launch = launch_of(update, random_flats(update, np.float32, 1_001))
    expected = launch.gradients[0].copy() if "g" not in update.written else np.zeros(1_001, np.float32)
    by_cpu(parallel)(launch)
    np.testing.assert_array_equal(launch.gradients[0], expected)
