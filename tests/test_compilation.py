"""What Numba makes of the CPU kernels: vector instructions, a leaf for each text and dtype, honest cache files."""

import gc
import os
import re
import subprocess
import sys
import weakref
from dataclasses import replace
from hashlib import sha256

import numba
import numpy as np
import pytest
from machine_code import CALL, FUSED, PACKED, SHIFTED, assembly, leaves, nothing_compiled
from members import MAIN, MEMBERS, by_cpu, clocks_launch, launch_of, random_flats
from numba.core import caching

from fastadam.kernels import Pass, cpu
from fastadam.kernels.blocks import BLOCK, cut
from fastadam.kernels.cpu import jit, norm
from fastadam.kernels.cpu.driver import NEAR, driver
from fastadam.kernels.cpu.driver import is_far as is_far_of_driver
from fastadam.kernels.cpu.launch import fold_of, leaves_of
from fastadam.kernels.cpu.loop import loop_of
from fastadam.kernels.texts.formats import NATIVE

F4, F8 = np.dtype(np.float32), np.dtype(np.float64)
ADAM = MEMBERS["adam"]
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(autouse=True)
def empty_cache(tmp_path):
    with nothing_compiled(tmp_path):
        yield tmp_path


def loop_in(update, dtype):
    return assembly(jit.leaf(loop_of(update, np.dtype(dtype))))


def edited(update, old="g * g - v", new="g * g + v"):
    statements = tuple(each.replace(old, new) for each in update.text.statements)
    assert statements != update.text.statements
    return replace(update, text=replace(update.text, statements=statements))


# --- vector instructions

OPERATIONS = {"adamax": ["div"], "lion": ["mul"]}


def check_vectorised(update, listing, dtype):
    assert not re.search(CALL, listing), "something is called and not inlined"
    operations = OPERATIONS.get(update.name, ["sqrt", "div"])
    missing = [each for each in operations if not re.search(PACKED[dtype].format(each), listing)]
    assert missing == [], "no packed instruction"
    assert not re.search(FUSED, listing), "a fused multiply-add would change the last bit"
    if update.storage != NATIVE:
        assert re.search(SHIFTED, listing), "what is stored in another format is not made of vectors"


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, np.float32) for name in MEMBERS] + [(name, np.float64) for name in MAIN]
)
def test_every_loop_is_vectorised(name, dtype):
    check_vectorised(MEMBERS[name], loop_in(MEMBERS[name], dtype), dtype)


def test_check_notices_a_loop_that_is_not_vectorised(monkeypatch):
    monkeypatch.setitem(jit._OPTIONS, "error_model", "python")
    for dtype in (np.float32, np.float64):
        with pytest.raises(AssertionError, match="no packed instruction"):
            check_vectorised(ADAM, loop_in(ADAM, dtype), dtype)


def test_check_notices_a_fused_multiply_add(monkeypatch):
    monkeypatch.setitem(jit._OPTIONS, "fastmath", {"contract"})
    listing = loop_in(ADAM, np.float32)
    with pytest.raises(AssertionError, match="fused"):
        check_vectorised(ADAM, listing, np.float32)


def test_check_notices_a_call():
    listing = loop_in(edited(ADAM, "g * g - v", "pow(g, g) - v"), np.float32)
    with pytest.raises(AssertionError, match="called"):
        check_vectorised(ADAM, listing, np.float32)


@pytest.mark.parametrize("format", ["native", "bfloat16", "float16"])
@dtypes
def test_sum_of_squares_is_vectorised(dtype, format):
    listing = assembly(jit.leaf(norm.squares_of(np.dtype(dtype), format)))
    # The squares are float64 for every dtype: those of float32 are exact, and may be fused with the sum.
    if dtype == np.float64:
        assert re.search(PACKED[np.float64].format("mul"), listing)
        assert re.search(PACKED[np.float64].format("add"), listing)
        assert not re.search(FUSED, listing)
    else:
        assert re.search(rf"{FUSED}.*[yz]mm|\bfmla\b|{PACKED[np.float64].format('add')}", listing)


# --- what is launched


@pytest.mark.parametrize("size", [cpu.PARALLEL_FROM - 1, cpu.PARALLEL_FROM])
def test_long_buffers_go_to_the_threads(size):
    launch = launch_of(ADAM, random_flats(ADAM, np.float32, size))
    called = cpu.launcher(launch.passes, launch.tables, guarded=False).func
    assert (called is driver(parallel=False)) == (size < cpu.PARALLEL_FROM)


