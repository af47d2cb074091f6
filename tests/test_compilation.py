"""What Numba makes of the CPU kernel: vector instructions, one signature a dtype, a cache file a text."""

import re
from dataclasses import replace

import numba
import numpy as np
import pytest
from machine_code import FUSED, PACKED, SHIFTED
from members import MEMBERS, NAMES_AND_DTYPES, launch_of, random_flats

from fastadam.kernels import cpu
from fastadam.kernels.cpu import jit as cpu_jit
from fastadam.kernels.cpu import norm as cpu_norm
from fastadam.kernels.texts.formats import NATIVE
from fastadam.kernels.texts.update import ADAM

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    """Numba shows the machine code of what it compiled, not of what it loaded."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def assembly_of(update, dtype, *, parallel=False):
    # Without the fold, whose own square roots and divisions may be packed in pairs.
    kernel = cpu.twin(replace(update, fold_row=lambda hyper, carried, grad_scale, table: None), parallel=parallel)
    kernel.compile(cpu.signature(update, np.dtype(dtype)))
    (assembly,) = kernel.inspect_asm().values()
    return assembly


def check_vectorised(update, assembly, dtype):
    operations = ["div"] if update.name == "adamax" else ["sqrt", "div"]
    missing = [each for each in operations if not re.search(PACKED[dtype].format(each), assembly)]
    assert missing == [], "no packed instruction"
    assert not re.search(FUSED, assembly), "a fused multiply-add would change the last bit"
    if update.storage != NATIVE:
        assert re.search(SHIFTED, assembly), "what is stored in another format is not made of vectors"


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
def test_every_loop_is_vectorised(name, dtype):
    check_vectorised(MEMBERS[name], assembly_of(MEMBERS[name], dtype), dtype)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("adam", np.float32),
        ("adam", np.float64),
        ("radam", np.float32),
        ("everything", np.float64),
        ("codes", np.float32),
    ],
)
def test_parallel_loop_is_vectorised(name, dtype):
    check_vectorised(MEMBERS[name], assembly_of(MEMBERS[name], dtype, parallel=True), dtype)


def test_check_notices_a_loop_that_is_not_vectorised(monkeypatch):
    njit = numba.njit
    monkeypatch.setattr(cpu_jit, "njit", lambda **options: njit(**{**options, "error_model": "python"}))
    for dtype in (np.float32, np.float64):
        assembly = assembly_of(MEMBERS["adam"], dtype)
        with pytest.raises(AssertionError, match="no packed instruction"):
            check_vectorised(MEMBERS["adam"], assembly, dtype)


def test_check_notices_a_fused_multiply_add(monkeypatch):
    njit = numba.njit
    monkeypatch.setattr(cpu_jit, "njit", lambda **options: njit(**options, fastmath={"contract"}))
    assembly = assembly_of(MEMBERS["adam"], np.float32)
    with pytest.raises(AssertionError, match="fused"):
        check_vectorised(MEMBERS["adam"], assembly, np.float32)


def test_long_buffers_go_to_the_threads():
    dtype = np.dtype(np.float32)
    serial = cpu.compiled(ADAM, dtype, parallel=False)
    assert cpu.launcher(ADAM, dtype, cpu.PARALLEL_FROM - 1) is serial
    assert cpu.launcher(ADAM, dtype, cpu.PARALLEL_FROM) is not serial


def test_blocks_that_threads_share_cover_the_pieces():
    size = cpu.BLOCK
    pieces = [(0, 0, 0, 0, 0), (3, 4, 0, 0, 0), (5, 5 + size, 1, 1, 2), (9 + size, 10 + 3 * size, 0, 2, 7)]
    assert cpu.blocks_of(pieces).tolist() == [
        [3, 4, 0, 0, 0],
        [5, 5 + size, 1, 1, 2],
        [9 + size, 9 + 2 * size, 0, 2, 7],
        [9 + 2 * size, 9 + 3 * size, 0, 2, 7 + size],
        [9 + 3 * size, 10 + 3 * size, 0, 2, 7 + 2 * size],
    ]
    assert cpu.blocks_of([]).shape == (0, 5)


@pytest.mark.parametrize("size", [100, cpu.PARALLEL_FROM], ids=["serial", "parallel"])
def test_no_kind_of_array_or_scalar_is_compiled_for_but_the_two_dtypes(size):
    for dtype in (np.float32, np.float64):
        launch = launch_of(ADAM, random_flats(ADAM, dtype, size + 1))
        (gradient,), (hyper,), (carried,) = launch.gradients, launch.hyper, launch.carried
        gradient.flags.writeable = False
        flats = tuple(launch.flats.values())
        cpu.launch_flat(ADAM, flats, gradient, hyper, carried, 1.0)
        cpu.launch_flat(ADAM, tuple(flat[1:] for flat in flats), gradient[1:], hyper, carried, np.float64(0.5))
        cpu.launch_flat(ADAM, flats, gradient, hyper, carried, 1)
    assert all(len(twin.signatures) <= 2 for twin in cpu.twins(ADAM))


def test_twins_have_names_and_cache_files_of_their_own(empty_cache):
    twins = [cpu.twin(update, parallel=parallel) for update in MEMBERS.values() for parallel in (False, True)]
    assert len({twin.__name__ for twin in twins}) == 2 * len(MEMBERS)
    for parallel in (False, True):
        cpu.twin(ADAM, parallel=parallel).compile(cpu.signature(ADAM, np.dtype(np.float32)))
    assert len(list(empty_cache.rglob("*.nbi"))) == 2


def test_machine_code_is_found_again_unless_a_text_was_edited(empty_cache):
    signature = cpu.signature(ADAM, np.dtype(np.float32))
    edited = replace(ADAM, sources=ADAM.sources.replace("g * g - v", "g * g + v"))
    assert edited.sources != ADAM.sources
    hits = []
    for update in (ADAM, ADAM, edited):
        kernel = cpu.twin(update, parallel=False)
        kernel.compile(signature)
        hits.append(sum(kernel.stats.cache_hits.values()))
    assert hits == [0, 1, 0]


@pytest.mark.parametrize("source", ["_SOURCES", "sources", "name"])
def test_each_source_is_in_the_name_of_the_cache(source, monkeypatch):
    before = cpu.twin(ADAM, parallel=False).__name__
    update = ADAM
    if source == "_SOURCES":
        monkeypatch.setattr(cpu_jit, source, cpu_jit._SOURCES + b"#")
    else:
        update = replace(ADAM, **{source: getattr(ADAM, source) + "_"})
    assert cpu.twin(update, parallel=False).__name__ != before


@dtypes
def test_sum_of_squares_is_vectorised(dtype, monkeypatch):
    compiled, jit = [], cpu_norm.jit
    monkeypatch.setattr(
        cpu_norm, "jit", lambda *arguments, **options: compiled.append(jit(*arguments, **options)) or compiled[0]
    )
    cpu_norm.squares_kernel.__wrapped__(np.dtype(dtype), parallel=False)
    (assembly,) = compiled[0].inspect_asm().values()
    # The squares are float64 for every dtype.
    assert re.search(PACKED[np.float64].format("mul"), assembly)
    assert re.search(PACKED[np.float64].format("add"), assembly)
    assert not re.search(FUSED, assembly)
