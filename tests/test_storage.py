"""What is stored in another format: the same bits on every kernel, and the float32 step rounded once."""

from dataclasses import replace

import numba
import numpy as np
import pytest
from members import (
    BLOCKED,
    MEMBERS,
    RECIPES,
    STORED,
    Launch,
    assert_same,
    by_cpu,
    by_reference,
    check,
    encode,
    launch_of,
    random_flats,
    rows_launch,
    special_flats,
)

from fastadam.kernels import cpu, reference
from fastadam.kernels.texts import fold
from fastadam.kernels.texts.formats import EXPONENT_BLOCK, NATIVE, Storage
from fastadam.kernels.texts.update import Recipe, update_of

try:
    from cuda_host import HAS_COMPILER, by_host, launch_on_host, run_flat_on_host
except ImportError:
    HAS_COMPILER = False

needs_host_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="needs CuPy and g++")
stored = pytest.mark.parametrize("name", STORED)
# Kernels that are written otherwise for other storages: without blocks of shared exponents, and with them.
KINDS = ("all_dithered", "everything_codes")
LENGTHS = [0, 1, 127, 128, 129, 1_000, 40_000]


def run_on(kernel):
    return {"serial": by_cpu(False), "parallel": by_cpu(True)}.get(kernel) or by_host(kernel == "guarded")


kernels = pytest.mark.parametrize(
    ("name", "kernel"),
    [(name, kernel) for name in STORED for kernel in ("serial", "parallel")]
    + [pytest.param(name, "cuda", marks=needs_host_compiler) for name in STORED]
    + [pytest.param(name, "guarded", marks=needs_host_compiler) for name in KINDS],
)


@kernels
def test_lengths(name, kernel):
    for length in LENGTHS:
        check(launch_of(MEMBERS[name], random_flats(MEMBERS[name], np.float32, length, seed=length)), run_on(kernel))


@kernels
def test_denormal_huge_and_non_finite_values(name, kernel):
    for step in (1, 1_000):
        check(launch_of(MEMBERS[name], special_flats(MEMBERS[name], np.float32), step), run_on(kernel))


@kernels
def test_rows_in_any_order(name, kernel):
    check(rows_launch(MEMBERS[name], np.float32, [5, 0, 130, 1_000, 33_000]), run_on(kernel))


def cut(launch, *places):
    """The launch with its one piece cut at these places."""
    (_, size, row, parameter, _), bounds = launch.pieces[0], [0, *places]
    ends = zip(bounds, [*places, size], strict=True)
    return replace(launch, pieces=[(start, stop, row, parameter, start) for start, stop in ends])


@kernels
def test_pieces_equal_the_whole(name, kernel):
    update, size = MEMBERS[name], 2_000
    whole = launch_of(update, random_flats(update, np.float32, size))
    by_reference(whole)
    for places in ((128,), (384, 512, 1_920), tuple(range(128, size, 128))):
        parts = cut(launch_of(update, random_flats(update, np.float32, size)), *places)
        run_on(kernel)(parts)
        assert_same(parts.arrays(), whole.arrays(), update)


@needs_host_compiler
@pytest.mark.parametrize("name", [*KINDS, "split"])
def test_flat_kernel_on_cuda(name):
    update = MEMBERS[name]
    for buffers in (random_flats(update, np.float32, 1_001), special_flats(update, np.float32)):

        def run(launch):
            with np.errstate(all="ignore"):
                update.fold_row(launch.hyper[0], launch.carried[0], launch.grad_scale, launch.table[0])
            run_flat_on_host(launch, launch.table[0])

        check(launch_of(update, buffers, step=6), run)


@needs_host_compiler
@pytest.mark.parametrize("name", KINDS)
def test_a_step_that_is_not_taken_writes_nothing_but_zeros_into_the_gradients(name):
    launch, expected = (rows_launch(MEMBERS[name], np.float32, [5, 0, 130]) for _ in range(2))
    record = np.array([np.nan, 0.0, np.nan, 1.0])
    rest = launch.rows, launch.hyper, launch.carried, launch.table, record
    launch_on_host(launch.update, launch.flats.values(), launch.gradients, launch.pieces, *rest)
    if "g" in launch.update.written:
        for start, stop, _, parameter, offset in launch.pieces:
            expected.gradients[parameter][offset : offset + stop - start] = 0.0
    assert_same(launch.arrays(), expected.arrays(), launch.update)