def test_the_parallel_driver_is_compiled_only_when_it_is_needed():
    by_cpu(False)(launch_of(ADAM, random_flats(ADAM, np.float32, 100)))
    assert driver.cache_info().currsize == 1
    by_cpu(True)(launch_of(ADAM, random_flats(ADAM, np.float32, 100)))
    assert driver.cache_info().currsize == 2


@pytest.mark.parametrize("size", [100, cpu.PARALLEL_FROM])
def test_what_a_launcher_reads_lives_as_long_as_it_does(size):
    launch = launch_of(ADAM, random_flats(ADAM, np.float32, size))
    passes, tables = launch.passes, launch.tables
    arrays = [
        passes[0].blocks,
        *(getattr(tables, name) for name in ("addresses", "hyper", "carried", "table", "record")),
    ]
    alive = [weakref.ref(array) for array in arrays]
    launcher = cpu.launcher(passes, tables, guarded=False)
    del launch, passes, tables, arrays
    gc.collect()
    assert all(array() is not None for array in alive)
    del launcher
    gc.collect()
    assert all(array() is None for array in alive)


@numba.njit
def is_far(job, index):
    return is_far_of_driver(job, index)


def test_blocks_that_lie_far_from_the_one_before_are_prefetched():
    tables = cpu.tables(3, 1, None)
    # The second parameter lies right behind the first, the third does not.
    tables.addresses[:, 1] = 4096, 4096 + 4 * 1_000, 100_000
    pieces = [
        (0, 0, 900),
        (0, 900, 1_000),
        (1, 0, 64),
        (1, 64 + NEAR, 200),
        (1, 201 + NEAR, 300),
        (1, 0, 64),
        (2, 0, 9),
    ]
    blocks = np.array([(parameter, 0, start, stop, start) for parameter, start, stop in pieces])
    expected = [False, False, False, True, True, True, False]
    for name in ("adam", "codes", "lion"):
        clocks = np.zeros(1, np.int64)
        launch = cpu.launcher([Pass(MEMBERS[name], F4, clocks, blocks)], tables, guarded=False)
        (job,) = launch.args
        assert [is_far(job, index) for index in range(1, len(blocks) + 1)] == expected


def test_blocks_cover_the_pieces():
    pieces = [(0, 0, 0, 0, 0), (1, 0, 3, 4, 0), (2, 1, 5, 5 + BLOCK, 2), (2, 0, 9 + BLOCK, 10 + 3 * BLOCK, 7)]
    assert cut(np.array(pieces)).tolist() == [
        [1, 0, 3, 4, 0],
        [2, 1, 5, 5 + BLOCK, 2],
        [2, 0, 9 + BLOCK, 9 + 2 * BLOCK, 7],
        [2, 0, 9 + 2 * BLOCK, 9 + 3 * BLOCK, 7 + BLOCK],
        [2, 0, 9 + 3 * BLOCK, 10 + 3 * BLOCK, 7 + 2 * BLOCK],
    ]
    assert cut(np.zeros((0, 5), np.int64)).shape == (0, 5)


# --- what is compiled


def test_nothing_is_compiled_for_but_the_two_dtypes():
    for dtype in (np.float32, np.float64):
        for size in (100, cpu.PARALLEL_FROM):
            launch = launch_of(ADAM, random_flats(ADAM, dtype, size))
            by_cpu(False)(launch)
            launch.shift, launch.tables.record[0] = 1, 1
            by_cpu(True)(launch)
            by_cpu(False)(clocks_launch(ADAM, dtype, [size, 3]))
    # A loop and a fold for each; and what prefetches, where there are many blocks.
    assert len(leaves()) == 5


def test_texts_that_are_the_same_are_compiled_once():
    # Formats of the moments make no other fold, and where eps stands no other loop.
    for name in ("adam", "moments_bfloat16", "split", "keras"):
        leaves_of(MEMBERS[name], F4)
    rows = [leaves_of(MEMBERS[name], F4) for name in ("adam", "moments_bfloat16", "split", "keras")]
    loops, folds = {row[0] for row in rows}, {row[1] for row in rows}
    assert (len(loops), len(folds)) == (3, 2)


