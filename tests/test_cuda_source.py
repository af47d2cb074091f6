"""The CUDA kernels without a GPU: their PTX by NVRTC, and their text."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from members import MAIN, MEMBERS, NAMES_AND_DTYPES, OTHERS, STORED, is_exponent

pytest.importorskip("cupy")
nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc")

import cuda_program  # noqa: E402
from cuda_host import stand_ins_for  # noqa: E402

from fastadam.kernels import cuda  # noqa: E402
from fastadam.kernels.cuda import norm as cuda_norm  # noqa: E402
from fastadam.kernels.cuda import step as cuda_step  # noqa: E402
from fastadam.kernels.texts import fold  # noqa: E402
from fastadam.kernels.texts.formats import EXPONENT_BLOCK  # noqa: E402

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
guards = pytest.mark.parametrize("guarded", [False, True], ids=["", "guarded"])
# Every member on one architecture, and those of the whole matrix on all.
TARGETS = [(name, "sm_90") for name in OTHERS]
TARGETS += [(name, architecture) for name in MAIN for architecture in ("sm_80", "sm_90", "sm_100")]
targets = pytest.mark.parametrize(("name", "architecture"), TARGETS)


def source_of(kernel, update, dtype):
    scalars = [f"{name}_value" for name in update.columns]
    return cuda_program.source(kernel, stand_ins_for(kernel, dtype, (*scalars, "elements", "count", "scale")))


def ptx(source, architecture="sm_90", replaced=()):
    """The PTX of `source`, compiled with CuPy's options, of which some may be `replaced`."""
    program = nvrtc.createProgram(source, "fastadam.cu", (), ())
    options = [dict(replaced).get(option, option) for option in cuda_program.compiler_options()]
    try:
        nvrtc.compileProgram(program, (*options, f"-arch={architecture}"))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    text = nvrtc.getPTX(program)
    return text.decode() if isinstance(text, bytes) else text


def accesses(text, operation):
    """How many loads ("ld") or stores ("st") of each type are in the PTX `text`, but for those of arguments."""
    found = re.findall(rf"\b{operation}\.(?:global\.)?(?:nc\.)?([fubs]\d+)\b", text)
    # A constant zero is stored as an integer.
    return Counter(re.sub("u(32|64)", r"f\1", kind) if operation == "st" else kind for kind in found)


def findings(text, update, dtype):
    """What is wrong with the arithmetic of a kernel's PTX, as a list of sentences."""
    kind = "f32" if dtype is np.float32 else "f64"
    rules = {
        "local memory": re.search(r"\.local\b", text),
        "fused multiply-add": re.search(r"\bfma\.", text),
        "no IEEE square root": update.name != "adamax" and not re.search(rf"\bsqrt\.rn\.(ftz\.)?{kind}", text),
        "no IEEE division": not re.search(rf"\bdiv\.rn\.(ftz\.)?{kind}", text),
        "approximations": re.search(r"\.approx", text),
        "float64 arithmetic in a float32 kernel": kind == "f32"
        and re.search(r"\b(add|sub|mul|div|sqrt|cvt)\S*\.f64\b", text),
    }
    return [sentence for sentence, broken in rules.items() if broken]


def expected_accesses(update, dtype, copies=1, scalars=0):
    """Loads and stores of a kernel with so many copies of the body, which loads so many scalars of the table."""
    loads = Counter({"f32" if dtype is np.float32 else "f64": copies * scalars})
    loads += accesses_of(update, [name for name in update.buffers if name != "low"], dtype, copies)
    return loads, accesses_of(update, update.written, dtype, copies)


def accesses_of(update, buffers, dtype, copies):
    """How many accesses of each type read or write an element of `buffers`, or what a thread has of a block."""
    kinds = {"native": "f32" if dtype is np.float32 else "f64", "uint16": "u16", "uint8": "u8"}
    elements = EXPONENT_BLOCK // cuda_step.WARP if update.storage.blocked else 1
    found = Counter()
    for flat in (flat for buffer in buffers for flat in update.storage.flats(buffer)):
        found[kinds[update.storage.dtype(flat)]] += copies * (1 if is_exponent(flat) else elements)
    return found


@pytest.mark.parametrize("name", STORED)
def test_flat_kernel_of_a_storage_accesses_what_is_stored_once(name):
    update = MEMBERS[name]
    text = ptx(source_of(cuda.step_flat(update), update, np.float32))
    assert findings(text, update, np.float32) == []
    assert (accesses(text, "ld"), accesses(text, "st")) == expected_accesses(update, np.float32)


@pytest.mark.parametrize("name", STORED)
@guards
def test_rows_kernel_of_a_storage_accesses_what_is_stored_once(name, guarded):
    update = MEMBERS[name]
    text = ptx(source_of(cuda.step_rows(update, guarded), update, np.float32))
    assert findings(text, update, np.float32) == []
    scalars = [name for name in update.columns if name != "zero"]
    found = accesses(text, "ld"), accesses(text, "st")
    # Of the pieces and of the record.
    del found[0]["u64"], found[0]["f64"]
    # The compiler makes one copy or two.
    assert found in [expected_accesses(update, np.float32, copies, len(scalars)) for copies in (1, 2)]


