"""Subnormal numbers are zero in every kernel, and nowhere else: the mode of each thread is what it was before."""

import contextlib
import copy
import re
from unittest import mock

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest
from llvmlite import ir
from members import MEMBERS, by_cpu, by_cuda_host, by_reference, has_cuda_host, launch_of, random_flats
from norm_kernels import blocks_of

from fastadam.bench import machine
from fastadam.kernels import GRADIENT, NORM, cpu, reference, stored, switches
from fastadam.kernels.cpu import threads
from fastadam.kernels.subnormals import flushed
from fastadam.kernels.switches import flush, flushes, register_of, restore
from fastadam.kernels.texts.catch_up import COLUMNS

TINY = np.float32(1e-40)
# The sticky flags of exceptions in MXCSR. NumPy lowers them, and anything raises them.
FLAGS = np.uint64(0x3F)
RUNS = {"reference": by_reference, "serial": by_cpu(False), "parallel": by_cpu(True)}
if has_cuda_host():
    RUNS["cuda"] = by_cuda_host(False)
on_each = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
on_hosts = pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
needs_mode = pytest.mark.skipif(not flushes(), reason="this processor has no mode for it")
pytestmark = needs_mode


@numba.njit
def mode_of_thread():
    mode = flush()
    restore(mode)
    return mode


@numba.njit
def set_mode(mode):
    restore(np.uint64(mode))


@numba.njit(parallel=True)
def modes_of_threads(modes):
    for index in numba.prange(modes.size):
        modes[index] = mode_of_thread()


def flushing_bits():
    return register_of(llvm.get_process_triple()).flush


@contextlib.contextmanager
def users_mode(mode):
    """The thread in a mode of the user's own."""
    before = mode_of_thread()
    set_mode(mode)
    try:
        yield
    finally:
        set_mode(before)


def test_numpy_and_numba_flush_inside_and_nowhere_else():
    values = np.full(37, TINY)
    assert (values * np.float32(2) != 0).all()
    with flushed():
        inside = values * np.float32(2), values + values, np.square(values, dtype=np.float64)
    assert all(not array.any() for array in inside)
    assert (values * np.float32(2) != 0).all()


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize("name", ["adam", "codes"])
@pytest.mark.parametrize("own", [False, True])
@on_each
def test_the_mode_is_as_before_after_a_step(run, own, name):
    launch = launch_of(MEMBERS[name], random_flats(MEMBERS[name], np.float32, 40_001))
    run(copy.deepcopy(launch))
    before, others = mode_of_thread() & ~FLAGS, np.zeros(64, np.uint64)
    # The user may flush anyway.
    mode = before | np.uint64(flushing_bits() if own else 0)
    with users_mode(mode):
        run(launch)
        after = mode_of_thread()
    assert after & ~FLAGS == mode
    modes_of_threads(others)
    assert ((others & ~FLAGS) == before).all()


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("own", [0, 0x25])
def test_flags_of_exceptions_are_as_before_after_a_step(own, parallel):
    update, modes = MEMBERS["adam"], []

    def launcher(passes, tables, *, guarded):
        launch = cpu.launcher(passes, tables, guarded=guarded)

        def measured():
            set_mode(mode)
            launch()
            modes.append(mode_of_thread())

        return measured

    launch = launch_of(update, random_flats(update, np.float32, 1_000))
    launch.flats["g"][:3] = 1e30, np.inf, -np.inf
    mode = (mode_of_thread() & ~FLAGS) | np.uint64(own)
    set_mode(mode)
    with mock.patch.object(threads, "PARALLEL_FROM", 0 if parallel else 2**62):
        launch.run(launcher)
    assert modes == [mode]


class Refused(Exception):
    pass


def test_the_mode_is_as_before_after_an_exception():
    launch = launch_of(MEMBERS["adam"], random_flats(MEMBERS["adam"], np.float32, 100))
    inside = []

    def refuse(*arguments):
        inside.append(mode_of_thread() & np.uint64(flushing_bits()))
        raise Refused

    calls = {
        "step": lambda: by_reference(launch),
        "squares": lambda: squares(reference, [np.ones(3, np.float32)]),
        "copy_out": lambda: reference.copy_out(np.ones(3, np.float32), np.zeros(3, np.uint16), "bfloat16"),
    }
    with mock.patch.object(stored, "load", refuse), mock.patch.object(stored, "store", refuse):
        for call in calls.values():
            with pytest.raises(Refused):
                call()
            assert not mode_of_thread() & np.uint64(flushing_bits())
    assert inside == [flushing_bits()] * 3
    with pytest.raises(ValueError, match="broadcast"):
        cpu.copy_out(np.ones(3, np.float32), np.zeros(4, np.uint16), "bfloat16")
    assert not mode_of_thread() & np.uint64(flushing_bits())
    with pytest.raises(TypeError):
        cpu.clip(None, 1.0, 1.0, 1e30, 0.0, cpu.tables(0, 0))
    assert not mode_of_thread() & np.uint64(flushing_bits())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["adam", "adamw", "moments_bfloat16", "codes"])