@stored
def test_a_run_of_steps_on_any_number_of_threads(name):
    update, size = MEMBERS[name], 40_001
    states = [random_flats(update, np.float32, size) for _ in range(3)]
    carried = [np.array(fold.FIRST_CARRIED) for _ in states]
    hyper, before = launch_of(update, states[0]).hyper[0], numba.get_num_threads()
    runs = [(reference, before), (cpu, 1), (cpu, before)]
    try:
        for step in range(10):
            gradient = encode(update.storage, "g", np.random.default_rng(step).standard_normal(size, np.float32))["g"]
            for (kernel, threads), state, row in zip(runs, states, carried, strict=True):
                numba.set_num_threads(threads)
                flats = tuple(state[flat] for flat in update.flats)
                kernel.launch_flat(update, flats, gradient.copy(), hyper, row, 1.0)
    finally:
        numba.set_num_threads(before)
    for state in states[1:]:
        assert_same(state, states[0], update)


# --- what is rounded


@pytest.fixture
def bfloat16():
    return pytest.importorskip("ml_dtypes").bfloat16


def widened(launch, dtypes):
    """The launch of the same recipe on float32 with the values of `launch`; `dtypes` are those of what is stored."""

    def wide(name, array):
        return array.view(dtypes[name]).astype(np.float32) if name in dtypes else array.copy()

    update = update_of(replace(RECIPES[dtypes["name"]], storage=NATIVE)) if "name" in dtypes else launch.update
    flats = {name: wide(name, launch.flats[name]) for name in update.flats}
    return replace(launch, update=update, flats=flats, gradients=[wide("g", launch.gradients[0])])


def stepped_wide(name, launch, dtypes):
    """Buffer -> its values after the step of `launch` in float32, not yet rounded."""
    wide: Launch = widened(launch, {**dtypes, "name": name})
    wide = replace(wide, carried=launch.carried.copy(), table=launch.table.copy())
    by_reference(wide)
    return wide.flats


@pytest.mark.parametrize("name", ["moments_bfloat16", "all_float16"])
def test_reference_is_the_step_on_float32_rounded_to_nearest(name, bfloat16):
    buffers = ("m", "v") if name == "moments_bfloat16" else ("p", "g", "m", "v", "v_max", "ema")
    dtypes = dict.fromkeys(buffers, bfloat16 if name == "moments_bfloat16" else np.float16)
    launch = launch_of(MEMBERS[name], random_flats(MEMBERS[name], np.float32, 5_000))
    expected = stepped_wide(name, launch, dtypes)
    by_reference(launch)
    for buffer, values in expected.items():
        rounded = values.astype(dtypes[buffer]).view(np.uint16) if buffer in dtypes else values
        np.testing.assert_array_equal(launch.flats[buffer], rounded, err_msg=buffer)


def test_dithered_buffers_are_one_of_the_two_neighbours_and_right_on_average(bfloat16):
    dtypes = dict.fromkeys(("p", "g", "m", "v"), bfloat16)
    launch = launch_of(MEMBERS["all_dithered"], random_flats(MEMBERS["all_dithered"], np.float32, 100_000))
    expected = stepped_wide("all_dithered", launch, dtypes)
    by_reference(launch)
    for buffer in ("p", "m", "v"):
        bits = expected[buffer].view(np.uint32)
        up = launch.flats[buffer].astype(np.int64) - (bits >> 16)
        assert set(up) == {0, 1}
        # Five standard deviations of a mean of 100,000 coins, at most.
        assert abs(up.mean() - (bits & 0xFFFF).mean() / 65_536) < 5 * 0.5 / np.sqrt(100_000)


