"""How many instructions an element takes on the hot path, read from the machine code; no GPU is needed."""

import numpy as np
import pytest
from members import MEMBERS

pytest.importorskip("cupy")
pytest.importorskip("cupy_backends.cuda.libs.nvrtc")

import cuda_program
from sass import Code, Instruction, codes, disassembler

from fastadam.kernels.cuda.step import step_kernel

pytestmark = pytest.mark.skipif(disassembler() is None, reason="needs NVIDIA's nvdisasm")

# The most instructions an element, in an entry of 2,048 elements: 16 of each thread, in 4 rounds. On sm_80 and sm_90,
# and on sm_100 and sm_120.
ROUNDS = 4
MOST = {
    "adam": (44, 44),
    "moments_bfloat16": (59, 58),
    "moments_dithered": (65, 69),
    "all_dithered": (72, 76),
    "codes": (92, 93),
    "dithered_codes": (101, 102),
    "everything": (76, 71),
}


def code_of(name, architecture, folder):
    kernel = step_kernel(MEMBERS[name], np.dtype("f4"), False)
    return codes(cuda_program.source(kernel), architecture, folder)[kernel.name]


@pytest.mark.parametrize("name", MOST)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_instructions_of_an_element(name, architecture, tmp_path):
    code = code_of(name, architecture, tmp_path)
    assert len(code.path(ROUNDS)) <= MOST[name][architecture in ("sm_100", "sm_120")] * 4 * ROUNDS
    # All memory is global, and registers suffice.
    assert code.count(r"(LD|ST)(\.|$)|LDL|STL") == 0


def test_adam_accesses_sixteen_bytes_on_the_hot_path(tmp_path):
    path = code_of("adam", "sm_90", tmp_path).path(1)
    assert [path.count("LDG.E.128"), path.count("STG.E.128")] == [4, 3]
    assert sum(operation in ("LDG.E", "STG.E") for operation in path) == 0


def test_a_path_leaves_out_slow_paths_and_goes_round():
    listing = [
        ("", "MOV", ""),
        ("@P0", "BRA", "`(.L_x_2)"),  # over a call
        (None, "CALL.REL", "`($slow)"),
        (None, "FMUL", ""),  # .L_x_2
        ("@P1", "BRA", "`(.L_x_1)"),  # back
        ("@P2", "BRA", "`(.L_x_3)"),  # over what is on the way
        (None, "FADD", ""),
        ("@P3", "BRA", "`(.L_x_4)"),  # .L_x_3, over comparisons
        (None, "ISETP.GT.AND", ""),
        ("@P4", "VIMNMX.U32", ""),
        (None, "EXIT", ""),  # .L_x_4
    ]
    code = Code([Instruction(*each) for each in listing], {".L_x_1": 3, ".L_x_2": 3, ".L_x_3": 7, ".L_x_4": 10})
    once = ["MOV", "BRA", "FMUL", "BRA", "BRA", "FADD", "BRA", "EXIT"]
    assert code.path(1) == once
    assert code.path(3) == [*once[:4], "FMUL", "BRA", "FMUL", "BRA", *once[4:]]
