"""Every kernel equals the NumPy reference bit for bit: on all lengths, values, orders, threads and places."""

import contextlib
import copy
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from members import (
    BLOCKED,
    MAIN,
    MEMBERS,
    OTHERS,
    STORED,
    assert_same,
    by_cpu,
    by_cuda_host,
    by_reference,
    check,
    clocks_launch,
    encode,
    has_cuda_host,
    launch_of,
    random_flats,
    special_flats,
)
from oracle import Home

from fastadam.kernels import CLOCK, GRADIENT, PARAMETER, START, STOP, TAKEN, Pass, reference
from fastadam.kernels.blocks import BLOCK, cut
from fastadam.kernels.host_tables import HostTables
from fastadam.kernels.texts.formats import EXPONENT_GROUP, Formats

needs_host_compiler = pytest.mark.skipif(not has_cuda_host(), reason="needs CuPy and g++")
CUDA = ("cuda", "guarded")
# Kernels that are written otherwise for other storages: without exponent groups, and with them.
KINDS = ("all_dithered", "everything_codes")
# Members whose texts are not Adam's.
ON_THREADS = ("amsgrad_optax", "nadam", "adamax", "radam", "lion", "ademamix", "float16", "zero_grad")


def run_on(kernel):
    """The function that runs a launch on `kernel`."""
    if kernel in CUDA:
        return by_cuda_host(kernel == "guarded")
    return by_reference if kernel == "reference" else by_cpu(kernel == "parallel")


def on(*kernels, names):
    """Pairs of a name and a kernel, as parameters of a test."""
    return [
        pytest.param(name, kernel, id=f"{name}-{kernel}", marks=[needs_host_compiler] * (kernel in CUDA))
        for name in names
        for kernel in kernels
    ]


def dtypes_of(name):
    return (np.float32,) if name in STORED else (np.float32, np.float64)


ALL = on("serial", "parallel", "cuda", "guarded", names=MAIN)
ALL += on("serial", "parallel", "cuda", names=STORED)
ALL += on("serial", "cuda", names=OTHERS)
ALL += on("parallel", names=ON_THREADS)
ALL += on("guarded", names=KINDS)
kernels = pytest.mark.parametrize(("name", "kernel"), ALL)
main = pytest.mark.parametrize(("name", "kernel"), [each for each in ALL if each.values[0] in MAIN + KINDS])

# Around every vector width (4 to 16 elements, unrolled by 4), every group of exponents and every block.
LENGTHS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 383, 384, 385]
LENGTHS += [511, 1_000, 1_023, 4_097, BLOCK - 1, BLOCK, BLOCK + 1]


@kernels
def test_lengths(name, kernel):
    update, run = MEMBERS[name], run_on(kernel)
    for dtype in dtypes_of(name):
        for length in LENGTHS if name in MAIN + KINDS else (0, 1, 17, 127, 128, 129, 1_001):
            launch = launch_of(update, random_flats(update, dtype, length, seed=length))
            check(launch, run, f"length {length}, {dtype.__name__}")


@kernels
def test_denormal_huge_and_non_finite_values(name, kernel):
    update, run = MEMBERS[name], run_on(kernel)
    for dtype in dtypes_of(name):
        # RAdam changes its form after step 5, AdEMAMix at the end of its warm-ups.
        for step, grad_scale in ((1, 1.0), (2, 0.5), (5, -0.25), (6, 1.0), (1_000, 0.5), (1_000_000, 0.5)):
            launch = launch_of(update, special_flats(update, dtype), step, grad_scale)
            check(launch, run, f"step {step}, {dtype.__name__}")


@pytest.mark.parametrize(("name", "kernel"), on("serial", "parallel", "cuda", names=MAIN))
def test_misaligned_starts(name, kernel):
    update, run = MEMBERS[name], run_on(kernel)
    for dtype in dtypes_of(name):
        for shift in (1, 2, 3, 5, 7):
            launch = launch_of(update, random_flats(update, dtype, 1_001))
            check(replace(launch, shift=shift), run, f"shift {shift}, {dtype.__name__}")


SIZES = {"two": [1_001, 130], "twenty": [0, 1, 2, 17, 0, 300, *range(60, 72), BLOCK + 1, 0], "big": [5, 0, 33_000]}


@kernels
def test_clocks_and_pieces_in_any_order(name, kernel):
    update, run = MEMBERS[name], run_on(kernel)
    for dtype in dtypes_of(name):
        for label, sizes in SIZES.items():
            check(clocks_launch(update, dtype, sizes, seed=1), run, f"{label}, {dtype.__name__}")


CLOCKS = on("reference", "serial", "parallel", "cuda", "guarded", names=("adam", "nadam", "everything"))


@pytest.mark.parametrize(("name", "kernel"), CLOCKS)
def test_clocks_in_one_launch_equal_launches_of_their_own(name, kernel):
    for dtype in dtypes_of(name):
        together = clocks_launch(MEMBERS[name], dtype, SIZES["twenty"])
        apart = copy.deepcopy(together)
        run_on(kernel)(together)
        for clock in apart.clocks:
            mine = [piece for piece in apart.pieces if piece[CLOCK] == clock]
            run_on(kernel)(replace(apart, pieces=mine, clocks=np.array([clock])))
        assert_same(together, apart)