def test_split_parameters_are_those_of_float32(bfloat16):
    update, native = MEMBERS["split"], update_of(Recipe())
    p, g, m, v = (np.random.default_rng(1).random((4, 5_000), np.float32) - np.float32(0.5)).copy()
    launch = launch_of(
        update, {**encode(update.storage, "p", p), "g": g.astype(bfloat16).view(np.uint16), "m": m, "v": abs(v)}
    )
    expected = launch_of(native, {"p": p, "g": g.astype(bfloat16).astype(np.float32), "m": m.copy(), "v": abs(v)})
    for _ in range(20):
        by_reference(launch)
        by_reference(expected)
    upper, remainder = launch.flats["p"], launch.flats["remainder"]
    joined = (upper.astype(np.int64) * 65_536 + remainder.view(np.int16)).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(joined, expected.flats["p"])
    np.testing.assert_array_equal(launch.flats["v"], expected.flats["v"])


@pytest.mark.parametrize(("p", "end"), [("bfloat16", 1.0), ("dithered", 0.99)])
def test_steps_below_the_last_place_add_up_if_dithered(p, end):
    update = update_of(Recipe(storage=Storage(p=p)))
    g = np.ones(10_000, np.float32)
    buffers = {**encode(update.storage, "p", g), "g": g, "m": np.zeros_like(g), "v": np.zeros_like(g)}
    launch = launch_of(update, buffers, step=1, grad_scale=1.0, lr=1e-4)
    for _ in range(100):
        by_reference(launch)
    values = (launch.flats["p"].astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert abs(values.mean(dtype=float) - end) < 2e-4
    # Every element, by a few of its last places: its thresholds change from step to step.
    assert np.abs(values - end).max() < 3 * 2.0**-8
    assert (values == 1.0).all() or p == "dithered"


@pytest.mark.parametrize("name", ["all_dithered", "codes"])
def test_roundings_depend_on_the_seed_and_on_the_step_alone(name):
    def moments_after(**changed):
        launch = launch_of(MEMBERS[name], random_flats(MEMBERS[name], np.float32, 1_000), **changed)
        by_reference(launch)
        return {buffer: launch.flats[buffer].tobytes() for buffer in ("m", "v")}

    assert moments_after() == moments_after()
    for buffer, array in moments_after(seed=1.0).items():
        assert moments_after()[buffer] != array


# --- the description of a storage


def test_flat_arrays_of_a_storage():
    storage = Storage(p="split", g="bfloat16", m="float8", v="float8", low="float16")
    flats = {name: storage.flats(name) for name in ("p", "g", "m", "v", "v_max")}
    assert flats == {
        "p": ("p", "remainder"),
        "g": ("g",),
        "m": ("m", "m_exponent"),
        "v": ("v", "v_exponent"),
        "v_max": ("v_max",),
    }
    dtypes = {flat: storage.dtype(flat) for flats in flats.values() for flat in flats}
    assert {flat for flat, dtype in dtypes.items() if dtype == "uint8"} == {"m", "m_exponent", "v", "v_exponent"}
    assert {flat for flat, dtype in dtypes.items() if dtype == "uint16"} == {"p", "remainder", "g"}
    assert dtypes["v_max"] == "native"


@stored
def test_order_of_the_flat_arrays_is_that_of_the_buffers(name):
    update = MEMBERS[name]
    assert update.flats == tuple(
        flat for buffer in update.buffers if buffer != "g" for flat in update.storage.flats(buffer)
    )
    assert update.flats[0] == "p"


def test_arithmetic_is_in_float32_unless_the_parameters_are_native():
    assert Storage(m="bfloat16").arithmetic(np.zeros(1, np.float64)) == np.float64
    assert Storage(p="dithered").arithmetic(np.zeros(1, np.uint16)) == np.float32


def test_columns_have_seed_turn_and_toss_where_something_is_dithered():
    dithered = {name for name in MEMBERS if "seed" in MEMBERS[name].columns}
    assert dithered == {"moments_dithered", "all_dithered", "split_codes", *BLOCKED}
    for name in dithered:
        assert MEMBERS[name].storage.dithers
        assert MEMBERS[name].columns == (*MEMBERS[name].scalars, "seed", "turn", "toss")


def test_blocks_that_threads_share_begin_with_a_block_of_exponents():
    blocks = cpu.blocks_of([(EXPONENT_BLOCK, 3 * cpu.BLOCK + 5, 0, 0, 0)])
    assert len(blocks) == 3
    assert (blocks[:, 0] % EXPONENT_BLOCK == 0).all()