@pytest.mark.parametrize("kernel", ["serial", "parallel"])
def test_first_moments_without_gradients_do_not_end_as_subnormals(kernel, name, dtype):
    update = MEMBERS[name]
    if dtype == np.float64 and update.storage.named:
        pytest.skip("what is stored in other formats is of float32")
    flats = random_flats(update, dtype, 1_000)
    flats["g"][::3] = 0
    launch = launch_of(update, flats, step=1)
    # 0.9**n passes 2**-126 at n = 829, and 2**-1022 at 6,723.
    for _ in range(1_100 if dtype == np.float32 else 7_200):
        RUNS[kernel](launch)
    m = np.abs(stored.load(update.storage, "m", launch.flats) if update.storage.named else launch.flats["m"])
    tiny = np.finfo(dtype).tiny
    assert not ((m > 0) & (m < tiny)).any()
    # What m changes by is zero from here on: it stays.
    assert (m[::3] < 1.01 * tiny / 0.1).all()
    assert (m[1::3] > 1e-3).any()


@on_each
def test_a_subnormal_moment_is_zero_after_one_step(run):
    update, size = MEMBERS["amsgrad"], 1_000
    flats = {
        name: np.full(size, value * TINY) for name, value in zip(("g", "m", "v", "v_max"), (1, -1, 1, 2), strict=True)
    }
    launch = launch_of(update, {"p": np.full(size, -TINY), **flats}, grad_scale=1.0)
    run(launch)
    for name in ("p", "m", "v", "v_max"):
        assert not launch.flats[name].any(), name
    assert launch.flats["g"].all(), "what is only read stays"


def squares(backend, gradients, format="native", parallel=False):
    dtype = gradients[0].dtype
    blocks, tables = blocks_of([gradient.size for gradient in gradients]), backend.tables(len(gradients), 1)
    tables.addresses[:, GRADIENT] = [backend.address(gradient) for gradient in gradients]
    sums = np.full(len(blocks), np.nan)
    with mock.patch.object(threads, "PARALLEL_FROM", 0 if parallel else 2**62):
        backend.squares(dtype, format, blocks, tables, sums)()
    return sums, tables


@on_hosts
@pytest.mark.parametrize("parallel", [False, True])
def test_the_norm_of_subnormals_is_zero(backend, parallel):
    for dtype, value in ((np.float32, 1e-40), (np.float64, 1e-310), (np.float64, 1e-160)):
        sums, tables = squares(backend, [np.full(20_000, value, dtype)], parallel=parallel)
        assert not sums.any()
        # Sums that are subnormal count as zero as well.
        sums[:] = 1e-310
        backend.clip(sums, 1.0, 1.0, 1e30, 0.0, tables)
        assert tables.record[NORM] == 0.0
    assert not mode_of_thread() & np.uint64(flushing_bits())


@on_hosts
def test_catching_up_makes_subnormals_zero(backend):
    p, m, v = (np.full(100, value, np.float32) for value in (1.0, 1e-38, 1e-38))
    table = np.zeros((1, COLUMNS), np.float32)
    table[0] = 1.0, 0.0, 1.0, 0.0, 1.0, 0.5, 0.5
    addresses = np.array([[backend.address(array) for array in (p, m, v)]])
    backend.catch_up(addresses, np.dtype(np.float32), np.array([[0, 0, 0, 100]]), table, np.array([0, 1]))()
    assert p.tolist() == [1.0] * 100
    assert not m.any()
    assert not v.any()


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_copies_are_made_in_that_mode(kind):
    inside = []
    with mock.patch.object(cpu.launch.casts, f"to_{kind}", lambda p: inside.append(mode_of_thread()) or p):
        cpu.copy_out(np.ones(3, np.float32), np.zeros(3, np.uint16), kind)
    assert int(inside[0]) & flushing_bits() == flushing_bits()


def test_without_compilation_subnormals_stay():
    assert machine.subnormals() == "zero"
    with mock.patch.object(numba.config, "DISABLE_JIT", True):
        assert not flushes()
        assert machine.subnormals() == "kept: NUMBA_DISABLE_JIT is set"
        with flushed():
            assert np.full(3, TINY).sum() > 0


# --- other processors


def listing(triple):
    """What LLVM makes of the switches for a processor."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module, number = ir.Module(), ir.IntType(64)
    module.triple = triple
    register = register_of(triple)
    function = ir.Function(module, ir.FunctionType(number, []), "switch")
    builder = ir.IRBuilder(function.append_basic_block())
    mode = switches.read_mode(builder, register)
    switches.write_mode(builder, register, builder.or_(mode, mode.type(register.flush)))
    builder.ret(mode if mode.type == number else builder.zext(mode, number))
    machine = llvm.Target.from_triple(triple).create_target_machine()
    return machine.emit_assembly(llvm.parse_assembly(str(module)))


def test_switches_of_arm():
    lines = [line.split("\t") for line in listing("aarch64-unknown-linux-gnu").splitlines()]
    found = [parts[1:] for parts in lines if len(parts) > 2 and parts[1] in ("mrs", "msr", "orr", "mov")]
    assert ["mrs", "x0, FPCR"] in found
    assert any(re.fullmatch(r"x\d+, x0, #0x1000000", rest[0]) for what, *rest in found if what == "orr")
    assert any(re.fullmatch(r"FPCR, x\d+", rest[0]) for what, *rest in found if what == "msr")


def test_switches_of_x86():
    text = listing("x86_64-pc-windows-msvc")
    assert re.search(r"stmxcsr.*32832|stmxcsr(.|\n)*32832(.|\n)*ldmxcsr", text)


@pytest.mark.parametrize("triple", ["powerpc64le-unknown-linux-gnu", "riscv64-unknown-linux-gnu", ""])
def test_other_processors_have_no_mode(triple):
    assert register_of(triple) is None
    with mock.patch.object(switches, "_triple", return_value=triple):
        assert not flushes()
        assert machine.subnormals() == "kept: this processor has no mode for it"
        with flushed():
            assert np.full(3, TINY).sum() > 0