@main
def test_pieces_equal_the_whole(name, kernel):
    update, size = MEMBERS[name], 2_000
    whole = launch_of(update, random_flats(update, np.float32, size))
    by_reference(whole)
    # Adjacent, so that they may be merged; where no exponent is shared, cut anywhere.
    anywhere = [] if update.storage.blocked else [(1,), (17, 1_000, 1_001)]
    for places in (*anywhere, (128,), (384, 512, 1_920), tuple(range(128, size, 128))):
        bounds = [0, *places, size]
        launch = launch_of(update, random_flats(update, np.float32, size))
        launch.pieces = [(0, 0, start, stop, start) for start, stop in pairwise(bounds)]
        run_on(kernel)(launch)
        assert_same(launch, whole, f"cut at {places}")


@main
def test_gaps_other_clocks_and_the_rest_of_the_gradients_stay_as_they_are(name, kernel):
    launch = clocks_launch(MEMBERS[name], np.float32, SIZES["twenty"])
    before = copy.deepcopy(launch)
    run_on(kernel)(launch)
    for index, (arrays, old) in enumerate(zip(launch.parameters, before.parameters, strict=True)):
        stepped, read = np.zeros(arrays["p"].size, bool), np.zeros(arrays["g"].size, bool)
        for _, _, start, stop, first in (piece for piece in launch.pieces if piece[PARAMETER] == index):
            stepped[start:stop], read[first : first + stop - start] = True, True
        assert not stepped.all()
        for flat in launch.update.flats:
            mask = stepped[::EXPONENT_GROUP] if flat.endswith("_exponent") else stepped
            np.testing.assert_array_equal(arrays[flat][~mask], old[flat][~mask], err_msg=flat)
        assert (arrays["p"] != old["p"]).sum() > 0.4 * stepped.sum()
        zeroed = read if "g" in launch.update.written else False
        np.testing.assert_array_equal(arrays["g"], np.where(zeroed, 0, old["g"]))
    np.testing.assert_array_equal(launch.tables.hyper, before.tables.hyper)
    np.testing.assert_array_equal(launch.tables.record, before.tables.record)
    np.testing.assert_array_equal(launch.tables.carried[:-1, 0], before.tables.carried[:-1, 0] + 1)
    np.testing.assert_array_equal(launch.tables.carried[-1], before.tables.carried[-1])
    np.testing.assert_array_equal(launch.tables.table[-1], 0)


@main
def test_a_launch_without_pieces_only_folds(name, kernel):
    launch = clocks_launch(MEMBERS[name], np.float32, [3, 2])
    launch.pieces = []
    before = copy.deepcopy(launch)
    check(launch, run_on(kernel))
    np.testing.assert_array_equal(launch.flats["p"], before.flats["p"])
    assert launch.table[0].any()


@main
def test_a_parameter_without_a_gradient_is_skipped(name, kernel):
    launch = clocks_launch(MEMBERS[name], np.float32, [300, 20, 1])
    launch.pieces = [piece for piece in launch.pieces if piece[PARAMETER] != 1]
    del launch.parameters[1]["g"]
    before = copy.deepcopy(launch.parameters[1])
    check(launch, run_on(kernel))
    for flat, array in before.items():
        np.testing.assert_array_equal(launch.parameters[1][flat], array, err_msg=flat)


@pytest.mark.parametrize(("name", "kernel"), on("reference", "guarded", names=MAIN + OTHERS + KINDS))
def test_a_step_that_is_not_taken_writes_nothing_but_zeros_into_the_gradients(name, kernel):
    launch = clocks_launch(MEMBERS[name], np.float32, [5, 0, 130])
    check(launch, run_on(kernel))
    nothing = np.nan if name not in STORED else 0x7FFF
    for arrays in launch.parameters:
        arrays["g"][:] = nothing
    # As an update with other columns left it.
    launch.table[...] = 7.0
    launch.tables.record[:] = np.nan, 0.0, np.nan, 1.0
    expected = copy.deepcopy(launch)
    run_on(kernel)(launch)
    if "g" in launch.update.written:
        for parameter, _, start, stop, first in launch.pieces:
            expected.parameters[parameter]["g"][first : first + stop - start] = 0
    assert launch.tables.record[TAKEN] == 0.0
    assert_same(launch, expected)


@main
def test_a_gradient_is_only_read_unless_it_is_zeroed(name, kernel):
    update = MEMBERS[name]
    launch = launch_of(update, random_flats(update, np.float32, 1_001))
    expected = launch.flats["g"].copy() if "g" not in update.written else np.zeros_like(launch.flats["g"])
    run_on(kernel)(launch)
    np.testing.assert_array_equal(launch.flats["g"], expected)


