"""The CUDA kernels without a GPU: their PTX by NVRTC, their registers by ptxas, and their text."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache

import numpy as np
import pytest
from members import MAIN, MEMBERS, NAMES_AND_DTYPES, OTHERS, STORED, is_exponent

pytest.importorskip("cupy")
nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc")

import cuda_program  # noqa: E402
from cuda_program import kernels_of  # noqa: E402

from fastadam.kernels.cuda.launch import rounding_kernel  # noqa: E402
from fastadam.kernels.cuda.norm import Folded, Kind, fold_kernel, settle_kernel, squares_kernel  # noqa: E402
from fastadam.kernels.cuda.rows import catch_up_kernel  # noqa: E402
from fastadam.kernels.cuda.step import step_kernel  # noqa: E402
from fastadam.kernels.texts.catch_up import CATCH_UP  # noqa: E402
from fastadam.kernels.texts.clip import CLIP, CLIP_EACH  # noqa: E402
from fastadam.kernels.texts.formats import FORMATS  # noqa: E402

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# Every member on one architecture, and those of the whole matrix and the formats that differ most on all.
WIDE = (*MAIN, "lion", "split", "all_dithered", "codes", "everything_codes")
TARGETS = [(name, "sm_90") for name in OTHERS + STORED if name not in WIDE]
TARGETS += [(name, architecture) for name in WIDE for architecture in ARCHITECTURES]
targets = pytest.mark.parametrize(("name", "architecture"), TARGETS)
# Neither has both a root and a quotient.
NO_ROOT, NO_QUOTIENT = ("adamax", "lion"), ("lion",)


def dtypes_of(name):
    return (np.float32,) if name in STORED else (np.float32, np.float64)


def ptx(source, architecture="sm_90", replaced=()):
    """The PTX of `source`, compiled with CuPy's options, of which some may be `replaced`."""
    program = nvrtc.createProgram(source, "fastadam.cu", (), ())
    options = [dict(replaced).get(option, option) for option in cuda_program.compiler_options()]
    try:
        nvrtc.compileProgram(program, (*options, f"-arch={architecture.replace('sm', 'compute')}"))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    text = nvrtc.getPTX(program)
    return text.decode() if isinstance(text, bytes) else text


@cache
def program(name, dtype, architecture="sm_90"):
    """The PTX of the four kernels of a step."""
    return ptx(cuda_program.source(*kernels_of(MEMBERS[name], dtype)), architecture)


def entry(text, kernel):
    """The part of the PTX `text` that is `kernel`, without the functions that it calls."""
    (found,) = (part for part in re.split(r"\.entry |\.func ", text)[1:] if part.startswith(f"{kernel.name}("))
    return found


def steps_of(name, dtype, architecture="sm_90"):
    """(guarded, PTX of the kernel of the elements)."""
    update, text = MEMBERS[name], program(name, dtype, architecture)
    return [(guarded, entry(text, step_kernel(update, np.dtype(dtype), guarded))) for guarded in (False, True)]