def test_leaves_and_drivers_have_names_and_cache_files_of_their_own(empty_cache):
    loops = {loop_of(update, dtype).__name__ for update in MEMBERS.values() for dtype in (F4, F8)}
    texts = {(update.text.statements, update.storage) for update in MEMBERS.values()}
    assert len(loops) == 2 * len(texts)
    for parallel, files in ((False, 3), (True, 4)):
        by_cpu(parallel)(launch_of(ADAM, random_flats(ADAM, np.float32, 100)))
        assert len(list(empty_cache.rglob("*.nbi"))) == files


def test_machine_code_is_found_again_unless_a_text_was_edited(empty_cache):
    hits = []
    for update in (ADAM, ADAM, edited(ADAM)):
        with nothing_compiled(empty_cache):
            leaves_of(update, F4)
            hits.append(sum(leaf.cache_hits for leaf in leaves()))
    # The fold of the edited one is the same.
    assert hits == [0, 2, 1]


def test_each_source_is_in_the_name_of_the_cache(monkeypatch):
    def names():
        return [jit.leaf(make(update, F4)).__name__ for make in (loop_of, fold_of)]

    update = ADAM
    before = names()
    update = edited(ADAM)
    assert [a == b for a, b in zip(names(), before, strict=True)] == [False, True]
    update = replace(ADAM, fold=replace(ADAM.fold, statements=(*ADAM.fold.statements, "step_size *= 1.0")))
    assert [a == b for a, b in zip(names(), before, strict=True)] == [True, False]
    update = ADAM
    monkeypatch.setattr(jit, "_DIGEST", sha256(b"other sources"))
    assert [a == b for a, b in zip(names(), before, strict=True)] == [False, False]


def test_the_sources_and_the_name_are_in_the_name_of_a_kernel(monkeypatch):
    def first():
        """Compiled by `jit`."""

    before = jit.jit(first, "first").__name__
    assert jit.jit(first, "second").__name__ != before
    assert jit.jit(first, "first", "text").__name__ != before
    monkeypatch.setattr(jit, "_DIGEST", sha256(b"other sources"))
    assert jit.jit(first, "first").__name__ != before


STEP = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from fastadam.kernels import cpu
from members import MEMBERS, by_cpu, launch_of, random_flats
for parallel in (False, True):
    for name in ("adam", "adam_l2"):
        by_cpu(parallel)(launch_of(MEMBERS[name], random_flats(MEMBERS[name], np.float32, 100)))
tables, sums = cpu.tables(1, 1, None), np.zeros(1)
cpu.squares(np.float32, "native", np.array([[0, 0, 0, 0, 0]]), tables, sums)()
cpu.clip(sums, 1.0, 1.0, 1e30, 0.0, tables)
assert tables.record[1] == 1.0
"""


def test_a_second_process_compiles_nothing(empty_cache):
    code = STEP.format(tests=os.path.dirname(__file__))
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(empty_cache), "NUMBA_DEBUG_CACHE": "1"}
    counts = []
    for _ in range(2):
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        counts.append([len(re.findall(what, ran.stdout)) for what in ("data saved to", "data loaded from")])
    # Two loops, two folds, two drivers, the squares, the clip and the three switches of subnormals.
    assert counts == [[11, 0], [0, 11]]


def test_without_a_place_for_a_cache_everything_is_compiled(empty_cache, monkeypatch):
    finders = getattr(caching, "CacheImpl", None) or caching._CacheImpl  # its name before Numba 0.62
    monkeypatch.setattr(finders, "_locator_classes", [])
    launch, expected = (launch_of(ADAM, random_flats(ADAM, np.float32, 100)) for _ in range(2))
    by_cpu(False)(launch)
    assert not list(empty_cache.rglob("*"))
    monkeypatch.undo()
    by_cpu(False)(expected)
    np.testing.assert_array_equal(launch.flats["p"], expected.flats["p"])


@pytest.mark.parametrize("name", MEMBERS)
def test_no_loop_finds_out_at_run_time_whether_arrays_overlap(name):
    for ahead in (0, 512):
        text = jit.leaf(loop_of(MEMBERS[name], F4, ahead))._library.get_llvm_str()
        assert re.search(r"<\d+ x float>", text)
        # So LLVM calls what such a check finds.
        assert "found.conflict" not in text
