"""The CPU kernel equals the NumPy reference bit for bit, is vectorised, and is compiled once."""

import platform
import re

import numba
import numpy as np
import pytest
from oracle import assert_same_bits, misaligned, random_state, special_state

from fastadam.kernels import cpu, reference
from fastadam.kernels.fold import fold, fold_l2
from fastadam.kernels.update import ADAM, ADAM_L2

MEMBERS = [(ADAM, fold), (ADAM_L2, fold_l2)]
member = pytest.mark.parametrize(("update", "folder"), MEMBERS, ids=[update.name for update, _ in MEMBERS])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
twins = pytest.mark.parametrize("parallel", [False, True], ids=["serial", "parallel"])

# Around every vector width (4 to 16 elements, unrolled by 4) and every chunk that two threads can get.
LENGTHS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 511, 1023, 4097]
STEPS = [1, 2, 10, 1_000, 1_000_000]


def check(update, folder, state, *, parallel, step=3, grad_scale=0.5):
    scalars = folder(2e-3, 0.9, 0.999, 1e-8, 0.05)(step, grad_scale)
    expected = [buffer.copy() for buffer in state]
    reference.launcher(update, state[0].size, state[0].dtype)(*expected, scalars)
    gradient = state[1].copy()
    cpu.compiled(update, state[0].dtype, parallel=parallel)(*state, scalars)
    assert_same_bits((state[0], *state[2:]), (expected[0], *expected[2:]))
    np.testing.assert_array_equal(state[1], gradient)


@member
@dtypes
@twins
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(update, folder, dtype, parallel, length):
    check(update, folder, random_state(length, dtype, seed=length), parallel=parallel)


@dtypes
@twins
@pytest.mark.parametrize("elements", [1, 2, 3, 5, 7])
def test_misaligned_starts(dtype, parallel, elements):
    state = random_state(1_001, dtype)
    shifted = [misaligned(buffer, elements + offset) for offset, buffer in enumerate(state)]
    check(ADAM, fold, shifted, parallel=parallel)


@member
@dtypes
@twins
@pytest.mark.parametrize("step", STEPS)
def test_denormal_huge_and_non_finite_values(update, folder, dtype, parallel, step):
    check(update, folder, special_state(dtype), parallel=parallel, step=step)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [1, 3, 1_000, 32_767, 32_768, 100_003])
def test_thread_counts(threads, length):
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        check(ADAM_L2, fold_l2, random_state(length, seed=length), parallel=True)
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("cut", [1, 17, 32_768, 50_000])
def test_a_split_launch_equals_a_whole_one(cut):
    scalars = fold(1e-3, 0.9, 0.999, 1e-8, 0.1)(7, 1.0)
    whole, split = random_state(66_001), random_state(66_001)
    for state in (whole, [buffer[:cut] for buffer in split], [buffer[cut:] for buffer in split]):
        cpu.launcher(ADAM, state[0].size, state[0].dtype)(*state, scalars)
    assert_same_bits((split[0], *split[2:]), (whole[0], *whole[2:]))


@pytest.mark.parametrize("steps", [200])
def test_a_run_of_steps(steps):
    kernel_state, reference_state = random_state(40_001), random_state(40_001)
    rng = np.random.default_rng(1)
    scalars_of = fold(1e-3, 0.9, 0.999, 1e-8, 0.1)
    for step in range(1, steps + 1):
        gradient = rng.standard_normal(40_001, np.float32)
        for launcher, state in ((cpu.launcher, kernel_state), (reference.launcher, reference_state)):
            state[1][...] = gradient
            launcher(ADAM, 40_001, state[0].dtype)(*state, scalars_of(step, 1.0))
    assert_same_bits((kernel_state[0], *kernel_state[2:]), (reference_state[0], *reference_state[2:]))


# Processor -> (vector instruction of each dtype, fused multiply-add), as regular expressions.
INSTRUCTIONS = {
    "x86": ({np.float32: r"\bv?{}ps\b", np.float64: r"\bv?{}pd\b"}, r"\bvfn?m(add|sub)"),
    "arm": (
        {np.float32: r"\bf{}(\.4s|\s+v\d+\.4s)", np.float64: r"\bf{}(\.2d|\s+v\d+\.2d)"},
        r"\bfn?m(la|ls|add|sub)\b",
    ),
}


@member
@dtypes
@twins
def test_loop_is_vectorised(update, folder, dtype, parallel, tmp_path, monkeypatch):
    # Numba shows the machine code of what it compiled, not of what it loaded: compile into an empty cache.
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    kernel = cpu._compile(update, parallel=parallel)
    kernel(*random_state(100, dtype), folder(1e-3, 0.9, 0.999, 1e-8, 0.1)(1, 1.0))
    (assembly,) = kernel.inspect_asm().values()
    packed, fused = INSTRUCTIONS["arm" if platform.machine() in ("arm64", "aarch64") else "x86"]
    for operation in ("sqrt", "div"):
        assert re.search(packed[dtype].format(operation), assembly)
    assert not re.search(fused, assembly), "a fused multiply-add would change the last bit"


def test_long_buffers_go_to_the_threads():
    dtype = np.dtype(np.float32)
    serial = cpu.compiled(ADAM, dtype, parallel=False)
    assert cpu.launcher(ADAM, cpu.PARALLEL_FROM - 1, dtype) is serial
    assert cpu.launcher(ADAM, cpu.PARALLEL_FROM, dtype) is not serial


@pytest.mark.parametrize("size", [100, cpu.PARALLEL_FROM], ids=["serial", "parallel"])
def test_no_kind_of_array_or_scalar_is_compiled_for_but_the_two_dtypes(size):
    scalars = fold(1e-3, 0.9, 0.999, 1e-8, 0.1)(1, 1.0)
    for dtype in (np.float32, np.float64):
        p, g, m, v = random_state(size, dtype)
        g.flags.writeable = False
        cpu.launcher(ADAM, size, p.dtype)(p, g, m, v, scalars)
        cpu.launcher(ADAM, size, p.dtype)(p[1:], g[1:], m[1:], v[1:], tuple(map(np.float64, scalars)))
    assert all(len(twin.signatures) <= 2 for twin in cpu.twins(ADAM))


def test_twins_have_names_and_cache_files_of_their_own():
    names = {twin.__name__ for update, _ in MEMBERS for twin in cpu.twins(update)}
    assert len(names) == 4