@contextlib.contextmanager
def threads(count):
    """Kernels run on up to so many threads."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["adam_l2", "everything", *STORED])
def test_thread_counts(name, count):
    update = MEMBERS[name]
    with threads(count):
        for length in (1, 3, 1_000, 32_767, 32_768, 100_003):
            launch = launch_of(update, random_flats(update, np.float32, length, seed=length))
            check(launch, by_cpu(True), f"length {length}")


@pytest.mark.parametrize("name", [*MAIN, "lion", "ademamix", *STORED])
def test_a_run_of_steps_on_any_number_of_threads(name):
    update, size = MEMBERS[name], 40_001
    runs = (by_reference, 1), (by_cpu(False), 1), (by_cpu(True), 2)
    launches = [launch_of(update, random_flats(update, np.float32, size), step=1) for _ in runs]
    for step in range(200 if name in MAIN else 20):
        gradient = np.random.default_rng(step).standard_normal(size, np.float32)
        for launch, (run, count) in zip(launches, runs, strict=True):
            launch.flats["g"][:] = encode(update.storage, "g", gradient)["g"]
            with threads(count):
                run(launch)
    assert launches[0].tables.carried[0, 0] == step + 1
    for launch in launches[1:]:
        assert_same(launch, launches[0])


@pytest.mark.parametrize("kernel", ["reference", "serial", "parallel", pytest.param("cuda", marks=needs_host_compiler)])
def test_several_updates_in_one_launch(kernel):
    updates = [MEMBERS[name] for name in ("adam", "lion", "codes", "nadam")]
    parts = [launch_of(update, random_flats(update, np.float32, 9_000)) for update in updates]
    apart = copy.deepcopy(parts)
    tables = HostTables.zeros(len(parts), len(parts))
    tables.record[:] = parts[0].tables.record
    passes, homes = [], []
    for index, part in enumerate(parts):
        for name in ("hyper", "carried"):
            getattr(tables, name)[index] = getattr(part.tables, name)[0]
        mine = [Home(part.flats[name]) for name in ("g", *part.update.flats)]
        tables.addresses[index, : len(mine) + 1] = [*(home.address for home in mine), part.places[0]]
        homes += mine
        blocks = cut(np.array([(index, index, 0, 9_000, 0)]))
        passes.append(Pass(part.update, part.dtype, np.array([index]), blocks))
    run_on(kernel)(SimpleNamespace(run=lambda launcher, guarded=False: launcher(passes, tables, guarded=guarded)()))
    for home in homes:
        home.leave()
    for index, (part, alone) in enumerate(zip(parts, apart, strict=True)):
        by_reference(alone)
        for name in ("hyper", "carried", "table"):
            getattr(part.tables, name)[0] = getattr(tables, name)[index]
        assert_same(part, alone)


@pytest.mark.parametrize("format", ["native", "bfloat16", "float16"])
def test_reference_reduces_and_copies_like_the_cpu(format):
    from fastadam.kernels import cpu

    gradients = [random_flats(MEMBERS["adam"], np.float32, size, seed=size)["g"] for size in (1, 0, 3 * BLOCK + 5, 700)]
    stored_as = [encode(Formats(g=format), "g", gradient)["g"] for gradient in gradients]
    blocks = cut(np.array([(index, 0, 0, array.size, 0) for index, array in enumerate(gradients)]))
    records, copies = [], []
    for backend in (reference, cpu):
        tables, sums = backend.tables(4, 1, None), np.full(len(blocks), np.nan)
        tables.addresses[:, GRADIENT] = [backend.address(array) for array in stored_as]
        tables.record[:] = 9.0, 9.0, 9.0, 2.0
        backend.squares(np.dtype(np.float32), format, blocks, tables, sums)()
        backend.clip(sums, 0.5, 1.0, 1e30, 0.0, tables)
        records.append(tables.record.tolist())
        copies.append(np.zeros(700, np.uint16))
        if format != "native":
            backend.copy_out(gradients[-1], copies[-1], format)
    assert records[0] == records[1]
    length = 0.5 * np.sqrt(sum(np.square(gradient, dtype=float).sum() for gradient in gradients))
    np.testing.assert_allclose(records[0], [0.5 / length, 1.0, length, 2.0], rtol=1e-2)
    np.testing.assert_array_equal(*copies)
    np.testing.assert_array_equal(copies[0], stored_as[-1] if format != "native" else 0)


def test_blocks_begin_with_an_exponent_group():
    blocks = cut(np.array([(0, 0, EXPONENT_GROUP, 3 * BLOCK + 5, 0)]))
    assert len(blocks) == 3
    assert (blocks[:, START] % EXPONENT_GROUP == 0).all()
    assert (blocks[:, STOP] - blocks[:, START]).sum() == 3 * BLOCK + 5 - EXPONENT_GROUP


@pytest.mark.parametrize("name", BLOCKED[:1])
def test_canaries_notice_a_store_past_the_end(name):
    update = MEMBERS[name]

    def too_far(passes, tables, *, guarded):
        (step,) = passes
        longer = step.blocks.copy()
        longer[-1, STOP] += 1
        return reference.launcher([step._replace(blocks=longer)], tables, guarded=guarded)

    with pytest.raises(AssertionError, match="past the end"):
        launch_of(update, random_flats(update, np.float32, 256)).run(too_far)
