"""The CUDA kernel without a GPU: its PTX by NVRTC, its results by a host compiler, and its text."""

import ast
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from oracle import assert_same_bits, random_state, special_state

from fastadam.kernels import reference
from fastadam.kernels.fold import fold, fold_l2
from fastadam.kernels.update import ADAM, ADAM_L2

pytest.importorskip("cupy")
nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc")

from cuda_host import compile_on_host, run_on_host  # noqa: E402

from fastadam.kernels import cuda  # noqa: E402

MEMBERS = [(ADAM, fold), (ADAM_L2, fold_l2)]
member = pytest.mark.parametrize(("update", "folder"), MEMBERS, ids=[update.name for update, _ in MEMBERS])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
architectures = pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
needs_host_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def ptx(source, architecture, replaced=()):
    """The PTX of `source`, compiled with CuPy's options, of which some may be `replaced`."""
    program = nvrtc.createProgram(source, "fastadam.cu", (), ())
    options = [dict(replaced).get(option, option) for option in cuda.compiler_options()]
    try:
        nvrtc.compileProgram(program, (*options, f"-arch={architecture}"))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    text = nvrtc.getPTX(program)
    return text.decode() if isinstance(text, bytes) else text


def findings(text, dtype):
    """What is wrong with a kernel's PTX, as a list of sentences; the loop over elements is not unrolled."""
    kind = "f32" if dtype is np.float32 else "f64"
    loads, stores = len(re.findall(r"\bld\.global", text)), len(re.findall(r"\bst\.global", text))
    rules = {
        f"{loads} global loads": loads != 4 or len(re.findall(rf"\bld\.global\.(nc\.)?{kind}", text)) != 4,
        f"{stores} global stores": stores != 3 or len(re.findall(rf"\bst\.global\.{kind}", text)) != 3,
        "local memory": re.search(r"\.local\b", text),
        "fused multiply-add": re.search(r"\bfma\.", text),
        "no IEEE square root": not re.search(rf"\bsqrt\.rn\.(ftz\.)?{kind}", text),
        "no IEEE division": not re.search(rf"\bdiv\.rn\.(ftz\.)?{kind}", text),
        "approximations": re.search(r"\.approx", text),
        "float64 in a float32 kernel": kind == "f32" and re.search(r"\.f64\b", text),
    }
    return [sentence for sentence, broken in rules.items() if broken]


@member
@dtypes
@architectures
def test_ptx_has_four_loads_three_stores_and_ieee_arithmetic(update, folder, dtype, architecture):
    assert findings(ptx(cuda.source(update, dtype), architecture), dtype) == []


@pytest.mark.parametrize(
    ("option", "other", "finding"),
    [
        ("--fmad=false", "--fmad=true", "fused multiply-add"),
        ("--prec-div=true", "--prec-div=false", "no IEEE division"),
        ("--prec-sqrt=true", "--prec-sqrt=false", "no IEEE square root"),
    ],
)
def test_ptx_check_notices_a_wrong_option(option, other, finding):
    assert finding in findings(ptx(cuda.source(ADAM, np.float32), "sm_90", [(option, other)]), np.float32)


def test_ptx_check_notices_an_update_that_works_on_memory():
    source = cuda.source(ADAM, np.float32)
    by_reference = source.replace(
        "T p = p_flat, g = g_flat, m = m_flat, v = v_flat", "T g = g_flat, &p = p_flat, &m = m_flat, &v = v_flat"
    )
    assert by_reference != source
    assert any("global" in finding for finding in findings(ptx(by_reference, "sm_90"), np.float32))


def check_on_host(update, folder, state, step=3, grad_scale=0.5):
    scalars = folder(2e-3, 0.9, 0.999, 1e-8, 0.05)(step, grad_scale)
    expected = [buffer.copy() for buffer in state]
    gradient = state[1].copy()
    reference.launcher(update, state[0].size, state[0].dtype)(*expected, scalars)
    run_on_host(update, *state, scalars)
    assert_same_bits((state[0], *state[2:]), (expected[0], *expected[2:]))
    np.testing.assert_array_equal(state[1], gradient)


@needs_host_compiler
@member
@dtypes
@pytest.mark.parametrize("length", [1, 31, 127, 128, 129, 383, 384, 385, 1_000, 4_097])
def test_host_run_equals_the_reference(update, folder, dtype, length):
    check_on_host(update, folder, random_state(length, dtype, seed=length))


@needs_host_compiler
@member
@dtypes
@pytest.mark.parametrize("step", [1, 2, 1_000, 1_000_000])
@pytest.mark.parametrize("grad_scale", [1.0, -0.25])
def test_host_run_equals_the_reference_on_special_values(update, folder, dtype, step, grad_scale):
    check_on_host(update, folder, special_state(dtype), step, grad_scale)


@needs_host_compiler
def test_host_check_notices_a_changed_statement(tmp_path):
    source = cuda.source(ADAM, np.float32)
    changed = source.replace("g * g - v", "g * g + v")
    assert changed != source
    library = compile_on_host(changed, ADAM, tmp_path)
    state, expected = random_state(100), random_state(100)
    scalars = np.array(fold(2e-3, 0.9, 0.999, 1e-8, 0.05)(3, 1.0), np.float32)
    reference.launcher(ADAM, 100, np.float32)(*expected, scalars)
    pointers = [buffer.ctypes.data for buffer in (*state, scalars)]
    library.launch.argtypes = [np.ctypeslib.ctypes.c_ssize_t] + [np.ctypeslib.ctypes.c_void_p] * 5
    library.launch(100, *pointers)
    with pytest.raises(AssertionError):
        assert_same_bits((state[0], *state[2:]), (expected[0], *expected[2:]))


def cuda_statements(source):
    """The statements between the locals and the stores, as syntax trees; C's and Python's syntax agree there."""
    text = source.split("v = v_flat;")[1].split("p_flat = p;")[0]
    return [ast.dump(ast.parse(line.strip()).body[0]) for line in text.split(";") if line.strip()]


@member
@dtypes
def test_cuda_text_is_the_update_text(update, folder, dtype):
    assert cuda_statements(cuda.source(update, dtype)) == [
        ast.dump(ast.parse(statement).body[0]) for statement in update.statements
    ]


def test_comparison_of_texts_notices_another_text():
    assert cuda_statements(cuda.source(ADAM_L2, np.float32)) != cuda_statements(cuda.source(ADAM, np.float32))


def test_module_imports_and_builds_a_launch_without_a_gpu():
    code = "from fastadam.kernels import cuda, update; assert callable(cuda.launcher(update.ADAM, 10, 'f4'))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"CUDA_VISIBLE_DEVICES": ""})