def accesses(text, operation):
    """How many loads ("ld") or stores ("st") of each number of bytes are in the PTX `text`, without tables."""
    found = re.findall(rf"\b{operation}\.global\.(?:v(\d)\.)?[fubs](\d+)\b", text)
    return Counter(int(count or 1) * int(bits) // 8 for count, bits in found)


def table_loads(text):
    """How many loads of each type are in the PTX `text` that go through the cache for what nobody writes."""
    return Counter(re.findall(r"\bld\.global\.nc\.([fus]\d+)\b", text))


def findings(text, update, dtype):
    """What is wrong with the arithmetic of a kernel's PTX, as a list of sentences."""
    kind = "f32" if dtype is np.float32 else "f64"
    rules = {
        "local memory": re.search(r"\.local\b", text),
        "memory of unknown kind": re.search(r"\b(ld|st)\.(v\d\.)?[fubs]\d+\b", text),
        "fused multiply-add": re.search(r"\bfma\.", text),
        "no IEEE square root": update.name not in NO_ROOT and not re.search(rf"\bsqrt\.rn\.(ftz\.)?{kind}", text),
        "no IEEE division": update.name not in NO_QUOTIENT and not re.search(rf"\bdiv\.rn\.(ftz\.)?{kind}", text),
        "approximations": re.search(r"\.approx", text),
        "float64 arithmetic in a float32 kernel": kind == "f32"
        and re.search(r"\b(add|sub|mul|div|sqrt|cvt)\S*\.f64\b", text),
    }
    return [sentence for sentence, broken in rules.items() if broken]


def expected_accesses(update, buffers, dtype):
    """Accesses that read or write four elements of `buffers` once: as a whole, and beside that one by one."""
    sizes = {"native": np.dtype(dtype).itemsize, "uint16": 2, "uint8": 1}
    found = Counter()
    for flat in (flat for buffer in buffers for flat in update.storage.flats(buffer)):
        size = sizes[update.storage.dtype(flat)]
        if is_exponent(flat):
            found[size] += 1
            continue
        width = min(16, 4 * size)
        found[width] += 4 * size // width
        found[size] += 4
    return found


@targets
def test_elements_are_loaded_and_stored_once_by_16_bytes_with_ieee_arithmetic(name, architecture):
    update = MEMBERS[name]
    for dtype in dtypes_of(name):
        for guarded, text in steps_of(name, dtype, architecture):
            assert findings(text, update, dtype) == []
            read = [buffer for buffer in update.buffers if buffer != "copy"]
            assert accesses(text, "ld") == expected_accesses(update, read, dtype)
            stores = expected_accesses(update, update.written, dtype)
            if guarded and "g" in update.written:
                # Gradients are zeroed where the step is not taken.
                stores += Counter([2 if update.storage.dtype("g") == "uint16" else np.dtype(dtype).itemsize])
            assert accesses(text, "st") == stores


@targets
def test_tables_are_loaded_through_the_cache(name, architecture):
    update = MEMBERS[name]
    for dtype in dtypes_of(name):
        for guarded, text in steps_of(name, dtype, architecture):
            kind = "f32" if dtype is np.float32 else "f64"
            # The entry of the block table, where the arrays lie and the scalars.
            addresses = len(update.flats) + ("g" in update.buffers) + update.storage.dithers
            expected = Counter(s64=5 + addresses)
            expected[kind] += len(update.columns)
            expected["f64"] += guarded
            assert table_loads(text) == +expected


def test_adam_has_no_more_than_its_seven_wide_accesses():
    for _, text in steps_of("adam", np.float32):
        assert len(re.findall(r"ld\.global\.v4\.f32", text)) == 4
        assert len(re.findall(r"st\.global\.v4\.f32", text)) == 3
        assert len(re.findall(r"div\.rn\.ftz", text)) == len(re.findall(r"sqrt\.rn\.ftz", text)) == 4


REGISTERS = {
    48: ("adam", "adam_l2", "adamw", "lion", "moments_bfloat16"),
    64: ("moments_dithered", "all_dithered", "codes", "dithered_codes", "nadam"),
    80: ("everything", "everything_codes"),
    104: ("ademamix_codes",),
}


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="needs ptxas, of the CUDA toolkit")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize(("most", "name"), [(most, name) for most, names in REGISTERS.items() for name in names])
def test_registers(most, name, architecture, tmp_path):
    (tmp_path / "step.ptx").write_text(program(name, np.float32, architecture))
    command = ["ptxas", "-v", f"-arch={architecture}", "step.ptx", "-o", "step.cubin"]
    log = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stderr
    used = re.findall(r"entry function '\w+_step(?:_guarded)?'(?:.|\n)*?Used (\d+) registers", log)
    assert len(used) == 2
    assert max(map(int, used)) <= most
    assert set(re.findall(r"(\d+) bytes spill", log)) == {"0"}


def fold_of(name, dtype):
    return settle_kernel(None, (Folded(MEMBERS[name], np.dtype(dtype)),))


def test_fold_by_the_record_is_the_same_text():
    folded = Folded(MEMBERS["adam"], np.dtype("f4"))
    assert cuda_statements(fold_kernel((folded,)), folded.update.fold) == trees(folded.update.fold)
    kernel = fold_kernel((folded,))
    assert findings(entry(ptx(cuda_program.source(kernel)), kernel), MEMBERS["adam"], np.float64) == []


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
def test_fold_has_ieee_arithmetic_without_fused_multiply_adds(name, dtype):
    text = entry(program(name, dtype), fold_of(name, dtype))
    # CUDA's logarithms are made of such.
    ignored = {"fused multiply-add", "approximations"} if MEMBERS[name].name == "ademamix" else set()
    assert set(findings(text, MEMBERS["adam"], np.float64)) <= ignored