@targets
@dtypes
def test_flat_kernel_loads_and_stores_each_buffer_once_with_ieee_arithmetic(name, dtype, architecture):
    update = MEMBERS[name]
    text = ptx(source_of(cuda.step_flat(update), update, dtype), architecture)
    assert findings(text, update, dtype) == []
    assert (accesses(text, "ld"), accesses(text, "st")) == expected_accesses(update, dtype)


@targets
@dtypes
@guards
def test_rows_kernel_loads_and_stores_each_buffer_once_with_ieee_arithmetic(name, dtype, architecture, guarded):
    update = MEMBERS[name]
    text = ptx(source_of(cuda.step_rows(update, guarded), update, dtype), architecture)
    assert findings(text, update, dtype) == []
    # The compiler makes two copies: one for a launch with a single piece, which is not searched for.
    scalars = [name for name in update.scalars if name != "zero"]
    loads, stores = expected_accesses(update, dtype, copies=2, scalars=len(scalars))
    loads["f64"] += 2 * guarded
    found = accesses(text, "ld")
    del found["u64"]
    assert (found, accesses(text, "st")) == (+loads, stores)


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
def test_fold_loads_and_stores_each_number_once(name, dtype):
    update, guarded = MEMBERS[name], dtype is np.float64
    text = ptx(source_of(cuda.fold_rows(update, guarded), update, dtype))
    needed = {*update.fold.arguments, *update.columns}
    carried = [each for each in fold.CARRIED if each in update.fold.assigned]
    loads = sum(each in needed for each in (*fold.HYPER, *fold.CARRIED)) + 2 * guarded
    assert accesses(text, "ld")["f64"] == loads
    assert sum(accesses(text, "st").values()) == len(carried) + len(update.columns)


@dtypes
def test_kernels_of_the_norm_compile_without_fused_multiply_adds(dtype):
    adam, sources = MEMBERS["adam"], {}
    squares = [cuda_norm.squares(np.dtype(dtype))]
    squares += [cuda_norm.squares(np.dtype(np.float32), storage) for storage in ("bfloat16", "float16")]
    for kernel in (*squares, cuda_norm.row_sums(), cuda_norm.clip_record()):
        numbers = ("count", "scale", "max_grad_norm", "largest", "propagate")
        sources[kernel.name] = ptx(cuda_program.source(kernel, stand_ins_for(kernel, dtype, numbers)))
        ignored = {"no IEEE square root", "no IEEE division", "float64 arithmetic in a float32 kernel"}
        assert set(findings(sources[kernel.name], adam, dtype)) <= ignored
    assert findings(sources["fastadam_clip"], adam, np.float64) == []


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
    for kernel in (cuda.step_flat(adam), cuda.step_rows(adam, True)):
        text = ptx(source_of(kernel, adam, np.float32), replaced=[(option, other)])
        assert finding in findings(text, adam, np.float32)


def test_ptx_check_notices_an_update_that_works_on_memory():
    adam = MEMBERS["adam"]
    source = source_of(cuda.step_flat(adam), adam, np.float32)
    by_reference = re.sub(r"T (\w) = (\w_flat\[k\]);", r"T &\1 = \2;", source)
    assert by_reference != source
    text = ptx(by_reference)
    assert (accesses(text, "ld"), accesses(text, "st")) != expected_accesses(adam, np.float32)


def test_ptx_check_notices_a_constant_in_double_precision():
    adam = MEMBERS["adam"]
    source = source_of(cuda.step_flat(adam), adam, np.float32).replace("root + eps", "root + 1.0 * eps + 1e-3")
    assert "float64 arithmetic in a float32 kernel" in findings(ptx(source), adam, np.float32)


def cuda_statements(source, text):
    """The statements between the locals and the stores, as syntax trees; C's and Python's syntax agree there."""
    lines = [line.strip().rstrip(";") for line in source.splitlines()]
    first = lines.index(text.statements[0])
    return [ast.dump(ast.parse(line)) for line in lines[first : first + len(text.statements)]]


def trees(text):
    return [ast.dump(ast.parse(statement)) for statement in text.statements]


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
@guards
def test_cuda_text_is_the_update_text(name, dtype, guarded):
    update = MEMBERS[name]
    for kernel, text in [
        (cuda.step_flat(update), update.text),
        (cuda.step_rows(update, guarded), update.text),
        (cuda.fold_rows(update, guarded), update.fold),
    ]:
        source = source_of(kernel, update, dtype)
        assert cuda_statements(source, text) == trees(text)


def test_clip_is_the_text_of_the_fold():
    (body,) = re.findall(r"\+= lanes\[k\];\n(.*)\nrecord\[0\]", cuda_norm.clip_record().operation, re.DOTALL)
    assert [ast.dump(ast.parse(line.rstrip(";"))) for line in body.splitlines()] == trees(fold.CLIP)


def test_comparison_of_texts_notices_another_text():
    adam, coupled = MEMBERS["adam"], MEMBERS["adam_l2"]
    source = source_of(cuda.step_flat(coupled), coupled, np.float32)
    assert cuda_statements(source, coupled.text) != trees(adam.text)
    assert cuda_statements(source, adam.text) != trees(adam.text)


def test_module_imports_and_builds_a_launch_without_a_gpu():
    code = "from fastadam.kernels import cuda, update; assert callable(cuda.launcher(update.ADAM, 'f4', 10))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
