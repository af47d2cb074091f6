"""The CUDA kernels, compiled by a host compiler, equal the NumPy reference bit for bit."""

import copy

import numpy as np
import pytest
from members import (
    MAIN,
    MEMBERS,
    OTHERS,
    assert_same,
    by_reference,
    check,
    launch_of,
    random_flats,
    rows_launch,
    special_flats,
)

pytest.importorskip("cupy")

import cuda_program
from cuda_host import (
    HAS_COMPILER,
    _library,
    addresses_of,
    by_host,
    launch_on_host,
    on_host,
    patch_cuda,
    run_flat_on_host,
)

from fastadam.kernels import cuda, reference
from fastadam.kernels.texts import fold

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="needs g++")

main = pytest.mark.parametrize("name", MAIN)
members = pytest.mark.parametrize("name", MAIN + OTHERS)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
guards = pytest.mark.parametrize("guarded", [False, True], ids=["", "guarded"])


@main
@dtypes
@guards
@pytest.mark.parametrize("length", [0, 1, 31, 127, 128, 129, 383, 384, 385, 1_000, 4_097])
def test_lengths(name, dtype, guarded, length):
    check(launch_of(MEMBERS[name], random_flats(MEMBERS[name], dtype, length, seed=length)), by_host(guarded))


@main
@dtypes
@pytest.mark.parametrize("step", [1, 2, 1_000, 1_000_000])
@pytest.mark.parametrize("grad_scale", [1.0, -0.25])
def test_denormal_huge_and_non_finite_values(name, dtype, step, grad_scale):
    launch = launch_of(MEMBERS[name], special_flats(MEMBERS[name], dtype), step, grad_scale)
    check(launch, by_host(guarded=False))


@pytest.mark.parametrize("name", OTHERS)
@dtypes
def test_every_member_of_the_family(name, dtype):
    update = MEMBERS[name]
    for length in (0, 1, 129, 1_001):
        check(launch_of(update, random_flats(update, dtype, length)), by_host(guarded=False))
    # RAdam changes its form after step 5.
    for step in (1, 5, 6, 1_000_000):
        check(launch_of(update, special_flats(update, dtype), step), by_host(guarded=False))


@members
def test_flat_kernel(name):
    update = MEMBERS[name]
    for buffers in (random_flats(update, np.float32, 1_001), special_flats(update, np.float32)):
        launch = launch_of(update, buffers, step=6)
        expected = copy.deepcopy(launch)
        by_reference(expected)
        run_flat_on_host(launch, expected.table[0])
        launch.table, launch.carried = expected.table, expected.carried
        assert_same(launch.arrays(), expected.arrays(), update)


@members
def test_a_step_that_is_not_taken_writes_nothing_but_zeros_into_the_gradients(name):
    launch = rows_launch(MEMBERS[name], np.float32, [5, 0, 130])
    check(launch, by_host(guarded=True))
    expected = copy.deepcopy(launch)
    for gradient, old in zip(launch.gradients, expected.gradients, strict=True):
        gradient[:] = old[:] = np.nan
    # As an update with other columns left it.
    launch.table[...] = expected.table[...] = 7.0
    record = np.array([np.nan, 0.0, np.nan, 1.0])
    rest = launch.rows, launch.hyper, launch.carried, launch.table, record
    launch_on_host(launch.update, launch.flats.values(), launch.gradients, launch.pieces, *rest)
    if "g" in launch.update.written:
        for start, stop, _, parameter, offset in launch.pieces:
            expected.gradients[parameter][offset : offset + stop - start] = 0.0
    assert_same(launch.arrays(), expected.arrays(), launch.update)
    np.testing.assert_array_equal(record, [np.nan, 0.0, np.nan, 1.0])


@guards
def test_launcher_launches_the_fold_and_the_rows(guarded, monkeypatch):
    patch_cuda(monkeypatch)

    def run(launch):
        record = on_host(np.array([launch.grad_scale, 1.0, 0.0, 0.0]))
        call = cuda.launcher(launch.update, launch.table.dtype, 1)
        call(
            tuple(map(on_host, launch.flats.values())),
            addresses_of(launch.gradients),
            cuda.blocks_of(launch.pieces, launch.table),
            *(launch.rows, launch.hyper, launch.carried, launch.table),
            record if guarded else launch.grad_scale,
        )

    for name in MAIN:
        check(rows_launch(MEMBERS[name], np.float32, [3, 0, 300]), run)


@dtypes
def test_launch_flat_steps_like_the_reference(dtype, monkeypatch):
    patch_cuda(monkeypatch)
    for name in (*MAIN, "nadam", "radam"):
        update = MEMBERS[name]
        states = [random_flats(update, dtype, 301) for _ in range(2)]
        carried = [np.array(fold.FIRST_CARRIED) for _ in range(2)]
        hyper = launch_of(update, states[0]).hyper[0]
        for _ in range(7):
            for kernel, state, row in zip((cuda, reference), states, carried, strict=True):
                flats = tuple(on_host(state[key]) for key in update.flats)
                kernel.launch_flat(update, flats, state["g"], hyper, row, 0.5)
        np.testing.assert_array_equal(*carried)
        assert_same(*states, update)


@pytest.mark.parametrize(
    ("statement", "other"),
    [("g * g - v", "g * g + v"), ("lr * root2 / bias1", "lr * root2 / bias2")],
)
def test_check_notices_a_changed_statement(statement, other, monkeypatch):
    source, changed = cuda_program.source, []

    def edited(*arguments):
        changed.append(source(*arguments).replace(statement, other))
        return changed[-1]

    monkeypatch.setattr(cuda_program, "source", edited)
    _library.cache_clear()
    try:
        with pytest.raises(AssertionError, match="Arrays are not equal"):
            check(launch_of(MEMBERS["adam"], random_flats(MEMBERS["adam"], np.float64, 100)), by_host(guarded=False))
    finally:
        _library.cache_clear()
    assert any(other in text for text in changed)
