"""Software prefetch: chosen from the table of tuning or by the variable, in the machine code, and no bit changes."""

import copy
import re

import numpy as np
import pytest
from machine_code import assembly, nothing_compiled
from members import MEMBERS, assert_same, by_cpu, by_reference, clocks_launch, launch_of, random_flats
from norm_kernels import draw, sums_on_cpu
from test_compilation import check_vectorised

from fastadam.kernels import cpu
from fastadam.kernels.cpu import jit, launch, norm, tuning
from fastadam.kernels.cpu.loop import loop_of
from fastadam.kernels.cpu.tuning import NONE, TUNINGS, VARIABLE, Tuning

F4 = np.dtype(np.float32)
NAMES = ("adam", "everything", "moments_dithered", "all_dithered", "codes", "dithered_codes", "split_codes", "lion")
names = pytest.mark.parametrize("name", NAMES)
is_x86 = pytest.mark.skipif(tuning.vendor() == "other", reason="how x86 writes it")


@names
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("ahead", ["0", "64", "512"])
def test_prefetch_changes_no_bit(monkeypatch, ahead, parallel, name):
    monkeypatch.setenv(VARIABLE, ahead)
    for size in (1, 127, 129, 9_001):
        one = launch_of(MEMBERS[name], random_flats(MEMBERS[name], np.float32, size))
        other = copy.deepcopy(one)
        by_cpu(parallel)(one)
        by_reference(other)
        assert_same(one, other)
    # Pieces that begin anywhere in a chunk.
    one = clocks_launch(MEMBERS[name], np.float32, [2, 300, 1_001, 17])
    other = copy.deepcopy(one)
    by_cpu(parallel)(one)
    by_reference(other)
    assert_same(one, other)


@pytest.mark.parametrize("format", ["native", "bfloat16", "float16"])
def test_nor_does_it_in_the_norm(monkeypatch, format):
    gradients = draw([1, 127, 129, 512, 513, 640, 8_191, 8_192, 20_001], np.float32)
    if format != "native":
        gradients = [gradient.astype(np.float16).view(np.uint16) for gradient in gradients]
    sums = []
    for ahead in ("0", "512"):
        monkeypatch.setenv(VARIABLE, ahead)
        sums += [sums_on_cpu(gradients, np.float32, parallel, format) for parallel in (False, True)]
    for other in sums[1:]:
        np.testing.assert_array_equal(other, sums[0])


def listing(tmp_path, make, *arguments):
    with nothing_compiled(tmp_path):
        return assembly(jit.leaf(make(*arguments)))


def unrolled(text):
    """The kinds of fetches in a listing, each as often as it stands there."""
    return re.findall(r"\tprefetch(w|t0)\b", text)


@is_x86
@names
def test_prefetch_is_in_the_machine_code_where_it_is_asked_for(tmp_path, name):
    update = MEMBERS[name]
    without, with_it = (listing(tmp_path, loop_of, update, F4, ahead) for ahead in (0, 512))
    check_vectorised(update, with_it, np.float32)
    assert not unrolled(without)
    # The gradient is only read unless it is zeroed.
    assert set(unrolled(with_it)) == ({"w"} if "g" in update.written else {"w", "t0"})


@is_x86
def test_each_line_of_a_chunk_is_fetched_once(tmp_path):
    fetched = unrolled(listing(tmp_path, loop_of, MEMBERS["adam"], F4, 512))
    # 128 numbers of 4 bytes are 8 lines of 64.
    assert (fetched.count("w"), fetched.count("t0")) == (3 * 8, 8)


@is_x86
@pytest.mark.parametrize("format", ["native", "bfloat16"])
def test_prefetch_of_the_norm(tmp_path, format):
    without, with_it = (listing(tmp_path, norm.squares_of, F4, format, ahead) for ahead in (0, 4_096))
    assert not unrolled(without)
    assert set(unrolled(with_it)) == {"t0"}
    assert re.search(r"\bv(add|fmadd...)pd\b.*[yz]mm", with_it) or "ymm" not in without


def test_leaves_with_and_without_have_names_of_their_own():
    made = [loop_of(MEMBERS["adam"], F4, ahead).__name__ for ahead in (0, 256, 512)]
    made += [norm.squares_of(F4, "native", ahead).__name__ for ahead in (0, 4_096, 8_192)]
    assert len(set(made)) == 6


# --- the choice


def test_table(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    chosen = {}
    for vendor in ("intel", "amd", "other"):
        monkeypatch.setattr(tuning, "vendor", lambda vendor=vendor: vendor)
        chosen[vendor] = tuning.tuning(), tuning.prefetch()
    assert chosen == {
        "intel": (TUNINGS["intel"], "512 elements ahead, 4,096 bytes in the norm, from 2 MiB on (intel)"),
        "amd": (NONE, "none (amd)"),
        "other": (NONE, "none (other)"),
    }


@pytest.mark.parametrize(
    ("triple", "name", "vendor"),
    [
        ("x86_64-unknown-linux-gnu", "znver4", "amd"),
        ("x86_64-pc-windows-msvc", "btver2", "amd"),
        ("x86_64-unknown-linux-gnu", "sapphirerapids", "intel"),
        ("i686-pc-windows-msvc", "skylake-avx512", "intel"),
        ("aarch64-unknown-linux-gnu", "neoverse-n1", "other"),
        ("arm64-apple-darwin22", "apple-m1", "other"),
    ],
)
def test_vendors(monkeypatch, triple, name, vendor):
    monkeypatch.setattr(tuning.llvm, "get_process_triple", lambda: triple)
    monkeypatch.setattr(tuning.llvm, "get_host_cpu_name", lambda: name)
    assert tuning.vendor.__wrapped__() == vendor


def test_variable_overrides_the_table(monkeypatch):
    for said, expected in (("0", NONE), ("256", Tuning(256, 2_048, 0))):
        monkeypatch.setenv(VARIABLE, said)
        assert tuning.tuning() == expected
        assert tuning.prefetch().endswith(f"({VARIABLE})")
    for said in ("-1", "yes", "1.5"):
        monkeypatch.setenv(VARIABLE, said)
        with pytest.raises(ValueError, match=f"`{VARIABLE}` must be a number of elements, .* got '{said}'"):
            tuning.tuning()


def test_what_fits_into_the_cache_is_not_prefetched(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(tuning, "vendor", lambda: "intel")
    asked = []
    monkeypatch.setattr(launch, "leaves_of", lambda *given: asked.append(given[2]) or np.zeros(1, np.int64))
    monkeypatch.setattr(norm, "_leaves", lambda *given: asked.append(given[2]) or np.zeros(1, np.int64))
    update, least = MEMBERS["adam"], TUNINGS["intel"].least
    for size in (least // 16 - 1, least // 16):
        each = launch_of(update, random_flats(update, np.float32, size))
        cpu.launcher(each.passes, each.tables, guarded=False)
        cpu.squares(F4, "native", np.array([[0, 0, 0, 4 * size, 0]]), each.tables, np.zeros((1, 128)))
    assert asked == [0, 0, 512, 4_096]