def test_kernels_of_the_norm_and_of_rows_compile_without_fused_multiply_adds():
    adam = MEMBERS["adam"]
    loaded = [format for format, how in FORMATS.items() if len(how.dtypes) == 1]
    kinds = [Kind(np.dtype(dtype), "native") for dtype in ("f4", "f8")]
    kinds += [Kind(np.dtype("f4"), format) for format in loaded if format != "native"]
    squares = [squares_kernel(kind) for kind in kinds]
    rows = [catch_up_kernel(np.dtype(dtype)) for dtype in ("f4", "f8")]
    roundings = [rounding_kernel(format) for format in ("bfloat16", "float16")]
    settle = [settle_kernel(kind, (), each=each) for kind in (None, *kinds) for each in (False, True)]
    text = ptx(cuda_program.source(*squares, *rows, *roundings, *settle))
    ignored = {"no IEEE square root", "no IEEE division", "float64 arithmetic in a float32 kernel"}
    for kernel in (*squares, *roundings):
        assert set(findings(entry(text, kernel), adam, np.float32)) <= ignored, kernel.name
    for kernel, dtype in zip(rows, (np.float32, np.float64), strict=True):
        assert findings(entry(text, kernel), adam, dtype) == [], kernel.name
    for kernel in settle:
        assert findings(entry(text, kernel), adam, np.float64) == [], kernel.name


@pytest.mark.parametrize(
    ("option", "other", "finding"),
    [
        ("--fmad=false", "--fmad=true", "fused multiply-add"),
        ("--prec-div=true", "--prec-div=false", "no IEEE division"),
        ("--prec-sqrt=true", "--prec-sqrt=false", "no IEEE square root"),
    ],
)
def test_ptx_check_notices_a_wrong_option(option, other, finding):
    adam = MEMBERS["adam"]
    text = ptx(cuda_program.source(*kernels_of(adam, np.float32)), replaced=[(option, other)])
    for guarded in (False, True):
        step = entry(text, step_kernel(adam, np.dtype("f4"), guarded))
        assert finding in findings(step, adam, np.float32)


def changed(*replacements):
    """The PTX of the step of Adam with another source."""
    kernel = step_kernel(MEMBERS["adam"], np.dtype("f4"), False)
    source = cuda_program.source(kernel)
    for old, new in replacements:
        assert old in source
        source = source.replace(old, new)
    return ptx(source)


def test_ptx_check_notices_an_update_that_works_on_memory():
    text = changed(("T p = p_four.get(j);", "T &p = p_at[place + j];"))
    assert accesses(text, "st") != expected_accesses(MEMBERS["adam"], MEMBERS["adam"].written, np.float32)


def test_ptx_check_notices_accesses_of_four_bytes_and_memory_of_unknown_kind():
    adam = MEMBERS["adam"]
    narrow = changed(("alignas(sizeof(V) < 4 ? 4 * sizeof(V) : 16)", "alignas(V)"))
    assert accesses(narrow, "ld") != expected_accesses(adam, adam.buffers, np.float32)
    generic = changed(("__builtin_assume(__isGlobal(p_at));", ""))
    assert findings(generic, adam, np.float32) == ["memory of unknown kind"]


def test_ptx_check_notices_a_constant_in_double_precision():
    text = changed(("root + eps", "root + 1.0 * eps + 1e-3"))
    assert "float64 arithmetic in a float32 kernel" in findings(text, MEMBERS["adam"], np.float32)


def cuda_statements(kernel, text):
    """The statements between the locals and the stores, as syntax trees; C's and Python's syntax agree there."""
    lines = [line.strip().rstrip(";") for line in kernel.operation.splitlines()]
    first = lines.index(text.statements[0])
    return [ast.dump(ast.parse(line)) for line in lines[first : first + len(text.statements)]]


def trees(text):
    return [ast.dump(ast.parse(statement)) for statement in text.statements]


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
def test_cuda_text_is_the_update_text(name, dtype):
    update = MEMBERS[name]
    for guarded in (False, True):
        assert cuda_statements(step_kernel(update, np.dtype(dtype), guarded), update.text) == trees(update.text)
    assert cuda_statements(fold_of(name, dtype), update.fold) == trees(update.fold)


def test_clip_and_catch_up_are_their_texts():
    assert cuda_statements(settle_kernel(None, ()), CLIP) == trees(CLIP)
    assert cuda_statements(settle_kernel(None, (), each=True), CLIP_EACH) == trees(CLIP_EACH)
    assert cuda_statements(catch_up_kernel(np.dtype("f4")), CATCH_UP.text) == trees(CATCH_UP.text)


def test_comparison_of_texts_notices_another_text():
    adam, coupled = MEMBERS["adam"], MEMBERS["adam_l2"]
    kernel = step_kernel(coupled, np.dtype("f4"), False)
    assert cuda_statements(kernel, coupled.text) != trees(adam.text)
    assert cuda_statements(kernel, adam.text) != trees(adam.text)


def test_kernels_are_made_without_a_gpu():
    code = """
import numpy
from fastadam.kernels import cuda
from fastadam.kernels.cuda.step import step_kernel
from fastadam.kernels.texts.update import Recipe, update_of
step_kernel(update_of(Recipe()), numpy.dtype("f4"), True)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
